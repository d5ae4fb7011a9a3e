"""Show the record of an evaluation as a self-contained HTML page and as tables on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from mri_edge.authoring.intervals import HEAD
from mri_edge.authoring.pages import render
from mri_edge.errors import InputError, printable

from .tables import LABEL_HEADS, NAMES, Rows, Table, interval, label_rows, methods, print_report, ran, warnings

_TEMPLATE = Path(__file__).with_name("evaluation.html.jinja")
_ON_TERMINAL = 10  # mistakes listed on the terminal
_THUMBNAIL = 160  # pixels, the longer side

_Heads = tuple[str, ...]


def evaluation_page(record: dict[str, Any]) -> str:
    """Return the HTML page of a record of ``evaluate``.

    The page shows the worst mistakes with small pictures of the scans, read from the data folder, so it is for the
    machine that has these scans. Mistakes that cannot be read again are listed without a picture.
    """
    unreadable: Rows = [(failure["file"], failure["error"]) for failure in record["unreadable"]]
    return render(
        _TEMPLATE,
        title=f"Evaluation of {record['model']}: {record['artefact']}",
        facts=list(zip(("Model", "Data", "Decision"), _facts(record), strict=True)),
        provenance=record["creation"],
        warnings=warnings(record, "images"),
        metrics=("Metrics", ("figure", HEAD, "images"), _metrics(record)),
        tables=[*_label_table(record), ("By folder", *_folders(record))],
        methods=methods(record, NAMES.__getitem__),
        plots=_plots(record),
        mistakes=_mistakes_title(record, len(record["worst"])),
        worst=[_describe(record, mistake) for mistake in record["worst"]],
        unreadable=unreadable,
    )


def print_evaluation(record: dict[str, Any]) -> None:
    """Print the record as tables on stdout."""
    tables = [
        ("Metrics", ("figure", HEAD, "images"), _metrics(record)),
        *_label_table(record),
        ("Confusion matrix", *_confusion(record)),
        ("By folder", *_folders(record)),
    ]
    if record["worst"]:
        tables.append(_mistakes(record))
    print_report(_facts(record), warnings(record, "images"), tables, record["notice"])


def _facts(record: dict[str, Any]) -> list[str]:
    """Return a line about the model, one about the data and one about the decision."""
    data, labels = record["data"], record["labels"]
    counts = ", ".join(f"{count} {label}" for label, count in zip(labels, data["by_label"], strict=True))
    left_out = ", ".join(f"{count} {role}" for role, count in sorted(data["left_out"].items()))
    rule = "the likeliest label" if record["threshold"] is None else f"threshold {record['threshold']:.4g}"
    positive = "none" if record["positive"] is None else labels[record["positive"]]
    return [
        ran(record),
        f"{data['folder']}: {data['images']} images ({counts}), {data['what']}"
        + (f"; not scored: {left_out}" if left_out else "")
        + (f"; grouped by {data['grouping']}" if data["grouping"] else ""),
        f"positive label: {positive}; answer: {rule}",
    ]


def _metrics(record: dict[str, Any]) -> Rows:
    metrics = record["metrics"]
    expected = [key for key in NAMES if key.startswith("macro_") == (record["positive"] is None)]
    expected += [key for key in NAMES if key in metrics and key not in expected]
    rows: Rows = []
    for key in sorted(expected, key=list(NAMES).index):
        if key in metrics:
            rows.append((NAMES[key], interval(metrics[key]), str(metrics[key]["images"])))
        else:
            few = key in ("brier", "calibration_error")
            rows.append((NAMES[key], "too few images or groups" if few else "undefined for these images", "0"))
    return rows


def _label_table(record: dict[str, Any]) -> list[Table]:
    """Return the table of figures by label; two labels need none, because the metrics describe both."""
    if len(record["labels"]) == 2 or not record.get("by_label"):
        return []
    return [("By label", LABEL_HEADS, label_rows(record["by_label"]))]


def _confusion(record: dict[str, Any]) -> tuple[_Heads, Rows]:
    labels = record["labels"]
    heads = ("truth", *(f"called {label}" for label in labels))
    rows = zip(labels, record["confusion_matrix"], strict=True)
    return heads, [(label, *(str(count) for count in row)) for label, row in rows]


def _folders(record: dict[str, Any]) -> tuple[_Heads, Rows]:
    return ("folder", "label", "correct", HEAD), [
        (
            folder["folder"],
            record["labels"][folder["label"]],
            f"{round(folder['value'] * folder['images'])} of {folder['images']}",
            interval(folder),
        )
        for folder in record["folders"]
    ]


def _mistakes_title(record: dict[str, Any], shown: int) -> str:
    total = record["mistakes"]
    return f"Mistakes: {total}" if total <= shown else f"The {shown} worst of {total} mistakes"


def _mistakes(record: dict[str, Any]) -> Table:
    """List the worst mistakes for the terminal."""
    labels = record["labels"]
    rows: Rows = [
        (
            mistake["file"],
            labels[mistake["label"]],
            labels[mistake["called"]],
            f"{mistake['probabilities'][mistake['label']]:.4f}",
        )
        for mistake in record["worst"][:_ON_TERMINAL]
    ]
    return _mistakes_title(record, _ON_TERMINAL), ("file", "truth", "called", "p of truth"), rows


def _describe(record: dict[str, Any], mistake: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows about a mistake, with a picture of the scan if it can be read."""
    labels = record["labels"]
    return {
        "file": printable(mistake["file"]),
        "truth": labels[mistake["label"]],
        "called": labels[mistake["called"]],
        "probability": f"{mistake['probabilities'][mistake['label']]:.4f}",
        "picture": _thumbnail(Path(record["data"]["folder"]) / mistake["file"]),
    }


def _thumbnail(path: Path) -> bytes | None:
    """Return a scan as a small JPEG, or None if it cannot be read."""
    from PIL import Image

    from mri_edge.scans import readers

    try:
        picture = Image.fromarray(readers.load(path))
    except (InputError, OSError):
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


def _plots(record: dict[str, Any]) -> list[Any]:
    """Draw confusion matrix, ROC curves and reliability; the tables on a terminal do not need matplotlib."""
    import numpy as np

    from .plots import RocCurve, confusion_plot, point_of_answers, reliability_plot, roc_plot

    labels, metrics, positive = record["labels"], record["metrics"], record["positive"]
    plots = [confusion_plot([("", record["confusion_matrix"])], labels)]
    by_label = record.get("by_label", {})
    found = record["roc_by_label"] if by_label else {labels[positive]: record["roc"]}
    curves = [
        RocCurve(label, points, by_label[label]["auc"] if by_label else metrics["auc"])
        for label, points in found.items()
        if points
    ]
    if curves:
        plots.append(roc_plot(curves, point_of_answers(metrics, labels, positive, record["threshold"])))
    if positive is None:
        event, of = "called correctly", "probability of the called label"
    else:
        event, of = f"with label {labels[positive]}", f"probability of {labels[positive]}"
    scores = np.array(
        [
            prediction["probabilities"][prediction["called"] if positive is None else positive]
            for prediction in record["predictions"]
        ]
    )
    return [*plots, reliability_plot(record["reliability"], scores, event, of)]
