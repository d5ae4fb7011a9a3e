"""Compare every ratio of the last `make bench` with the committed records, on which README and docs are based.

A ratio is reproduced if it is between the lowest and the highest round of the record, or within 15% beyond. The exit
code is 5 if one is not, or was not measured. Ratios are shown but not judged if the run had BUSY=1 and the record had
not, or on another CPU or number of cores. Also not judged: Olive without OLIVE=, and all that needs the training data.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.compare.subjects import OLIVE
from benchmarks.records import store

RECORDS = ("compare", "cold_start")
MARGIN = 0.15
NOT_REPRODUCED = 5


@dataclass(frozen=True)
class Claim:
    """A ratio of the record: the lowest and highest that pass, and the fresh one or the problem that prevented it.

    A claim that is not ``judged`` cannot fail.
    """

    name: str
    low: float
    high: float
    fresh: float | None
    problem: str
    judged: bool

    @property
    def reproduced(self) -> bool:
        """Whether it was measured and is within the limits."""
        return self.fresh is not None and self.low <= self.fresh <= self.high

    def line(self, *, judged: bool) -> str:
        """Return the claim for the report."""
        limits = f"({self.low:.3g} to {self.high:.3g})  {self.name}"
        if self.fresh is None:
            return f"{'NOT MEASURED' if judged else 'not measured':<15} {'-':>8}  {limits}: {self.problem}"
        outcome = "reproduced" if self.reproduced else "NOT REPRODUCED" if judged else "other"
        return f"{outcome:<15} {self.fresh:>8.3g}  {limits}"


def judge(name: str, fresh: dict[str, Any], record: dict[str, Any], *, has_data: bool = True) -> list[Claim]:
    """Return each ratio of the record beside the fresh one. ``has_data``: the run had the training data."""
    claims, fresh_rows = [], _rows_by_claim(fresh["rows"])
    for key, row in _rows_by_claim(record["rows"]).items():
        recorded, now = row.get("times_faster"), fresh_rows.get(key, {})
        if recorded and key != record["baseline"]:
            value = now.get("times_faster", {}).get("value")
            problem = now.get("problem") or ("its baseline was not measured" if now else "not in this run")
            is_optional = not has_data or (row.get("title") == OLIVE and not fresh.get("olive_asked"))
            low, high = recorded["low"] * (1 - MARGIN), recorded["high"] * (1 + MARGIN)
            claims.append(Claim(f"{name}: {key}", low, high, value, problem, value is not None or not is_optional))
    return claims


def _rows_by_claim(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows by claim: Olive's best model is one claim, whichever recipe made it."""
    return {f"{row['bundle']}: {OLIVE}" if row.get("title") == OLIVE else key: row for key, row in rows.items()}


def difference(fresh: dict[str, Any], record: dict[str, Any]) -> str | None:
    """Return why two runs cannot be compared, or None."""
    if fresh["busy"] != record["busy"]:
        return f"the record was made {'with' if record['busy'] else 'without'} --busy, this run was not"
    if not store.same_machine(fresh, record):
        return f"the record is of {record['machine']['cpu']}, cores: {record['machine'].get('cores', 'unknown')}"
    return None


def main() -> int:
    """Print every ratio; return 0 if all that can be judged here are reproduced."""
    failed = judged = 0
    has_data = any((store.load_fresh("compare") or {}).get("images", {}).values())
    for name in RECORDS:
        fresh, record = store.load_fresh(name), store.load(name)
        if fresh is None or record is None:
            print(f"{name}: {'nothing measured here yet: make bench' if fresh is None else 'no committed record'}")
            continue
        reason = difference(fresh, record)
        if reason:
            print(f"{name}: {reason}: shown, not judged")
        for claim in judge(name, fresh, record, has_data=has_data):
            counts = not reason and claim.judged
            print(claim.line(judged=counts))
            failed += counts and not claim.reproduced
            judged += counts
        for mark in fresh["disturbed"]:
            print(f"disturbed: {mark}")
    print(f"{judged - failed} of {judged} ratios reproduced" if judged else "nothing was judged")
    return NOT_REPRODUCED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
