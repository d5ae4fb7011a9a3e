"""Draw tables and plots from the committed records, into README.md, ``docs/`` and ``benchmarks/results``.

    python -m benchmarks.records.draw            # write them
    python -m benchmarks.records.draw --check    # write nothing, exit 1 if one differs from the records

In README.md and ``docs/**/*.md`` a table stands between ``<!-- benchmarks: NAME -->`` and ``<!-- benchmarks: end -->``:
``summary`` is five rows, ``tables`` is everything. Rows that stand elsewhere, below the same heading, are checked.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.compare import roof
from benchmarks.records import store
from mri_edge.bundles.bundle import EMBEDDED, Bundle

BLOCK = re.compile(r"(<!-- benchmarks: (?!end)(\w+).*? -->\n).*?(<!-- benchmarks: end -->)", re.DOTALL)
RECORDS = ("compare", "cold_start", "roof")
_LIBRARIES = ("onnxruntime", "openvino", "ai-edge-litert", "tensorflow", "keras", "olive-ai")
_P90 = "p90"
_HEADINGS = {  # title of each column: whether it contains numbers
    "model": False,
    "what runs": False,
    "artifact": False,
    "MB": True,
    "ms, one image": True,
    _P90: True,
    "times Keras' vgg16": True,
    "of the roof": True,
    "accuracy (95%)": False,
}
_FRAMEWORKS = ("keras", "tf.function", "Olive")

Row = dict[str, Any]
Records = list[dict[str, Any]]  # those of RECORDS, of one kind of machine


def documents(root: Path) -> list[Path]:
    """Return the files that may quote records."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def committed() -> dict[str, Records]:
    """Return the records by kind of machine; accuracy only of models that ship.

    Times stay true when a model is trained again or gets another threshold; its answers do not.
    """
    found = {kind: [_record(name, kind) for name in RECORDS] for kind in store.kinds()}
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


def blocks(found: dict[str, Records], results: str) -> dict[str, str]:
    """Return the text of each block by name; ``results`` is the path to ``benchmarks/results`` from the document."""
    main = found[store.MAIN]
    lines = [*_overview(*main), ""]
    for kind, every in found.items():
        if kind != store.MAIN:
            lines += _other_machine(kind, *every)
    links = ", ".join(f"[{kind}]({results}/{kind}/README.md)" for kind in found)
    lines.append(f"Every row, by kind of machine: {links}.")
    return {"summary": "\n".join(_summary(*main)), "tables": "\n".join(lines)}


def _summary(compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """Five rows: our fastest engine for each int8 file; and Olive, ``tf.function`` and Keras for the reference."""
    best: dict[str, str] = {}
    for key, row in _by_time(compared):
        ours, reference = row["title"].startswith("mri-edge"), row["bundle"] == compared["baseline"].partition(":")[0]
        if ours and row["artefact"] == "model.int8.onnx":
            best.setdefault(row["bundle"], key)
        elif not ours and reference and row["title"].startswith(_FRAMEWORKS):
            best.setdefault(row["title"], key)
    return [_circumstances(compared), "", *_table(compared, ceiling, best.values(), without=_P90)]


def _overview(compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """Each of our engines, the fastest of its libraries' own interfaces, Olive and Keras; and cold starts."""
    best: dict[tuple[str, str], str] = {}
    for key, row in _by_time(compared):
        framework = next((name for name in _FRAMEWORKS if row["title"].startswith(name)), "a library's own interface")
        group = row["title"] if row["title"].startswith("mri-edge") else framework
        best.setdefault((row["bundle"], group), key)
    lines = [_circumstances(compared), "", *_table(compared, ceiling, best.values(), without=_P90), ""]
    return [*lines, *_absent(compared), *_starts(started), "", *_notes(compared, started, ceiling)]


def _other_machine(kind: str, compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """Our fastest engine of each model in int8 and in float, beside Keras."""
    best: dict[tuple[str, bool], str] = {}
    for key, row in _by_time(compared):
        if row["title"].startswith("mri-edge"):
            best.setdefault((row["bundle"], roof.kind_of(row) == "int8"), key)
    lines = [f"On another kind of machine, `{kind}`: {_circumstances(compared)}", ""]
    lines += [*_table(compared, ceiling, {*best.values(), compared["baseline"]}, without=_P90), ""]
    return [*lines, *_starts(started, lambda name: "mri-edge predict" in name or name == started["baseline"]), ""]


def whole(kind: str, compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> str:
    """Return ``benchmarks/results/KIND/README.md``: every row, with the spread."""
    lines = [
        f"# All that was measured on `{kind}`",
        "",
        "Drawn by `python -m benchmarks.records.draw` from the records beside this file.",
        "",
        _circumstances(compared),
        "",
        *_table(compared, ceiling, compared["rows"]),
        "",
        *_absent(compared),
        *_starts(started),
        "",
        *_notes(compared, started, ceiling),
        "p90 is the bound that holds with 99% confidence.",
        "",
        *(f"![{name}]({name}.svg)" for name in plots_of(compared)),
    ]
    return "\n".join(lines) + "\n"


def plots_of(compared: dict[str, Any]) -> tuple[str, ...]:
    """Return the plots that a record has the figures for."""
    has_accuracy = any("accuracy" in row for row in compared["rows"].values())
    return ("latency", "size", "cold_start") if has_accuracy else ("cold_start",)


def _by_time(compared: dict[str, Any]) -> list[tuple[str, Row]]:
    measured = [(key, row) for key, row in compared["rows"].items() if "model" in row]
    return sorted(measured, key=lambda item: item[1]["model"]["median"]["value"])


def _table(compared: dict[str, Any], ceiling: dict[str, Any], keys: Collection[str], without: str = "") -> list[str]:
    fractions = roof.fractions(ceiling, compared)
    lines = [list(_HEADINGS), ["---:" if numbers else "---" for numbers in _HEADINGS.values()]]
    for key, row in _by_time(compared):
        if key in keys:
            kind, fraction = fractions.get(key, ("", None))
            lines.append(
                [
                    row["bundle"],
                    row["title"],
                    f"`{row['artefact']}`",
                    f"{row['size_bytes'] / 1e6:.2f}",
                    _spread(row["model"]["median"]),
                    _number(row["model"]["bounds"][_P90]),
                    _spread(row.get("times_faster")),
                    "" if fraction is None else f"{fraction:.0%}, {kind}",
                    _spread(row.get("accuracy"), "{:.3f}".format),
                ]
            )
    shown = [index for index, title in enumerate(_HEADINGS) if title != without]
    return [f"| {' | '.join(cells[index] for index in shown)} |" for cells in lines]


def _circumstances(compared: dict[str, Any]) -> str:
    olive = [facts["olive"] for facts in compared["olive"].values() if facts]
    versions = compared["libraries"] | ({"olive-ai": olive[0]} if olive else {})
    threads, rounds, cpu = compared["threads"], compared["rounds"], compared["machine"]["cpu"].partition(" (")[0]
    libraries = ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
    load = f"load by {compared['driver']}"
    if compared["busy"]:
        load = "on a clock that excludes the time a program waits for a core, because the machine had other work"
    images = max(compared["images"].values(), default=0)
    accuracy = f" Accuracy on the reference's {images} test images." if "latency" in plots_of(compared) else ""
    return (
        f"{cpu}, {threads} thread{'s' * (threads != 1)}; {libraries}; {load}. "
        f"{rounds} round{'s' * (rounds != 1)} in turn, each subject alone in its process; in brackets the lowest and "
        f"the highest round.{accuracy}"
    )


def _absent(compared: dict[str, Any]) -> list[str]:
    rows = [row for row in compared["rows"].values() if row["problem"]]
    lines = [f"- {row['bundle']}, {row['title']}, `{row['artefact']}`: {row['problem']}" for row in rows]
    return [*lines, ""] if lines else []


def _starts(started: dict[str, Any], is_wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    rows = sorted(started["rows"].items(), key=lambda item: item[1]["seconds"]["value"])
    cells = [(name, _spread(row["seconds"]), _spread(row.get("times_faster"))) for name, row in rows if is_wanted(name)]
    unit = "CPU seconds" if started["busy"] else "seconds"
    heading = [f"| cold start, the whole process | {unit} | times the Keras script |", "| --- | ---: | ---: |"]
    return [*heading, *(f"| {' | '.join(row)} |" for row in cells)]


def _notes(compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    rates = " and ".join(
        f"{max(found.values()) / 1e9:.0f} G multiply-adds a second in {kind} ({max(found, key=found.__getitem__)})"
        for kind, found in ceiling["multiply_adds_per_second"].items()
        if found
    )
    work = ", ".join(f"{name} {count / 1e9:.3g} G" for name, count in compared["multiply_adds"].items() if count)
    disturbed = sorted({*compared["disturbed"], *started["disturbed"], *ceiling["disturbed"]})
    lines = [
        f"The `{name}` measured here is another training of the network than the one that ships: times are alike, "
        "accuracy is left out."
        for name, ships in compared["ships"].items()
        if not ships
    ]
    lines += [
        f"`{name}` ships in int8 alone: Keras and the float files compute with its integers scaled back "
        "(`scripts/whole_bundles.py`)."
        for name, scaled in compared.get("scaled_back", {}).items()
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


def drawn(text: str, path: Path, found: dict[str, Records]) -> str:
    """Return a document with all of its blocks as the records say."""
    texts = blocks(found, Path(os.path.relpath(store.COMMITTED, path.parent)).as_posix())
    return BLOCK.sub(lambda match: f"{match[1]}\n{texts.get(match[2], texts['tables'])}\n\n{match[3]}", text)


def misquoted(text: str, found: dict[str, Records]) -> Iterator[str]:
    """Yield the rows below a heading of our tables that no record gives, wherever they stand in a document."""
    texts = [*blocks(found, "").values(), *(whole(kind, *every) for kind, every in found.items())]
    known = "\n".join(texts).splitlines()
    headings = {heading for heading, line in pairwise(known) if line.startswith("| ---")}
    inside = False
    for line in text.splitlines():
        inside = line in headings or (inside and line.startswith("|"))
        if inside and line not in known:
            yield line


def main(arguments: list[str] | None = None, *, root: Path = store.CHECKOUT) -> int:
    """Write or check everything; return 0 if it agrees with the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if something differs")
    check = parser.parse_args(arguments).check
    found = committed()
    wanted = {store.COMMITTED / kind / "README.md": whole(kind, *every) for kind, every in found.items()}
    texts = {path: path.read_text(encoding="utf-8") for path in documents(root)}
    wanted |= {path: drawn(text, path, found) for path, text in texts.items() if BLOCK.search(text)}
    wrong = [f"{path.name}: no record says {row}" for path, text in texts.items() for row in misquoted(text, found)]
    if check:
        wrong += [f"{path}: differs" for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    else:
        from benchmarks.records.plots import draw_all

        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        for kind, (compared, started, _) in found.items():
            draw_all(store.COMMITTED / kind, plots_of(compared), compared, started)
    print("\n".join(wrong) or "tables and plots agree with the records")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
