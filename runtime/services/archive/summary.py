"""Summarize the results of a run as JSON and as a page with plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_edge.authoring.pages import render
from mri_edge.inference.prediction import NOTICE
from mri_edge.storage.atomic import atomic_write

from .record import RunRecord
from .sink import Facts, read_facts

SUMMARY, PAGE = "summary.json", "summary.html"
_SCHEMA_VERSION = 1
_TEMPLATE = Path(__file__).with_name("summary.html.jinja")


def write_summary(out: Path, record: RunRecord, seconds: float, new: int) -> dict[str, Any]:
    """Check that every input has a result, write ``summary.json`` and ``summary.html``, and return the JSON object.

    Parameters
    ----------
    seconds, new
        How long this run took, and how many inputs it classified; earlier runs of the folder are not counted.

    Raises
    ------
    OutputError
        An input has no result, or the summary cannot be written.
    """
    assert record.inputs is not None  # noqa: S101 (the run has ended)
    facts = read_facts(out, record.inputs)
    summary = {
        "schema_version": _SCHEMA_VERSION,
        "run": {key: value for key, value in asdict(record).items() if key not in ("sources", "per_part")},
        "inputs": facts.inputs,
        "rows": facts.rows,
        "answered": facts.answered,
        "failed": facts.failures.total(),
        "skipped": facts.skipped.total(),
        "positive": facts.positive,
        "positive_fraction": facts.positive_fraction,
        "labels": _sorted(facts.labels),
        "failures": _sorted(facts.failures),
        "warnings": _sorted(facts.warnings),
        "skipped_by_reason": _sorted(facts.skipped),
        "histogram": facts.histogram,
        "mean_ms": {key: round(total / facts.answered, 3) for key, total in facts.milliseconds.items()},
        "this_run": {"seconds": round(seconds, 1), "inputs": new, "inputs_per_second": round(new / seconds, 1)},
        "notice": NOTICE,
    }
    atomic_write(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    atomic_write(out / PAGE, _page(record, facts, summary))
    return summary


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _page(record: RunRecord, facts: Facts, summary: dict[str, Any]) -> str:
    return render(
        _TEMPLATE,
        title=f"Archive by {record.by}",
        facts=[
            ("Model", f"{record.model}, {record.artifact}, {record.engine}, provider {record.provider}"),
            ("Window", record.window),
        ],
        summary=summary,
        histogram=_bars([("", value) for value in facts.histogram]),
        labels=_bars(list(summary["labels"].items())),
        failures=_bars(list(summary["failures"].items())),
        warnings=_bars(list(summary["warnings"].items())),
        skipped=_bars(list(summary["skipped_by_reason"].items())),
        stages=_bars([(key, value) for key, value in summary["mean_ms"].items() if key != "total"]),
    )


def _bars(values: Sequence[tuple[str, float]]) -> list[tuple[str, str, float]]:
    """Return a name, a figure and a percentage of the longest bar for each value."""
    longest = max((value for _, value in values), default=0) or 1
    return [
        (name, f"{value:,}" if isinstance(value, int) else f"{value:.2f}", round(100 * value / longest, 1))
        for name, value in values
    ]
