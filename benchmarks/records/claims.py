"""Does a fresh run say what README says? Every ratio of the fresh records beside that of the committed ones.

    make bench      # runs everything anew as the record was made, then this

A ratio is reproduced if it lies between the lowest and the highest round of the record, or within 15% beyond.
Exit 5 if one is not, or was not measured. Shown and not judged are the ratios of a run with BUSY=1, whose thread and
clock are not the record's, and those of another CPU or number of cores; not judged either are Olive where it was not
asked for, and what a run without the training data cannot make.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import records
from subjects import OLIVE

RECORDS = ("compare", "cold_start")
MARGIN = 0.15
NOT_REPRODUCED = 5


@dataclass(frozen=True)
class Claim:
    """A ratio of the record: lowest and highest that pass, and the fresh one, or why there is none."""

    name: str
    low: float
    high: float
    fresh: float | None
    problem: str
    optional: bool

    @property
    def reproduced(self) -> bool:
        """Whether it was measured, and lies within."""
        return self.fresh is not None and self.low <= self.fresh <= self.high

    @property
    def judged(self) -> bool:
        """Whether it can fail: what takes an environment of its own need not be there."""
        return self.fresh is not None or not self.optional


def judge(name: str, fresh: dict[str, Any], record: dict[str, Any], *, whole: bool = True) -> list[Claim]:
    """Each ratio of the record beside the fresh one; not ``whole``: the models that ship alone were at hand."""
    found, fresh_rows = [], _by_claim(fresh["rows"])
    for key, row in _by_claim(record["rows"]).items():
        claimed, now = row.get("times_faster"), fresh_rows.get(key, {})
        if claimed and key != record["baseline"]:
            low, high = claimed["low"] * (1 - MARGIN), claimed["high"] * (1 + MARGIN)
            value = now["times_faster"]["value"] if "times_faster" in now else None
            problem = now.get("problem") or ("its baseline was not measured" if now else "not in this run")
            optional = not whole or (row.get("title") == OLIVE and not fresh.get("olive_asked"))
            found.append(Claim(f"{name}: {key}", low, high, value, problem, optional))
    return found


def _by_claim(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by what is claimed of them: Olive's best is one claim, whichever of its recipes won."""
    return {f"{row['bundle']}: {OLIVE}" if row.get("title") == OLIVE else key: row for key, row in rows.items()}


def difference(fresh: dict[str, Any], record: dict[str, Any]) -> str | None:
    """Why two runs cannot be held against each other, or None."""
    if fresh["busy"] != record["busy"]:
        return f"the record was made {'with' if record['busy'] else 'without'} --busy, this run was not alike"
    if not records.same_machine(fresh, record):
        machine = record["machine"]
        return f"the record is of {machine['cpu']}, cores: {machine.get('cores', 'not said')}"
    return None


def main() -> int:
    """Print every ratio; 0 if all are reproduced, or none can be judged here."""
    failed = judged = 0
    whole = any((records.load_fresh("compare") or {}).get("images", {}).values())
    for name in RECORDS:
        fresh, record = records.load_fresh(name), records.load(name)
        if fresh is None or record is None:
            print(f"{name}: {'nothing measured here yet: make bench' if fresh is None else 'no committed record'}")
            continue
        unlike = difference(fresh, record)
        if unlike:
            print(f"{name}: {unlike}: shown, not judged")
        for one in judge(name, fresh, record, whole=whole):
            counts = not unlike and one.judged
            word = "NOT MEASURED" if counts else "not measured"
            if one.fresh is not None:
                word = "reproduced" if one.reproduced else "NOT REPRODUCED" if counts else "other"
            value = "-" if one.fresh is None else f"{one.fresh:.3g}"
            why = f": {one.problem}" if one.fresh is None else ""
            print(f"{word:<15} {value:>8}  ({one.low:.3g} to {one.high:.3g})  {one.name}{why}")
            failed += counts and not one.reproduced
            judged += counts
        for mark in fresh["disturbed"]:
            print(f"disturbed: {mark}")
    print(f"{judged - failed} of {judged} ratios reproduced" if judged else "nothing was judged")
    return NOT_REPRODUCED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
