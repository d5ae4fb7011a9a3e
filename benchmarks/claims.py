"""Does a fresh run say what README says? Every ratio of the fresh records beside that of the committed ones.

    make bench BUSY=1      # runs everything anew as the record was made, then this

A ratio is reproduced if it lies between the lowest and the highest round of the record, or within 15% beyond.
Exit 5 if one is not; on another CPU the ratios are shown and not judged.
"""

from __future__ import annotations

import sys
from typing import Any

import records

RECORDS = ("compare", "cold_start")
MARGIN = 0.15
NOT_REPRODUCED = 5


def judge(name: str, fresh: dict[str, Any], record: dict[str, Any]) -> list[tuple[str, float, float, float, bool]]:
    """Each ratio that both have: its name, the fresh value, lowest and highest that pass, whether it does."""
    found = []
    for key, row in record["rows"].items():
        claimed, now = row.get("times_faster"), fresh["rows"].get(key, {}).get("times_faster")
        if claimed and now and key != record["baseline"]:
            low, high = claimed["low"] * (1 - MARGIN), claimed["high"] * (1 + MARGIN)
            found.append((f"{name}: {key}", now["value"], low, high, low <= now["value"] <= high))
    return found


def main() -> int:
    """Print every ratio; 0 if all are reproduced, or none can be judged here."""
    failed = judged = 0
    for name in RECORDS:
        fresh, record = records.load_fresh(name), records.load(name)
        if fresh is None or record is None:
            print(f"{name}: {'nothing measured here yet: make bench' if fresh is None else 'no committed record'}")
            continue
        if fresh["busy"] != record["busy"]:
            print(
                f"{name}: the record was made {'with' if record['busy'] else 'without'} --busy, this run was not alike"
            )
            continue
        same = fresh["machine"]["cpu"] == record["machine"]["cpu"]
        if not same:
            print(f"{name}: the record is of {record['machine']['cpu']}: shown, not judged")
        for key, value, low, high, right in judge(name, fresh, record):
            word = "reproduced" if right else "NOT REPRODUCED" if same else "other"
            print(f"{word:<15} {value:>8.3g}  ({low:.3g} to {high:.3g})  {key}")
            failed += same and not right
            judged += same
        for mark in fresh["disturbed"]:
            print(f"disturbed: {mark}")
    print(f"{judged - failed} of {judged} ratios reproduced" if judged else "nothing was judged")
    return NOT_REPRODUCED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
