"""Read the results of a run back: how many there are, whether every input has one, and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from ray.data.checkpoint import IdColumnCheckpointManager

from mri_edge.errors import OutputError, first_line, printable

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


def finished_inputs(out: Path) -> NDArray[np.int64]:
    """Return the numbers of the inputs that have committed rows in a folder of results: each once, in order.

    Raises
    ------
    OutputError
        A file of the checkpoint cannot be read.
    """
    folder = out / CHECKPOINT
    committed = [path for path in folder.glob("*.parquet") if not path.name.endswith(".pending.parquet")]
    numbers = [_numbers(path) for path in committed]
    return np.unique(np.concatenate(numbers)) if numbers else np.zeros(0, np.int64)


def _numbers(path: Path) -> NDArray[np.int64]:
    try:
        found: NDArray[np.int64] = pads.dataset(str(path)).to_table()[INPUT].to_numpy()
    except (pa.ArrowInvalid, KeyError, OSError) as error:  # empty or cut after a power cut, or not of a run
        problem = f"{path}: cannot read the checkpoint ({printable(first_line(error))[:200]})"
        raise OutputError(problem, "If it is damaged, name a new folder") from error
    return found


class Continued(IdColumnCheckpointManager):  # type: ignore[misc]  # mypy does not read Ray
    """Removes results that are not committed, before a run continues. ``Inputs`` leaves out those that are.

    Ray's own process that leaves them out would take a core for the whole run. On a cluster of fewer than 20 cores, Ray
    then writes no results before the last scan is classified, and a kill loses them.
    """

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        """Return that Ray has nothing to leave out."""
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


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
    """Add some rows. Arrow counts them column by column: row by row, Python would take as long as a small network."""
    is_failed = pc.equal(batch[OUTCOME], FAILED)
    if "code" in batch.schema.names:
        _count(facts.failures, batch.filter(is_failed)["code"])
    answers = batch.filter(pc.invert(is_failed))
    if "skipped" in answers.schema.names:
        reasons = pc.struct_field(answers["skipped"], "code")
        _count(facts.skipped, reasons.drop_null())
        answers = answers.filter(reasons.is_null())
    if not answers.num_rows:
        return
    facts.answered += answers.num_rows
    facts.positive = answers["positive"][0].as_py()
    _count(facts.labels, answers["label"].fill_null("no answer"))
    for warnings in answers["warnings"].drop_null().to_pylist():
        facts.warnings.update({warning["code"] for warning in warnings})
    if "latency_ms" in answers.schema.names:
        for number, stage in enumerate(answers["latency_ms"].type):
            total = pc.sum(pc.struct_field(answers["latency_ms"], number)).as_py() or 0.0
            facts.milliseconds[stage.name] = facts.milliseconds.get(stage.name, 0.0) + total
    values = _probabilities(answers, facts.positive).drop_null().to_numpy()
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    facts.histogram = (facts.histogram + np.bincount(bins, minlength=BINS)).tolist()


def _count(counter: Counter[str], values: pa.Array) -> None:
    for found in values.value_counts().to_pylist():
        counter[found["values"]] += found["counts"]


def _probabilities(answers: pa.RecordBatch, positive: str | None) -> pa.Array:
    """Return the score of each series, or the probability of the positive label; nulls for a model without one."""
    if "score" in answers.schema.names:
        return answers["score"]
    if positive is None:
        return pa.nulls(answers.num_rows, pa.float64())
    return pc.map_lookup(answers["probabilities"], positive, "first")
