"""Read the results of a run back: how many there are, whether every input has one, and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from mri_edge.errors import OutputError

from .schema import FAILED, INPUT, OUTCOME

RESULTS, CHECKPOINT = "results", "checkpoint"
_ROWS = 4096  # that are in memory at a time
BINS = 20  # of the histogram of probabilities
_COLUMNS = (INPUT, OUTCOME, "label", "positive", "code", "warnings", "probabilities", "latency_ms", "skipped", "score")


@dataclass
class Facts:
    """What all results say together.

    Attributes
    ----------
    rows, inputs
        Rows, and inputs that have at least one.
    labels, failures, warnings, skipped
        Rows by label, and by code.
    histogram
        Rows by probability (or score) of the positive label, in equal steps from 0 to 1.
    milliseconds
        Sum by stage over all answers.
    """

    rows: int = 0
    inputs: int = 0
    answered: int = 0
    positive: str | None = None
    labels: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def positive_fraction(self) -> float | None:
        """Answers with the positive label divided by all answers; None without answers or without such a label."""
        return self.labels[self.positive] / self.answered if self.answered and self.positive else None


def inputs_before(out: Path) -> int:
    """Return how many inputs have committed rows in a folder of results."""
    folder = out / CHECKPOINT
    committed = [path for path in folder.glob("*.parquet") if not path.name.endswith(".pending.parquet")]
    return sum(len(pads.dataset(str(path)).to_table()[INPUT].unique()) for path in committed)


def read_facts(out: Path, inputs: int) -> Facts:
    """Read all results a part at a time, and check that every input has a row.

    It takes one byte of memory for each input.

    Raises
    ------
    OutputError
        An input has no row.
    """
    facts = Facts()
    seen = np.zeros(inputs, bool)
    for batch in _batches(out):
        facts.rows += batch.num_rows
        seen[batch[INPUT].to_numpy()] = True
        _add(facts, batch)
    facts.inputs = int(seen.sum())
    if facts.inputs != inputs:
        missing = inputs - facts.inputs
        raise OutputError(
            f"{out}: {missing:,} of {inputs:,} inputs have no result", "Run again: it continues from here"
        )
    return facts


def _batches(out: Path) -> Iterator[pa.RecordBatch]:
    folder = out / RESULTS
    if not folder.is_dir():
        return
    dataset = pads.dataset(str(folder), format="parquet", partitioning="hive")
    names = [name for name in _COLUMNS if name in dataset.schema.names]
    yield from dataset.to_batches(columns=names, batch_size=_ROWS, batch_readahead=1, fragment_readahead=1)


def _add(facts: Facts, batch: pa.RecordBatch) -> None:
    for row in batch.to_pylist():
        if row[OUTCOME] == FAILED:
            facts.failures[row["code"]] += 1
            continue
        if row.get("skipped"):
            facts.skipped[row["skipped"]["code"]] += 1
            continue
        facts.answered += 1
        facts.positive = row["positive"]
        facts.labels[row["label"] or "no answer"] += 1
        facts.warnings.update({warning["code"] for warning in row["warnings"] or ()})
        for stage, value in (row.get("latency_ms") or {}).items():
            facts.milliseconds[stage] = facts.milliseconds.get(stage, 0.0) + value
        probability = _probability(row)
        if probability is not None:
            facts.histogram[min(BINS - 1, int(probability * BINS))] += 1


def _probability(row: dict[str, Any]) -> float | None:
    """Return the score of a series, or the probability of the positive label, or None for a model without one."""
    if "score" in row:
        score: float | None = row["score"]
        return score
    probability: float | None = dict(row["probabilities"] or ()).get(row["positive"])
    return probability
