"""Draw tables and plots from the committed records, into ``docs/`` and ``benchmarks/results``.

    python -m benchmarks.records.draw            # write them
    python -m benchmarks.records.draw --check    # write nothing, exit 1 if a table differs from the records

In README.md and ``docs/**/*.md`` the tables stand between ``<!-- benchmarks: tables -->`` and
``<!-- benchmarks: end -->``. Plots are not compared: each version of matplotlib draws another file.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compare import networks, roof
from benchmarks.records import server_table, store, training_table, whole_table
from mri_edge.bundles.bundle import EMBEDDED, Bundle

_BLOCK = r"(<!-- benchmarks: {} -->\n).*?(<!-- benchmarks: end -->)"
_TABLES = "tables"
_OTHER_TABLES = {  # by the name of block and record
    "networks": lambda kind, record: "\n".join(networks.table(record["networks"])),
    "server": server_table.table,
    "training": training_table.table,
    "whole": whole_table.table,
}
_LIBRARIES = ("onnxruntime", "openvino", "ai-edge-litert", "tensorflow", "keras", "olive-ai")
_FRAMEWORKS = ("keras", "tf.function", "Olive")

Row = dict[str, Any]


class Records(NamedTuple):
    """The records of one kind of machine, as ``benchmarks.compare`` writes them."""

    compare: dict[str, Any]
    cold_start: dict[str, Any]
    roof: dict[str, Any]


def committed() -> dict[str, Records]:
    """Return the records by kind of machine; accuracy only of models that ship.

    Times stay true when a model is trained again or gets another threshold; its answers do not.
    """
    found = {kind: Records(*(_record(name, kind) for name in Records._fields)) for kind in store.kinds()}
    for compared, *_ in found.values():
        thresholds = compared.get("thresholds", {})
        for row in compared["rows"].values():
            name = row["bundle"]
            ships = compared["ships"][name]
            if not ships or thresholds.get(name) != Bundle.open(EMBEDDED / name).manifest.threshold:
                row.pop("accuracy", None)
    return found


def _record(name: str, kind: str) -> dict[str, Any]:
    record = store.load(name, kind)
    if record is None:
        raise SystemExit(f"no record of {name} on {kind}: run it with --record")
    return record


def tables(found: dict[str, Records], results: str) -> str:
    """Return the tables of the documents; ``results`` is the path to ``benchmarks/results`` from the document."""
    lines = []
    for kind, records in found.items():
        if kind == store.MAIN:
            lines += [_circumstances(records), "", *_table(records, _fastest(records, _group)), "", *_absent(records)]
            lines += [*_cold_starts(records, records.cold_start["rows"]), "", *_notes(records), ""]
        else:
            names = {name for name in records.cold_start["rows"] if "mri-edge predict" in name}
            rows = {*_fastest(records, _our_engine), records.compare["baseline"]}
            lines += [f"On another kind of machine, `{kind}`: {_circumstances(records)}", ""]
            lines += [*_table(records, rows), ""]
            lines += [*_cold_starts(records, names | {records.cold_start["baseline"]}), ""]
    links = ", ".join(f"[{kind}]({results}/{kind}/README.md)" for kind in found)
    return "\n".join([*lines, f"Every row, by kind of machine: {links}."])


def page(kind: str, records: Records) -> str:
    """Return ``benchmarks/results/KIND/README.md``: every row, with the spread."""
    lines = [
        f"# All that was measured on `{kind}`",
        "",
        "Drawn by `python -m benchmarks.records.draw` from the records beside this file.",
        "",
        _circumstances(records),
        "",
        *_table(records, records.compare["rows"], with_p90=True),
        "",
        *_absent(records),
        *_cold_starts(records, records.cold_start["rows"]),
        "",
        *_notes(records),
        "p90 is the bound that holds with 99% confidence.",
        "",
        *(f"![{name}]({name}.svg)" for name in plots_of(records.compare)),
    ]
    return "\n".join(lines) + "\n"


def plots_of(compared: dict[str, Any]) -> tuple[str, ...]:
    """Return the plots that a record has the figures for."""
    has_accuracy = any("accuracy" in row for row in compared["rows"].values())
    return ("latency", "size", "cold_start") if has_accuracy else ("cold_start",)


def _by_time(compared: dict[str, Any]) -> list[tuple[str, Row]]:
    measured = [(key, row) for key, row in compared["rows"].items() if "model" in row]
    return sorted(measured, key=lambda item: item[1]["model"]["median"]["value"])


def _fastest(records: Records, group: Callable[[Row], str | None]) -> set[str]:
    """Return the keys of the fastest row of each model and group."""
    best: dict[tuple[str, str], str] = {}
    for key, row in _by_time(records.compare):
        if name := group(row):
            best.setdefault((row["bundle"], name), key)
    return {*best.values()}


def _group(row: Row) -> str:
    """Each of our engines, each framework, and the own interfaces of the engines' libraries together."""
    names = (row["title"] if row["title"].startswith("mri-edge") else "", *_FRAMEWORKS)
    return next((name for name in names if name and row["title"].startswith(name)), "a library's own interface")


def _our_engine(row: Row) -> str | None:
    """Each of our engines."""
    return row["title"] if row["title"].startswith("mri-edge") else None


def _markdown(columns: dict[str, bool], rows: list[list[str]]) -> list[str]:
    """Return a table; ``columns`` maps each heading to whether the column contains numbers."""
    rulers = ["---:" if numbers else "---" for numbers in columns.values()]
    return [f"| {' | '.join(cells)} |" for cells in ([*columns], rulers, *rows)]


def _table(records: Records, keys: Collection[str], *, with_p90: bool = False) -> list[str]:
    columns = {"model": False, "what runs": False, "artifact": False, "MB": True, "ms, one image": True}
    columns |= {"p90": True} if with_p90 else {}
    columns |= {"times Keras' vgg16": True, "of the roof": True, "accuracy (95%)": False}
    rows = []
    for key, row in _by_time(records.compare):
        if key in keys:
            fraction = roof.fraction(records.roof, records.compare, row)
            cells = [row["bundle"], row["title"], f"`{row['artefact']}`", f"{row['size_bytes'] / 1e6:.2f}"]
            cells += [_spread(row["model"]["median"]), *([_number(row["model"]["bounds"]["p90"])] if with_p90 else [])]
            cells += [_spread(row.get("times_faster")), f"{fraction:.0%}, {roof.kind_of(row)}" if fraction else ""]
            rows.append([*cells, _spread(row.get("accuracy"), "{:.3f}".format)])
    return _markdown(columns, rows)


def _circumstances(records: Records) -> str:
    compared = records.compare
    olive = [facts["olive"] for facts in compared["olive"].values() if facts]
    versions = compared["libraries"] | ({"olive-ai": olive[0]} if olive else {})
    threads, rounds, cpu = compared["threads"], compared["rounds"], compared["machine"]["cpu"].partition(" (")[0]
    libraries = ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
    load = f"load by {compared.get('driver', 'mri-edge')}"  # earlier records name a load generator
    if compared["busy"]:
        load = "on a clock that excludes the time a program waits for a core, because the machine had other work"
    images = max(compared["images"].values(), default=0)
    accuracy = f" Accuracy on the reference's {images} test images." if "latency" in plots_of(compared) else ""
    return (
        f"{cpu}, {threads} thread{'s' * (threads != 1)}; {libraries}; {load}. "
        f"{rounds} round{'s' * (rounds != 1)} in turn, each subject alone in its process; in brackets the lowest and "
        f"the highest round.{accuracy}"
    )


def _absent(records: Records) -> list[str]:
    rows = [row for row in records.compare["rows"].values() if row["problem"]]
    lines = [f"- {row['bundle']}, {row['title']}, `{row['artefact']}`: {row['problem']}" for row in rows]
    return [*lines, ""] if lines else []


def _cold_starts(records: Records, names: Collection[str]) -> list[str]:
    rows = sorted(records.cold_start["rows"].items(), key=lambda item: item[1]["seconds"]["value"])
    unit = "CPU seconds" if records.cold_start["busy"] else "seconds"
    columns = {"cold start, the whole process": False, unit: True, "times the Keras script": True}
    cells = [[name, _spread(row["seconds"]), _spread(row.get("times_faster"))] for name, row in rows if name in names]
    return _markdown(columns, cells)


def _notes(records: Records) -> list[str]:
    rates = " and ".join(
        f"{max(found.values()) / 1e9:.0f} G multiply-adds a second in {kind} ({max(found, key=found.__getitem__)})"
        for kind, found in records.roof["multiply_adds_per_second"].items()
        if found
    )
    counts = records.compare["multiply_adds"].items()
    work = ", ".join(f"{name} {count / 1e9:.3g} G" for name, count in counts if count)
    disturbed = sorted({mark for record in records for mark in record["disturbed"]})
    lines = [
        f"The `{name}` measured here is another training of the network than the one that ships: times are alike, "
        "accuracy is left out."
        for name, ships in records.compare["ships"].items()
        if not ships
    ]
    lines += [
        f"`{name}` ships in int8 alone: Keras and the float files compute with its integers scaled back "
        "(`scripts/whole_bundles.py`)."
        for name, scaled in records.compare.get("scaled_back", {}).items()
        if scaled
    ]
    lines.append(
        f"The roof is the best of plain matrix products here: {rates}. An image takes {work} of them. "
        "Nothing is trimmed. Not an MLPerf result."
    )
    return [*lines, *([f"While this was measured, {'; '.join(disturbed)}."] if disturbed else [])]


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(spread: dict[str, float] | None, number: Callable[[float], str] = _number) -> str:
    return "{} ({} to {})".format(*(number(spread[name]) for name in ("value", "low", "high"))) if spread else ""


def _find_block(name: str, text: str) -> re.Match[str] | None:
    return re.search(_BLOCK.format(name), text, re.DOTALL)


def _of_each_kind(name: str) -> str:
    records = {kind: store.load(name, kind) for kind in store.kinds()}
    return "\n\n".join(_OTHER_TABLES[name](kind, record) for kind, record in records.items() if record)


def drawn(text: str, path: Path, found: dict[str, Records]) -> str:
    """Return a document with its tables as the records say."""
    content = tables(found, Path(os.path.relpath(store.COMMITTED, path.parent)).as_posix())
    contents = {_TABLES: content, **{name: _of_each_kind(name) for name in _OTHER_TABLES}}
    for name, made in contents.items():
        if match := _find_block(name, text):
            text = f"{text[: match.end(1)]}\n{made}\n\n{text[match.start(2) :]}"
    return text


def main(arguments: list[str] | None = None, *, root: Path = store.CHECKOUT) -> int:
    """Write or check everything; return 0 if it agrees with the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if something differs")
    check = parser.parse_args(arguments).check
    found = committed()
    wanted = {store.COMMITTED / kind / "README.md": page(kind, records) for kind, records in found.items()}
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if any(_find_block(name, text) for name in (_TABLES, *_OTHER_TABLES)):
            wanted[path] = drawn(text, path, found)
    if check:
        wrong = [f"{path}: differs" for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
        print("\n".join(wrong) or "the tables agree with the records")
        return int(bool(wrong))
    from benchmarks.records.plots import draw_all, draw_rates

    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    for kind, records in found.items():
        draw_all(store.COMMITTED / kind, plots_of(records.compare), records.compare, records.cold_start)
        if whole := store.load("whole", kind):
            draw_rates(store.COMMITTED / kind / "whole.svg", whole_table.by_rate(whole))
    return 0


if __name__ == "__main__":
    sys.exit(main())
