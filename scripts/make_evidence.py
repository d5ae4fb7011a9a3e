"""Write ``docs/evidence.md`` and the summary in README, from committed records only.

    python -m scripts.make_evidence            # the page, from the records as they are
    python -m scripts.make_evidence --again    # first computes the figures of all records again (five minutes)

The records are the cross-validations in ``docs/evidence/crossval`` and ``docs/evidence/ablation`` (each a
``crossval.json``, see ``train.evaluation.crossval_record``), ``docs/evidence/runs.json``, and the metrics and parity of
the embedded models. A record that does not exist makes no row. ``evidence.md.jinja`` has the text around the tables. A
test compares the page with what this script writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from mri_edge.authoring.intervals import wilson_interval, with_interval
from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.inference.prediction import NOTICE
from mri_edge.storage.atomic import atomic_write
from mri_edge.train.evaluation.crossval_figures import (
    SENSITIVITY,
    BinaryAnswers,
    figures_from,
    mean_difference,
    mean_figures,
)
from mri_edge.train.evaluation.crossval_record import TEACHER, ScoredImages, to_json
from mri_edge.train.evaluation.intervals import GROUP_BOOTSTRAP
from mri_edge.train.reports.tables import NAMES, interval

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE, README = Path("docs", "evidence.md"), Path("README.md")
BEGIN, END = "<!-- `make evidence` writes the lines from here -->", "<!-- to here -->"
_REFERENCE = "robust"  # the recipe of vgg16, with which the default model is compared
_LEADING = "lite"  # the recipe of the default model; its results come first, and README shows them
DRAWS, PART = 1000, 8  # thresholds from random eighths; a training validates on an eighth of its images

_AT_SENSITIVITY = f"false positive rate at {SENSITIVITY:g} sensitivity"
_FIGURES = NAMES | {"false_positive_rate_at_sensitivity": _AT_SENSITIVITY}
_MAIN = ("auc", "sensitivity", "specificity")
_COMPARED = {"auc": "AUC", "specificity": f"specificity at {SENSITIVITY:g} sensitivity", "accuracy": "accuracy"}
_ABLATED = ("change", "held out", "tested on", "recipe")
_OF_LABEL = ("sensitivity", "precision", "f1", "auc")
_HELD_OUT = (
    "whole sources",
    "blocks of patients",
    "slices (optimistic: neighboring slices of one patient on both sides)",
)
_HOW = (
    "each fold holds out one source and trains on the others.",
    "whole groups ({grouping}). Blocks of consecutive file numbers stand for patients.",
    "whole groups ({grouping}).",
)
_WHY_OPTIMISTIC = (
    "settings of the recipe were chosen on images of these sources.",
    "the sources do not name patients, so a patient at the border of two blocks is on both sides. Every source is on "
    "both sides, too. Only the folders named above have blocks: the others are grouped by near-duplicates alone, so "
    "figures of scans without a tumor count slices. Settings of the recipe were chosen on these images.",
    "neighboring slices of one patient are on both sides, and so is every source. Settings of the recipe were chosen "
    "on these images.",
)

_CHANGED = "Changed scans: equally many images of each label, drawn from each fold. The folds are pooled."

Means = dict[str, dict[str, Any]]  # figures of ``_COMPARED``, mean of several seeds, by what was tested


@dataclass(frozen=True)
class Study:
    """A cross-validation record and its file, relative to docs/."""

    file: str
    record: dict[str, Any]

    @property
    def rank(self) -> int:
        """0 if whole sources are held out, 1 if patients or blocks that stand for them are, 2 for slices."""
        if self.record["protocol"] == "sources":
            return 0
        return 1 if self.record.get("patients") or self.record["grouping"].startswith("blocks") else 2

    @property
    def held_out(self) -> str:
        """What a fold holds out."""
        return "patients" if self.rank and self.record.get("patients") else _HELD_OUT[self.rank]

    @property
    def title(self) -> str:
        """Recipe, and what is held out in a word or two."""
        labels = len(self.record["labels"])
        task = "" if labels == 2 else f", {labels} labels"
        return f"Recipe `{self.record['recipe']}`{self.seed}{task}, {self.held_out.partition(' (')[0]} held out"

    @property
    def seed(self) -> str:
        """The seed for titles and tables, if it is not that of the embedded models."""
        return f", seed {self.record['seed']}" if self.record["seed"] else ""

    @property
    def link(self) -> str:
        """Markdown link to the record."""
        return f"[{Path(self.file).stem}]({self.file})"

    @property
    def models(self) -> list[str]:
        """Names of the models that each fold trained."""
        return list(self.record["pooled"])

    def name(self, model: str) -> str:
        """Return how tables name a model."""
        if model == TEACHER:
            return f"{self.record['teacher']['recipe']}, teacher"
        recipe = f"{self.record['recipe']}{self.seed}"
        return f"{recipe}, {model}" if len(self.models) > 1 else recipe

    def has_images_of(self, other: Study) -> bool:
        """Whether both held out the same parts of the same images."""
        return self.rank == other.rank and self.record["images"]["sha256"] == other.record["images"]["sha256"]

    def tested(self) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Return what was tested, the model and its figures: by source if sources are held out, else over all images.

        Answers of folds that hold out sources are not pooled, because models of different sources gave them.
        """
        parts = self.record["by_source"] if self.rank == 0 else {"all sources": self.record["pooled"]}
        return [(tested, model, figures) for tested, models in parts.items() for model, figures in models.items()]

    def facts(self) -> str:
        """Return how the figures were measured, as a list."""
        record = self.record
        return "\n".join(
            (
                f"- **Held out**: {_HOW[self.rank].format(grouping=record['grouping'])}",
                f"- **Optimistic**: {_WHY_OPTIMISTIC[self.rank]}",
                f"- **Intervals**: {self._intervals()}",
                f"- **Command**: `{_command(record)}`, {self._seeds()}, {_folds(record)}, {self._length()}.",
                f"- **Record**: {self.link}, with the answer to every image.",
            )
        )

    def _intervals(self) -> str:
        """Return whether the intervals account for patients."""
        if self.record.get("patients") or self.record["grouping"].startswith("blocks"):
            return "they account for the groups: images of one group are not independent."
        return "too narrow, because slices of one patient count as independent. Near-duplicates do not."

    def _length(self) -> str:
        """Return how long each model was trained."""
        length = _length(self.record["schedule"])
        teacher = self.record["teacher"]
        return f"{_length(teacher['schedule'])} for the teacher, {length} for the students" if teacher else length

    def _seeds(self) -> str:
        students = [model.split()[-1] for model in self.models if model.startswith("student")]
        if students:
            return f"seed {self.record['seed']} for the teacher, seeds {', '.join(students)} for the students"
        return f"seed {self.record['seed']}"


def build(root: Path = CHECKOUT) -> dict[Path, str]:
    """Return the text of the page and of README, by path below ``root``, from the records there."""
    studies = sorted(
        _studies(root, "crossval"),
        key=lambda study: (study.rank, study.record["recipe"] != _LEADING, study.record["seed"], study.file),
    )
    every_two = [study for study in studies if study.record["positive"] is not None]
    every_several = [study for study in studies if study.record["positive"] is None]
    two, several = _first_seeds(every_two), _first_seeds(every_several)
    seeds = [(group, _means_of_seeds(group)) for group in _of_several_seeds(every_two)]
    ablations = _studies(root, "ablation")
    folders = sorted((path.parent for path in root.glob("runtime/models/*/metrics.json")), reverse=True)
    folders.sort(key=lambda folder: folder.name != DEFAULT_MODEL)
    bundles = {folder.name: _bundle(folder) for folder in folders}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 (Markdown from our own records)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("evidence.md.jinja").render(
        notice=NOTICE,
        lead=_lead(two),
        seeds=_seeds(seeds),
        compared=_compared(every_two),
        alone=_alone(two),
        unseen=_unseen(every_two),
        leading=_LEADING,
        reference=_REFERENCE,
        studies=[{"title": study.title, "facts": study.facts(), "tables": _tables(study)} for study in two],
        thresholds=_thresholds(two),
        drawn=_drawn(two, bundles),
        draws=DRAWS,
        bundles=bundles,
        models=_models(bundles),
        commands=[
            (
                name,
                bundle["manifest"]["creation"]["command"],
                _length(bundle["manifest"]["training"]["details"]["plan"]),
            )
            for name, bundle in bundles.items()
        ],
        metrics=_metrics(bundles),
        parity=_parity(bundles),
        runs=_runs(root / "docs" / "evidence" / "runs.json"),
        several=[{"title": study.title, "facts": study.facts(), "tables": _label_tables(study)} for study in several],
        seeds_of_several=_seeds_of_several(every_several),
        contributions=_contributions(ablations, every_two),
        ablations=_ablations(ablations),
        methods=_methods([*studies, *ablations]),
        paired=GROUP_BOOTSTRAP,
    )
    before, _, rest = (root / README).read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    after = rest.partition(END)[2]
    summary = "\n\n".join(text for text in (_models(bundles), _held_out_list(two, seeds)) if text)
    return {PAGE: page, README: f"{before}{BEGIN}\n{summary}\n{END}{after}"}


def _studies(root: Path, folder: str) -> list[Study]:
    paths = sorted((root / "docs" / "evidence" / folder).glob("*.json"))
    return [Study(path.relative_to(root / "docs").as_posix(), json.loads(path.read_bytes())) for path in paths]


def _first_seeds(studies: Sequence[Study]) -> list[Study]:
    """Return one study of each recipe and of each way to hold out, that of its lowest seed."""
    found: dict[tuple[str, int], Study] = {}
    for study in sorted(studies, key=lambda study: study.record["seed"]):
        found.setdefault((study.record["recipe"], study.rank), study)
    return [study for study in studies if study in found.values()]


def _bundle(folder: Path) -> dict[str, Any]:
    return {name: json.loads((folder / f"{name}.json").read_bytes()) for name in ("manifest", "metrics", "parity")}


def _command(record: Mapping[str, Any]) -> str:
    """Return the recorded command, or one that makes such a record if several commands made it."""
    recorded = str(record.get("creation", {}).get("command", ""))
    if "--cv" in recorded:
        # Some records name no recipe here, because a folder with its name made it look like a path.
        return recorded.replace("--recipe PATH", f"--recipe {record['recipe']}")
    folds = "sources" if record["protocol"] == "sources" else record["folds"]
    groups = " --groups near-duplicates" if record["grouping"].startswith("near-duplicates") else ""
    return f"mri-edge train DIR --recipe {record['recipe']} --cv {folds}{groups} --seed {record['seed']} --out OUT"


def _length(schedule: Mapping[str, Any]) -> str:
    return next(f"{schedule[unit]:,} {unit}" for unit in ("steps", "epochs") if unit in schedule)


def _folds(record: Mapping[str, Any]) -> str:
    scored = len(record["folds_scored"])
    total = record["folds"] or scored
    folds = "1 fold" if total == 1 else f"{total} folds"
    return folds if scored == total else f"{scored} of {folds}"


# Two labels.


def _rows_of(studies: Sequence[Study]) -> list[tuple[Study, str, str, Mapping[str, Any]]]:
    """Return study, what was tested, model and figures, without teachers that another study has as its model."""
    trained = {(study.rank, study.record["recipe"]) for study in studies}
    return [
        (study, tested, model, figures)
        for study in studies
        for tested, model, figures in study.tested()
        if model != TEACHER or (study.rank, study.record["teacher"]["recipe"]) not in trained
    ]


def _lead(studies: Sequence[Study]) -> str:
    rows = [
        (study.held_out, tested, study.name(model), _images(figures), *_values(figures, _MAIN))
        for study, tested, model, figures in _rows_of(studies)
    ]
    return _table(("held out", "tested on", "recipe", "images", *_names(_MAIN)), rows, text=3)


def _compared(studies: Sequence[Study]) -> str:
    """Return the paired differences between the recipes of the default model and of vgg16, on the same images."""
    rows = []
    for other in studies:
        ours = [
            study
            for study in studies
            if study.record["recipe"] == _LEADING and study.rank < 2 and study.has_images_of(other)
        ]
        if not ours or other.record["recipe"] != _REFERENCE:
            continue
        images = ScoredImages.of(other.record)
        for tested, chosen in _tested_rows(other, images).items():
            pairs = [(_answers(study, chosen), _answers(other, chosen)) for study in ours]
            found = mean_difference(images.label[chosen] == other.record["positive"], pairs, images.group[chosen])
            rows.append((other.held_out, tested, *(_signed(found[name]) for name in _COMPARED)))
    return _table(("held out", "tested on", *_COMPARED.values()), rows, text=2)


def _of_several_seeds(studies: Iterable[Study]) -> list[list[Study]]:
    """Return the studies that differ in nothing but their seeds, in groups of two or more."""
    found: dict[tuple[str, int, tuple[str, ...]], list[Study]] = {}
    for study in studies:
        if len(study.models) == 1:
            key = study.record["recipe"], study.rank, tuple(study.record["images"]["sha256"])
            found.setdefault(key, []).append(study)
    return [group for group in found.values() if len(group) > 1]


def _seeds(groups: Iterable[tuple[Sequence[Study], Means]]) -> str:
    """Return the mean over the seeds, with its interval, and the AUC of each seed."""
    rows = []
    for group, by_tested in groups:
        for tested, mean in by_tested.items():
            seeds = ", ".join(str(study.record["seed"]) for study in group)
            each = ", ".join(f"{_auc(study, tested):.3f}" for study in group)
            means = (interval(mean[key]) for key in _COMPARED)
            rows.append((group[0].held_out, tested, group[0].record["recipe"], seeds, *means, each))
    heads = ("held out", "tested on", "recipe", "seeds", *_COMPARED.values(), "AUC of each seed")
    return _table(heads, rows, text=4)


def _means_of_seeds(group: Sequence[Study]) -> Means:
    """Return the figures of ``_COMPARED``, mean of the seeds, by what was tested."""
    images = ScoredImages.of(group[0].record)
    return {
        tested: mean_figures(
            images.label[chosen] == group[0].record["positive"],
            [_answers(study, chosen) for study in group],
            images.group[chosen],
        )
        for tested, chosen in _tested_rows(group[0], images).items()
    }


def _tested_rows(study: Study, images: ScoredImages) -> dict[str, NDArray[np.intp]]:
    """Return the rows of ``images`` that ``Study.tested`` tells apart."""
    if study.rank:
        return {"all sources": np.arange(len(images))}
    return {name: np.flatnonzero(images.source == name) for name in np.unique(images.source).tolist()}


def _alone(studies: Sequence[Study]) -> str:
    """Return the figures of the leading recipe on each source: trained without it, and with other patients of it."""
    trained_on = ("the other collection alone", "both collections, other patients")  # by rank of the study
    rows = [
        (source, trained_on[study.rank], _images(figures), *_values(figures, _MAIN))
        for study in studies
        if study.rank < len(trained_on) and study.record["recipe"] == _LEADING and not study.seed
        for source, models in study.record["by_source"].items()
        for figures in models.values()
    ]
    return _table(("tested on", "trained on", "images", *_names(_MAIN)), sorted(rows, reverse=True), text=2)


def _unseen(studies: Sequence[Study]) -> str:
    """Return the paired differences on each source between folds that hold it out and folds that hold out patients."""
    pairs = [
        (unseen, seen)
        for unseen, seen in product(studies, studies)
        if unseen.record["recipe"] == seen.record["recipe"] == _LEADING
        and unseen.record["seed"] == seen.record["seed"]
        and (unseen.rank, seen.rank) == (0, 1)
        and unseen.record["images"]["sha256"] == seen.record["images"]["sha256"]
    ]
    if not pairs:
        return ""
    images, positive = ScoredImages.of(pairs[0][1].record), pairs[0][1].record["positive"]
    rows = []
    for tested, chosen in _tested_rows(pairs[0][0], images).items():
        answers = [(_answers(unseen, chosen), _answers(seen, chosen)) for unseen, seen in pairs]
        found = mean_difference(images.label[chosen] == positive, answers, images.group[chosen])
        rows.append((tested, *(_signed(found[name]) for name in _COMPARED)))
    return _table(("not seen minus seen, paired", *_COMPARED.values()), rows)


def _answers(study: Study, rows: NDArray[np.intp]) -> BinaryAnswers:
    """Return the answers of a study with a single model to the images ``rows``."""
    images, positive = ScoredImages.of(study.record), study.record["positive"]
    [(name, probabilities)] = images.probabilities.items()
    return BinaryAnswers(probabilities[:, positive], images.called[name] == positive).of(rows)


def _held_out_list(studies: Iterable[Study], seeds: Iterable[tuple[Sequence[Study], Means]]) -> str:
    """Return the AUC of the leading recipe's studies that hold out more than slices, as a list for README.

    ``studies`` has the first seed of each; where ``seeds`` has more, the mean is given.
    """
    several = {group[0].file: (len(group), means) for group, means in seeds}
    lines = []
    for study in studies:
        if study.rank > 1 or study.record["recipe"] != _LEADING:
            continue
        count, found = several.get(study.file, (1, {tested: figures for tested, _, figures in study.tested()}))
        values = ", ".join(f"{interval(figures['auc'])} on {tested}" for tested, figures in found.items())
        mean = f", mean of {count} seeds" if count > 1 else ""
        lines.append(f"- `{_LEADING}`, {study.held_out} held out: AUC {values}{mean}")
    return "\n".join(lines)


def _tables(study: Study) -> list[str]:
    """Return the tables of a record of two labels."""
    record = study.record
    tables = [_figures(study)]
    if study.rank and len(record["by_source"]) > 1:
        rows = [
            (source, study.name(model), _images(figures), *_values(figures, _MAIN))
            for source, models in record["by_source"].items()
            for model, figures in models.items()
        ]
        tables.append(_table(("tested on", "recipe", "images", *_names(_MAIN)), rows, text=2))
    folders = {model: figures["right_by_folder"] for model, figures in record["pooled"].items()}
    rows = [
        (folder, f"{metric['images']:,}", *(interval(found[folder]) for found in folders.values()))
        for folder, metric in folders[study.models[0]].items()
    ]
    tables.append(_table(("correct in folder", "images", *map(study.name, study.models)), rows))
    if "student_minus_teacher" in record:
        tables.append(_student_table(record))
    if any(record.get("stress", {}).values()):
        rows = [
            (change, study.name(model), f"{metrics['auc']['images']:,}", *_values(metrics, _MAIN))
            for model, changes in record["stress"].items()
            for change, metrics in changes.items()
        ]
        tables.append(_CHANGED)
        tables.append(_table(("changed scans", "recipe", "images", *_names(_MAIN)), rows, text=2))
    return tables


def _figures(study: Study) -> str:
    """Return all metrics of a record, with a column for each model and, if sources are held out, source."""
    columns = study.tested()
    several = len({tested for tested, _, _ in columns}) > 1
    names = [f"{study.name(model)}, on {tested}" if several else study.name(model) for tested, model, _ in columns]
    rows = []
    for key, name in _FIGURES.items():
        if any(key in figures for _, _, figures in columns):
            rows.append((name, *(_value(figures, key) for _, _, figures in columns)))
        if study.rank and key in ("auc", "macro_auc"):
            means = [study.record["mean_of_folds"][model] for _, model, _ in columns]
            if any(key in mean for mean in means):
                rows[-1] = (f"{name}, folds pooled", *rows[-1][1:])
                rows.append((f"{name}, mean of the folds", *(_value(mean, key) for mean in means)))
    return _table(("figure (95% interval)", *names), rows)


def _student_table(record: Mapping[str, Any]) -> str:
    heads = ["student minus teacher, paired", *_COMPARED.values()]
    judged = record.get("student_minus_teacher_at_threshold_of_other_folds", {})
    rows = [
        [
            student,
            *(_signed(found[key]) for key in _COMPARED),
            *([_signed(judged[student]["accuracy"])] if judged else []),
        ]
        for student, found in record["student_minus_teacher"].items()
    ]
    return _table([*heads, *(["accuracy at the threshold of the other folds"] if judged else [])], rows)


# Thresholds.


def _thresholds(studies: Iterable[Study]) -> str:
    rows = [
        (study.title, f"{found['value']:.3f}", f"{found['images']:,}", *_values(found, ("sensitivity", "specificity")))
        for study in studies
        if (found := study.record["threshold"])
    ]
    return _table(("record", "threshold", "images", "sensitivity", "specificity"), rows)


def _drawn(studies: Sequence[Study], bundles: Mapping[str, Any]) -> str:
    rows = []
    for study in studies:
        if not study.record["threshold"]:
            continue
        shown = [model for found, _, model, _ in _rows_of(studies) if found is study]
        for recipe, models in _recipes(study, list(dict.fromkeys(shown))).items():
            thresholds = draw_thresholds(study.record, models)
            low, median, high = np.percentile(thresholds, (2.5, 50, 97.5))
            shipped = [
                f"`{name}` has {limit:.3f}, percentile {100 * np.mean(thresholds <= limit):.0f}"
                for name, bundle in bundles.items()
                if bundle["manifest"]["training"]["recipe"] == recipe
                and (limit := bundle["manifest"]["threshold"]) is not None
            ]
            of = study.title if recipe == study.record["recipe"] else f"{study.title}: its teacher, `{recipe}`"
            rows.append((of, f"{median:.3f}", f"{low:.3f} to {high:.3f}", "; ".join(shipped) or "–"))
    return _table(("answers of", "median", "middle 95%", "embedded model"), rows)


def _recipes(study: Study, models: Iterable[str]) -> dict[str, list[str]]:
    """Return the models of each recipe; the teacher has another recipe than its students."""
    found: dict[str, list[str]] = {}
    for model in models:
        recipe = study.record["teacher"]["recipe"] if model == TEACHER else study.record["recipe"]
        found.setdefault(recipe, []).append(model)
    return found


def draw_thresholds(record: Mapping[str, Any], models: Sequence[str]) -> NDArray[np.float64]:
    """Return the thresholds (DRAWS,) that random parts of the out-of-fold answers choose, each of one of ``models``.

    A part has one in ``PART`` of the images that may choose a threshold, in whole groups. A part of one class chooses
    none and is drawn again.
    """
    from mri_edge.train.evaluation.calibration import choose_threshold

    images, positive = ScoredImages.of(record), record["positive"]
    rows = np.flatnonzero(images.selectable)
    members = [rows[images.group[rows] == group] for group in np.unique(images.group[rows])]
    sizes = np.array([len(member) for member in members])
    is_positive = (images.label == positive).astype(int)
    rng = np.random.default_rng(0)
    found: list[float] = []
    while len(found) < DRAWS:
        order = rng.permutation(len(members))
        taken = 1 + int(np.searchsorted(sizes[order].cumsum(), len(rows) / PART))
        part = np.concatenate([members[index] for index in order[:taken]])
        if 0 < is_positive[part].sum() < len(part):
            answers = images.probabilities[models[len(found) % len(models)]]
            found.append(choose_threshold(answers[part, positive], is_positive[part]))
    return np.array(found)


# Embedded models.


def _models(bundles: Mapping[str, Any]) -> str:
    keys = ("accuracy", *_MAIN)
    rows = []
    for name, bundle in bundles.items():
        metrics = bundle["metrics"]["metrics"]
        sizes = {artifact["file"]: artifact["size_bytes"] for artifact in bundle["manifest"]["artefacts"]}
        size = sizes.get("model.int8.onnx", min(sizes.values()))
        rows.append((f"`{name}`", f"{size / 1e6:.2f}", _images(metrics), *_values(metrics, keys)))
    return _table(("embedded model", "MB", "test images", *_names(keys)), rows)


def _metrics(bundles: Mapping[str, Any]) -> str:
    metrics = {name: bundle["metrics"]["metrics"] for name, bundle in bundles.items()}
    keys = [key for key in NAMES if any(key in found for found in metrics.values())]
    rows = [(NAMES[key], *(_value(found, key) for found in metrics.values())) for key in keys]
    return _table(("figure (95% interval)", *(f"`{name}`" for name in metrics)), rows)


def _parity(bundles: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{name}`",
            f"`{file}`",
            f"{len(artifact['flips'])} of {artifact['images']:,}",
            f"{artifact['test_flips']} of {artifact['test_images']}",
            f"{artifact['max_difference']:.1g}",
            interval(artifact["accuracy"]),
            artifact["verdict"],
        )
        for name, bundle in bundles.items()
        for file, artifact in bundle["parity"]["artefacts"].items()
    ]
    heads = ("model", "artifact", "labels changed", "of test images", "largest |Δp|", "accuracy", "verdict")
    return _table(heads, rows, text=2)


def _runs(path: Path) -> dict[str, Any] | None:
    """Return what the page shows about trainings with other seeds, or None without a record of them."""
    if not path.is_file():
        return None
    content = json.loads(path.read_bytes())
    rows = []
    for run in content["runs"]:
        found = wilson_interval(run["correct"], content["images"])
        accuracy = with_interval(found.value, found.low, found.high)
        rows.append((run["recipe"], str(run["seed"]), accuracy, f"{run['auc']:.3f}"))
    return content | {"table": _table(("recipe", "seed", "accuracy", "AUC"), rows)}


# More than two labels, ablations, methods.


def _label_tables(study: Study) -> list[str]:
    labels = study.record["labels"]
    tables = [_figures(study)]
    for tested, model, figures in study.tested():
        rows = [(label, *_values(metrics, _OF_LABEL)) for label, metrics in figures["by_label"].items()]
        tables.append(_table((f"{study.name(model)}, {tested}", *_names(_OF_LABEL)), rows))
        counts = zip(labels, figures["confusion_matrix"], strict=True)
        called = [(label, *(f"{count:,}" for count in row)) for label, row in counts]
        tables.append(_table((f"{study.name(model)}, {tested}: truth", *(f"called {name}" for name in labels)), called))
    return tables


def _seeds_of_several(studies: Sequence[Study]) -> str:
    keys = ("macro_auc", "accuracy")
    rows = [
        (study.held_out, study.record["recipe"], str(study.record["seed"]), *_values(figures, keys))
        for group in _of_several_seeds(studies)
        for study in group
        for _, _, figures in study.tested()
    ]
    return _table(("held out", "recipe", "seed", *_names(keys)), rows, text=3)


def _contributions(ablations: Sequence[Study], studies: Sequence[Study]) -> str:
    """Return the paired differences between changed and unchanged recipes, mean of all seeds that both have."""
    found: dict[tuple[str, str, int], list[tuple[Study, Study]]] = {}
    for study, other in product(ablations, studies):
        same = all(study.record[key] == other.record[key] for key in ("recipe", "seed"))
        if same and study.has_images_of(other):
            found.setdefault((study.record["change"], study.record["recipe"], study.rank), []).append((study, other))
    rows = []
    for (change, recipe, _), pairs in found.items():
        study = pairs[0][0]
        images = ScoredImages.of(study.record)
        for tested, chosen in _tested_rows(study, images).items():
            answers = [(_answers(changed, chosen), _answers(baseline, chosen)) for changed, baseline in pairs]
            mean = mean_difference(images.label[chosen] == study.record["positive"], answers, images.group[chosen])
            of_seeds = [f"{_auc(changed, tested) - _auc(baseline, tested):+.3f}" for changed, baseline in pairs]
            differences = (_signed(mean[key]) for key in _COMPARED)
            rows.append((change, study.held_out, tested, recipe, *differences, ", ".join(of_seeds)))
    return _table((*_ABLATED, *_COMPARED.values(), "AUC of each seed"), rows, text=4)


def _auc(study: Study, tested: str) -> float:
    return next(float(figures["auc"]["value"]) for part, _, figures in study.tested() if part == tested)


def _ablations(studies: Iterable[Study]) -> str:
    keys = (*_MAIN, "false_positive_rate_at_sensitivity")
    rows = [
        (
            study.record["change"],
            study.held_out,
            tested,
            study.name(model),
            *_values(figures, keys),
            study.link,
        )
        for study in studies
        for tested, model, figures in study.tested()
    ]
    return _table((*_ABLATED, *_names(keys), "record"), rows, text=4)


def _methods(studies: Iterable[Study]) -> list[tuple[str, str]]:
    """Return the names of the metrics for each method of computing intervals."""
    names: dict[str, list[str]] = {}
    for study in studies:
        for _, _, figures in study.tested():
            for key, name in _FIGURES.items():
                if key in figures and name not in names.setdefault(figures[key]["method"], []):
                    names[figures[key]["method"]].append(name)
    return [("; ".join(found), method) for method, found in names.items() if found]


# Formatting.


def _names(keys: Sequence[str]) -> list[str]:
    return [_FIGURES[key] for key in keys]


def _values(figures: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [_value(figures, key) for key in keys]


def _value(figures: Mapping[str, Any], key: str) -> str:
    metric = figures.get(key)
    return interval(metric) if metric else "–"


def _signed(metric: Mapping[str, Any]) -> str:
    return with_interval(metric["value"], metric["low"], metric["high"], signed=True)


def _images(figures: Mapping[str, Any]) -> str:
    return f"{figures['accuracy']['images']:,}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a Markdown table; the first ``text`` columns are aligned left, the others right. No rows, no table."""
    if not rows:
        return ""
    rule = ["---" if index < text else "---:" for index in range(len(heads))]
    lines = ([cell.replace("|", r"\|") for cell in cells] for cells in (heads, *rows))
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join((head, f"| {' | '.join(rule)} |", *body))


def compute_again(root: Path = CHECKOUT) -> None:
    """Compute the figures of all records from their answers, as they change when an interval is computed otherwise."""
    for folder in ("crossval", "ablation"):
        for study in _studies(root, folder):
            text = to_json(study.record | figures_from(study.record))
            atomic_write(root / "docs" / study.file, text)


def main() -> None:
    """Write both files."""
    if sys.argv[1:] == ["--again"]:
        compute_again()
    for path, text in build().items():
        atomic_write(CHECKOUT / path, text)
        print(path)


if __name__ == "__main__":
    main()
