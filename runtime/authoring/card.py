"""Write the model card ``MODEL_CARD.md`` from the records of a bundle.

The sections follow M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. ``BundleWriter.finish`` writes an
existing card again at every change of the bundle, so that it never describes artifacts that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mri_edge.bundles.decode import parse
from mri_edge.bundles.manifest import Manifest
from mri_edge.bundles.split import Role, Split
from mri_edge.errors import ManifestError
from mri_edge.inference.prediction import NOTICE

from .heatmap_score import facts as heatmap_facts
from .intervals import with_interval
from .recalibration import facts as recalibration_facts
from .recalibration import headline

CARD = "MODEL_CARD.md"
METRICS = "metrics.json"
PARITY = "parity.json"

_MAX_MISTAKES = 10  # listed by name


@dataclass(frozen=True)
class Table:
    """A table of text: headings and rows."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A titled section of paragraphs and tables."""

    title: str
    blocks: list[str | Table]


def render_card(manifest: Manifest, folder: Path) -> str:
    """The card as Markdown, from the manifest and the records that it lists in ``folder``.

    Raises
    ------
    ManifestError
        ``metrics.json`` is not what training writes.
    """
    listed = {document.file for document in manifest.documents}
    metrics = _read_metrics(folder / METRICS) if METRICS in listed else {}
    split = Split.find(listed, lambda file: (folder / file).read_bytes())
    counted = _parity_threshold(manifest, folder / PARITY) if PARITY in listed else ""
    try:
        return to_markdown(f"Model card: {manifest.name}", card(manifest, metrics, split, counted))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ManifestError(
            f"{folder / METRICS}: is not what training writes ({type(error).__name__}: {error})",
            "Train the model again",
        ) from error


def has_card(manifest: Manifest) -> bool:
    """Whether the bundle has a card."""
    return manifest.document(CARD) is not None


def card(manifest: Manifest, metrics: dict[str, Any], split: Split | None, counted: str = "") -> list[Section]:
    """Sections of the card from the manifest, the content of ``metrics.json`` (may be empty) and the split record.

    ``counted`` says at which threshold the parity was counted, if that is not the manifest's.
    """
    return [
        Section("Model Details", _model_details(manifest)),
        Section("Intended Use", _intended_use(manifest)),
        Section("Factors", _factors(manifest, metrics)),
        Section("Metrics", _metrics(manifest)),
        Section("Evaluation Data", _data(manifest, split, ("test",))),
        Section("Training Data", _data(manifest, split, ("train", "validation", "excluded"))),
        Section("Quantitative Analyses", _analyses(manifest, metrics, counted)),
        Section("Ethical Considerations", _ethics(manifest)),
        Section("Caveats and Recommendations", _caveats(manifest)),
    ]


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Render sections as Markdown."""
    lines = [f"# {_escape(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, str):
                lines += [_escape(block), ""]
            else:
                rows = [block.heads, ("---",) * len(block.heads), *block.rows]
                lines += [*("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows), ""]
    return "\n".join(lines)


def _model_details(manifest: Manifest) -> list[str | Table]:
    made, training, prepared = manifest.creation, manifest.training, manifest.preprocessing
    facts = {
        "version": manifest.version,
        "made": f"{made.created}, mri-edge {made.code_version}, commit {made.code_commit or 'unknown'}",
        "network": f"{training.backbone}, weights {training.backbone_weights}",
        "SHA-256 of the weights": training.backbone_sha256,
        "recipe": f"{training.recipe}, seed {training.seed}",
        "input": f"RGB pictures{', the square around the head' if prepared.framing == 'head' else ''}, resized to "
        f"{prepared.height} x {prepared.width} ({prepared.resize})",
        "labels": f"{', '.join(manifest.labels)}; positive: {manifest.positive_label or 'none'}",
        "libraries": ", ".join(f"{name} {version}" for name, version in made.libraries.items()),
        "platform": made.platform,
        "made again by": made.command,
    }
    details = [(name, _format(value)) for name, value in training.details.items()]
    blocks: list[str | Table] = [Table(("fact", "value"), list(facts.items()))]
    if manifest.recalibration:
        blocks += [headline(manifest), Table(("of the recalibration", "value"), recalibration_facts(manifest))]
    return [*blocks, *([Table(("of the training", "value"), details)] if details else [])]


def _intended_use(manifest: Manifest) -> list[str | Table]:
    stated = manifest.intended_use or "Not stated."
    return [stated] if NOTICE in stated else [stated, NOTICE]


def _factors(manifest: Manifest, metrics: dict[str, Any]) -> list[str | Table]:
    classes = [(label, ", ".join(manifest.training.classes.get(label, [])) or "–") for label in manifest.labels]
    known = "Figures for each folder are below." if metrics.get("folders") else "No figures by subgroup are recorded."
    return [
        Table(("label", "folders that it stands for"), classes),
        f"{known} Nothing is recorded of scanner, field strength, sequence, plane, age or sex: how the model does "
        "in such groups is not known.",
    ]


def _metrics(manifest: Manifest) -> list[str | Table]:
    if manifest.threshold is None:
        rule = "The answer is the likeliest label; no threshold was chosen."
    else:
        rule = (
            f"A picture is called {manifest.positive_label!r} if its probability is at least {manifest.threshold:.4g}, "
            "else the likeliest other label."
        )
    details, recalibration = manifest.training.details, manifest.recalibration
    chosen_by = recalibration.threshold_rule if recalibration else details.get("threshold_rule")
    chosen = f" The threshold: {chosen_by}." if chosen_by else ""
    if "temperature" in details:
        calibrated = f"The probabilities are calibrated: temperature {_format(details['temperature'])}, in the weights."
    else:
        calibrated = "The probabilities are as training left them: no calibration is recorded."
    if recalibration:
        calibrated += (
            f" They were recalibrated after that: temperature {_format(recalibration.temperature)}, applied to the "
            "answers of every artifact."
        )
    methods: dict[str, list[str]] = {}
    for name, metric in manifest.metrics.items():
        methods.setdefault(metric.method, []).append(_metric_name(name))
    lines = [f"95% intervals of {', '.join(names)}: {method}." for method, names in methods.items()]
    return [rule + chosen, calibrated, *lines]


def _data(manifest: Manifest, split: Split | None, roles: Sequence[Role]) -> list[str | Table]:
    training = manifest.training
    if "test" in roles:
        facts = f"Split: {training.split}; {training.test_images} images. SHA-256 of the split: "
        facts += training.split_fingerprint
    else:
        facts = f"{training.train_images} images. SHA-256 of the data: {training.data_fingerprint}"
    blocks: list[str | Table] = [facts]
    if split is None:
        return [*blocks, "The bundle has no record of single images."]
    rows = [
        (role, *(str(sum(image.label == index for image in split.of(role))) for index in range(len(manifest.labels))))
        for role in roles
        if split.of(role)
    ]
    blocks.append(Table(("role", *manifest.labels), rows))
    trained = {image.sha256 for role in ("train", "validation") for image in split.of(role)}
    copies = sum(image.sha256 in trained for image in split.of("test"))
    if "test" in roles and copies:
        blocks.append(f"{copies} of the test images are byte for byte among the training images: figures flatter it.")
    if "excluded" in roles and split.of("excluded"):
        blocks.append("Excluded images neither train nor test: left out by hand, or too like a test image.")
    if "train" in roles:
        for ranges, files in manifest.calibrations().items():
            blocks.append(
                f"Ranges of {', '.join(files)}: {ranges.method} over {ranges.images} images, seed {ranges.seed}."
            )
    return blocks


def _analyses(manifest: Manifest, metrics: dict[str, Any], counted: str) -> list[str | Table]:
    blocks: list[str | Table] = []
    if manifest.metrics:
        figures = [
            (_metric_name(name), with_interval(metric.value, metric.low, metric.high), str(metric.images))
            for name, metric in manifest.metrics.items()
        ]
        heads = ("figure", "value (95% interval)", "images")
        blocks += [f"The float model on the test images{_before(manifest)}:", Table(heads, figures)]
    else:
        blocks.append("No figures are recorded.")
    if matrix := metrics.get("confusion_matrix"):
        counts = [(label, *map(str, row)) for label, row in zip(manifest.labels, matrix, strict=True)]
        blocks.append(Table(("truth", *(f"called {label}" for label in manifest.labels)), counts))
    if len(manifest.labels) > 2 and (by_label := metrics.get("by_label")):
        blocks += ["Each label against all others:", _by_label(manifest, by_label)]
    if folders := metrics.get("folders"):
        rows = [
            (
                folder["folder"],
                manifest.labels[folder["label"]],
                with_interval(folder["value"], folder["low"], folder["high"]),
                str(folder["images"]),
            )
            for folder in folders
        ]
        blocks.append(Table(("folder", "label", "labelled rightly (95% interval)", "images"), rows))
    if test := metrics.get("test"):
        blocks += _mistakes(manifest, test)
    if manifest.heatmaps:
        blocks += [
            "Heatmaps, scored on lesions that were drawn at known places in healthy scans:",
            Table(("of the heatmaps", "value (95% interval)"), heatmap_facts(manifest)),
        ]
    return [
        *blocks,
        f"Artefacts, and how far each is from the float model on the same images{_before(manifest) or counted}:",
        Table(("artefact", "precision", "MB", "parity", "largest |Δp|", "labels changed"), list(_artifacts(manifest))),
        *_compared(manifest),
    ]


def _by_label(manifest: Manifest, by_label: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each label, and a column for each figure that a label has."""
    names = list(dict.fromkeys(name for figures in by_label.values() for name in figures))
    rows = [
        (
            label,
            *(
                with_interval(figure["value"], figure["low"], figure["high"]) if figure else "–"
                for figure in (by_label.get(label, {}).get(name) for name in names)
            ),
        )
        for label in manifest.labels
    ]
    return Table(("label", *(f"{_metric_name(name)} (95% interval)" for name in names)), rows)


def _compared(manifest: Manifest) -> Iterable[str]:
    """Say which images the artifacts were compared on, if not only on the test images."""
    counts = [artifact.parity.images for artifact in manifest.artifacts if artifact.parity]
    if any(count > manifest.training.test_images for count in counts):
        yield (
            f"Differences and changed labels need no truth, so they are counted on up to {max(counts)} test and "
            "training images, of which none calibrated the artifact."
        )


def _artifacts(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for artifact in manifest.artifacts:
        parity = artifact.parity
        figures = (
            (parity.verdict, f"{parity.max_difference:.1e}", f"{parity.flips} of {parity.images}")
            if parity
            else ("–", "–", "–")
        )
        yield artifact.file, artifact.precision, f"{artifact.size_bytes / 1e6:.1f}", *figures


def _mistakes(manifest: Manifest, test: list[dict[str, Any]]) -> list[str | Table]:
    """List the test images that the model labels wrongly, most confident first."""
    import numpy as np

    from mri_edge.inference.prediction import decide

    probabilities = np.array([image["probabilities"] for image in test], np.float32)
    recalibration = manifest.recalibration
    threshold = recalibration.original_threshold if recalibration else manifest.threshold
    called = decide(probabilities, manifest.positive, threshold).tolist()
    wrong = [
        (image, manifest.labels[label]) for image, label in zip(test, called, strict=True) if label != image["label"]
    ]
    wrong.sort(key=lambda pair: pair[0]["probabilities"][pair[0]["label"]])
    rows = [
        (image["file"], manifest.labels[image["label"]], label, f"{image['probabilities'][image['label']]:.3f}")
        for image, label in wrong[:_MAX_MISTAKES]
    ]
    if not rows:
        return [f"It labels all {len(test)} test images rightly."]
    which = "" if len(wrong) <= _MAX_MISTAKES else f"; the {_MAX_MISTAKES} most certain ones"
    return [
        f"Where it fails{_before(manifest)}: {len(wrong)} of {len(test)} test images{which}:",
        Table(("file", "truth", "called", "probability of the truth"), rows),
    ]


def _ethics(manifest: Manifest) -> list[str | Table]:
    return [
        f"{NOTICE} No answer of it may decide anything about a patient.",
        Table(("licence of", "is"), list(manifest.licences.items())),
    ]


def _caveats(manifest: Manifest) -> list[str | Table]:
    blocks: list[str | Table] = [manifest.limits or "No limits are stated."]
    if manifest.metrics:
        name, widest = max(manifest.metrics.items(), key=lambda item: item[1].high - item[1].low)
        interval = with_interval(widest.value, widest.low, widest.high)
        blocks.append(
            f"The least certain figure is {_metric_name(name)}: {interval}, of {widest.images} images. "
            "Pictures from elsewhere may do worse than the test images."
        )
    blocks.append("Measure it on your own scans before you rely on it: mri-edge evaluate BUNDLE --data DIR.")
    return blocks


def _read_metrics(path: Path) -> dict[str, Any]:
    content = parse(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: must be an object. Received: {type(content).__name__}")
    return content


def _before(manifest: Manifest) -> str:
    """Say that a figure belongs to the model before its recalibration."""
    done = manifest.recalibration
    if done is None:
        return ""
    rule = (
        "at the likeliest label" if done.original_threshold is None else f"at threshold {done.original_threshold:.4g}"
    )
    return f", before the recalibration, {rule}"


def _parity_threshold(manifest: Manifest, path: Path) -> str:
    """Say at which threshold ``parity.json`` was made, if the bundle has another by now."""
    known = parse(path.read_bytes(), str(path))
    threshold = known.get("threshold") if isinstance(known, dict) else None
    if not isinstance(threshold, int | float) or threshold == manifest.threshold:
        return ""
    return f", counted at threshold {threshold:.4g}"


def _metric_name(name: str) -> str:
    if name.startswith("macro_"):  # the mean over the labels
        return f"macro {_metric_name(name.removeprefix('macro_'))}"
    return {"auc": "AUC", "f1": "F1", "brier": "Brier score"}.get(name, name.replace("_", " "))


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format(item) for item in value)
    return str(value)


def _escape(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, on one line."""
    for letter in "\\`*_<|":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
