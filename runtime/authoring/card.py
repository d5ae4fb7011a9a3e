"""The model card: ``MODEL_CARD.md`` and ``MODEL_CARD.html``, drawn from what the bundle itself says.

Sections as in M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Once a bundle has a
card, every change of the bundle draws it anew (``BundleWriter.finish``), so that it never tells of
artefacts that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mri_edge.bundles.decode import parse
from mri_edge.bundles.manifest import Manifest
from mri_edge.bundles.split import Role, Split
from mri_edge.errors import ManifestError
from mri_edge.inference.prediction import NOTICE

from .figures import with_interval

MARKDOWN, PAGE = "MODEL_CARD.md", "MODEL_CARD.html"
METRICS = "metrics.json"

_WORST = 10  # mistakes that are named

_STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem } p, ul { margin: .4rem 0 }
  table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
  th, td { text-align: left; padding: .25rem .8rem; border-bottom: 1px solid #dde2e8; vertical-align: top }
  th { font-weight: 600; color: #5b6675 } td { overflow-wrap: break-word } .scroll { overflow-x: auto }
"""


@dataclass(frozen=True)
class Table:
    """Heads and rows of texts."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Section:
    """A title, and below it paragraphs and tables."""

    title: str
    blocks: list[str | Table]


def pages(manifest: Manifest, folder: Path) -> dict[str, str]:
    """The card as Markdown and as HTML, by file name; drawn from the manifest and the records that it lists there."""
    held = {one.file for one in manifest.documents}
    metrics = _read_metrics(folder / METRICS) if METRICS in held else {}
    split = Split.find(held, lambda file: (folder / file).read_bytes())
    title = f"Model card: {manifest.name}"
    try:
        sections = card(manifest, metrics, split)
        return {MARKDOWN: to_markdown(title, sections), PAGE: to_html(title, sections)}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ManifestError(
            f"{folder / METRICS}: is not what training writes ({type(error).__name__}: {error})",
            "Train the model again",
        ) from error


def has_card(manifest: Manifest) -> bool:
    """Whether the bundle has a card, which then goes with every change."""
    return any(one.file == MARKDOWN for one in manifest.documents)


def card(manifest: Manifest, metrics: dict[str, Any], split: Split | None) -> list[Section]:
    """The sections, from the manifest, the content of ``metrics.json`` (may be empty) and the split record."""
    return [
        Section("Model Details", _model_details(manifest)),
        Section("Intended Use", _intended_use(manifest)),
        Section("Factors", _factors(manifest, metrics)),
        Section("Metrics", _metrics(manifest)),
        Section("Evaluation Data", _data(manifest, split, ("test",))),
        Section("Training Data", _data(manifest, split, ("train", "validation", "excluded"))),
        Section("Quantitative Analyses", _analyses(manifest, metrics)),
        Section("Ethical Considerations", _ethics(manifest)),
        Section("Caveats and Recommendations", _caveats(manifest)),
    ]


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The card as Markdown with tables."""
    lines = [f"# {_plain(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, str):
                lines += [_plain(block), ""]
            else:
                rows = [block.heads, ("---",) * len(block.heads), *block.rows]
                lines += [*("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows), ""]
    return "\n".join(lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The card as a page that needs nothing else."""
    parts = []
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        for block in section.blocks:
            parts.append(f"<p>{escape(block)}</p>" if isinstance(block, str) else _html_table(block))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _model_details(manifest: Manifest) -> list[str | Table]:
    made, training, prepared = manifest.creation, manifest.training, manifest.preprocessing
    facts = {
        "version": manifest.version,
        "made": f"{made.created}, mri-edge {made.code_version}, commit {made.code_commit or 'unknown'}",
        "network": f"{training.backbone}, weights {training.backbone_weights}",
        "SHA-256 of the weights": training.backbone_sha256,
        "recipe": f"{training.recipe}, seed {training.seed}",
        "input": f"RGB pictures, resized to {prepared.height} x {prepared.width} ({prepared.resize})",
        "labels": f"{', '.join(manifest.labels)}; positive: {_positive(manifest)}",
        "libraries": ", ".join(f"{name} {version}" for name, version in made.libraries.items()),
        "platform": made.platform,
        "made again by": made.command,
    }
    details = [(name, _shown(value)) for name, value in training.details.items()]
    blocks: list[str | Table] = [Table(("fact", "value"), list(facts.items()))]
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
            f"A picture is called {_positive(manifest)!r} if its probability is at least {manifest.threshold:.4g}, "
            "else the likeliest other label."
        )
    details = manifest.training.details
    chosen = f" The threshold: {details['threshold_rule']}." if "threshold_rule" in details else ""
    if "temperature" in details:
        calibrated = f"The probabilities are calibrated: temperature {_shown(details['temperature'])}, in the weights."
    else:
        calibrated = "The probabilities are as training left them: no calibration is recorded."
    methods: dict[str, list[str]] = {}
    for name, metric in manifest.metrics.items():
        methods.setdefault(metric.method, []).append(_named(name))
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
        (role, *(str(sum(one.label == index for one in split.of(role))) for index in range(len(manifest.labels))))
        for role in roles
        if split.of(role)
    ]
    blocks.append(Table(("role", *manifest.labels), rows))
    trained = {one.sha256 for its in ("train", "validation") for one in split.of(its)}
    copies = sum(one.sha256 in trained for one in split.of("test"))
    if "test" in roles and copies:
        blocks.append(f"{copies} of the test images are byte for byte among the training images: figures flatter it.")
    if "excluded" in roles and split.of("excluded"):
        blocks.append("Excluded images neither train nor test: left out by hand, or too like a test image.")
    if "train" in roles:
        for one, files in manifest.calibrations().items():
            blocks.append(f"Ranges of {', '.join(files)}: {one.method} over {one.images} images, seed {one.seed}.")
    return blocks


def _analyses(manifest: Manifest, metrics: dict[str, Any]) -> list[str | Table]:
    blocks: list[str | Table] = []
    if manifest.metrics:
        figures = [
            (_named(name), with_interval(metric.value, metric.low, metric.high), str(metric.images))
            for name, metric in manifest.metrics.items()
        ]
        heads = ("figure", "value (95% interval)", "images")
        blocks += ["The float model on the test images:", Table(heads, figures)]
    else:
        blocks.append("No figures are recorded.")
    if matrix := metrics.get("confusion_matrix"):
        counts = [(label, *map(str, row)) for label, row in zip(manifest.labels, matrix, strict=True)]
        blocks.append(Table(("truth", *(f"called {label}" for label in manifest.labels)), counts))
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
    return [
        *blocks,
        "Artefacts, and how far each is from the float model on the same images:",
        Table(("artefact", "precision", "MB", "parity", "largest |Δp|", "labels changed"), list(_artefacts(manifest))),
    ]


def _artefacts(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for one in manifest.artefacts:
        parity = one.parity
        told = (
            (parity.verdict, f"{parity.max_difference:.1e}", f"{parity.flips} of {parity.images}")
            if parity
            else ("–", "–", "–")
        )
        yield one.file, one.precision, f"{one.size_bytes / 1e6:.1f}", *told


def _mistakes(manifest: Manifest, test: list[dict[str, Any]]) -> list[str | Table]:
    """Where it fails: the test images that it labels wrongly, the most certain ones first."""
    import numpy as np

    from mri_edge.inference.prediction import decide

    probabilities = np.array([one["probabilities"] for one in test], np.float32)
    called = decide(probabilities, manifest.positive, manifest.threshold).tolist()
    wrong = [(one, manifest.labels[its]) for one, its in zip(test, called, strict=True) if its != one["label"]]
    wrong.sort(key=lambda pair: pair[0]["probabilities"][pair[0]["label"]])
    rows = [
        (one["file"], manifest.labels[one["label"]], said, f"{one['probabilities'][one['label']]:.3f}")
        for one, said in wrong[:_WORST]
    ]
    if not rows:
        return [f"It labels all {len(test)} test images rightly."]
    which = "" if len(wrong) <= _WORST else f"; the {_WORST} most certain ones"
    return [
        f"Where it fails: {len(wrong)} of {len(test)} test images{which}:",
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
        blocks.append(
            f"The least certain figure is {_named(name)}: {with_interval(widest.value, widest.low, widest.high)}, of "
            f"{widest.images} images. Pictures from elsewhere may do worse than the test images."
        )
    blocks.append("Measure it on your own scans before you rely on it: mri-edge evaluate BUNDLE --data DIR.")
    return blocks


def _read_metrics(path: Path) -> dict[str, Any]:
    content = parse(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: must be an object. Received: {type(content).__name__}")
    return content


def _positive(manifest: Manifest) -> str:
    return manifest.labels[manifest.positive]


def _named(name: str) -> str:
    return {"auc": "AUC", "f1": "F1", "brier": "Brier score"}.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for letter in "\\`*_<|":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def _html_table(table: Table) -> str:
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in table.rows)
    head = "".join(f"<th>{escape(cell)}" for cell in table.heads)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>'
