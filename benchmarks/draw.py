"""README's figures, whole tables and plots, drawn from the committed records: ``python benchmarks/draw.py``.

``--check`` writes nothing, and fails if README or a table is not what the records say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
import roof

from mri_edge.bundles.bundle import EMBEDDED, Bundle
from mri_edge.storage.atomic import write_whole

README = records.CHECKOUT / "docs" / "benchmarks.md"  # README itself shows some of its rows: tests/test_docs.py
BEGIN, END = "<!-- benchmarks: drawn by benchmarks/draw.py -->", "<!-- benchmarks: end -->"
RECORDS = ("compare", "cold_start", "roof")
_LIBRARIES = ("onnxruntime", "openvino", "ai-edge-litert", "tensorflow", "keras", "olive-ai")
_P90 = "p90"
_HEAD = {  # title of each column: whether it holds numbers
    "model": False,
    "what runs": False,
    "artefact": False,
    "MB": True,
    "ms, one image": True,
    _P90: True,
    "times Keras' vgg16": True,
    "of the roof": True,
    "accuracy (95%)": False,
}
_FRAMEWORKS = ("keras", "tf.function", "Olive")


def short(compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """What README shows: each of our engines, the fastest of its libraries' own ways, Olive, Keras; and cold start."""
    best: dict[tuple[str, str], str] = {}
    for key, row in _by_time(compared):
        best.setdefault((row["bundle"], _way(row["title"])), key)
    lines = [_circumstances(compared), "", *_table(compared, ceiling, set(best.values()), without=_P90), ""]
    return [*lines, *_absent(compared), *_starts(started), "", *_notes(compared, started, ceiling)]


def _way(title: str) -> str:
    """What stands beside what: ours by the engine, Keras and Olive by their names, the others as one."""
    if title.startswith("mri-edge"):
        return title
    return next((name for name in _FRAMEWORKS if title.startswith(name)), "a library's own")


def brief(kind: str, compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """What README shows of another kind of machine: our fastest of each model in int8 and in float, beside Keras."""
    best: dict[tuple[str, bool], str] = {}
    for key, row in _by_time(compared):
        if row["title"].startswith("mri-edge"):
            best.setdefault((row["bundle"], roof.kind_of(row) == "int8"), key)
    lines = [f"On another kind of machine, `{kind}`: {_circumstances(compared)}", ""]
    lines += [*_table(compared, ceiling, {*best.values(), compared["baseline"]}, without=_P90), ""]
    return [*lines, *_starts(started, lambda name: "mri-edge predict" in name or name == started["baseline"]), ""]


def whole(kind: str, compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    """Every row, with the spread: ``benchmarks/results/KIND/README.md``."""
    return [
        f"# All that was measured on `{kind}`",
        "",
        "Drawn by `python benchmarks/draw.py` from the records beside this file.",
        "",
        _circumstances(compared),
        "",
        *_table(compared, ceiling, set(compared["rows"])),
        "",
        *_absent(compared),
        *_starts(started),
        "",
        *_notes(compared, started, ceiling),
        "p90 is the bound that holds with 99% confidence.",
        "",
        *(f"![{name}]({name}.svg)" for name in plots_of(compared)),
    ]


def between(text: str) -> str:
    """The generated part of README as it stands. Raises ValueError if its marks are gone."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[begin:end].strip("\n")


def generated(found: dict[str, list[dict[str, Any]]]) -> tuple[str, dict[Path, str]]:
    """README's part, and each kind of machine's whole table by its file, as its committed records make them."""
    others = [kind for kind in found if kind != records.MAIN]
    links = ", ".join(f"[{kind}](../benchmarks/results/{kind}/README.md)" for kind in found)
    part = [*short(*found[records.MAIN]), ""]
    for kind in others:
        part += brief(kind, *found[kind])
    part.append(f"Every row, by kind of machine: {links}.")
    tables = {kind: "\n".join(whole(kind, *every)) + "\n" for kind, every in found.items()}
    return "\n".join(part), {records.COMMITTED / kind / "README.md": text for kind, text in tables.items()}


def plots_of(compared: dict[str, Any]) -> tuple[str, ...]:
    """The plots that a record can be drawn as: those against accuracy want some."""
    judged = any("accuracy" in row for row in compared["rows"].values())
    return ("latency", "size", "cold_start") if judged else ("cold_start",)


def committed() -> dict[str, list[dict[str, Any]]]:
    """The records of each kind of machine, without the accuracy of any model but the one that ships.

    Times stay true when a model is trained anew or gets another threshold; what it answered does not.
    """
    found = {kind: [_record(name, kind) for name in RECORDS] for kind in records.kinds()}
    for compared, *_ in found.values():
        known = compared.get("thresholds", {})
        same = {
            name
            for name, ships in compared["ships"].items()
            if ships and known.get(name) == Bundle.open(EMBEDDED / name).manifest.threshold
        }
        for row in compared["rows"].values():
            if row["bundle"] not in same:
                row.pop("accuracy", None)
    return found


def _record(name: str, kind: str) -> dict[str, Any]:
    if (found := records.load(name, kind)) is None:
        raise SystemExit(f"no record of {name} on {kind}: run it with --record")
    return found


def _by_time(compared: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    ran = [(key, row) for key, row in compared["rows"].items() if "model" in row]
    return sorted(ran, key=lambda item: item[1]["model"]["median"]["value"])


def _table(compared: dict[str, Any], ceiling: dict[str, Any], wanted: set[str], without: str = "") -> list[str]:
    shares = roof.shares(ceiling, compared)
    columns = [title for title in _HEAD if title != without]
    lines = [columns, ["---:" if _HEAD[title] else "---" for title in columns]]
    for key, row in _by_time(compared):
        if key in wanted:
            share = shares.get(key)
            cells = (
                row["bundle"],
                row["title"],
                f"`{row['artefact']}`",
                f"{row['size_bytes'] / 1e6:.2f}",
                _spread(row["model"]["median"]),
                _number(row["model"]["bounds"][_P90]),
                _spread(row.get("times_faster")),
                f"{share[1]:.0%}, {share[0]}" if share else "",
                _accuracy(row),
            )
            lines.append([cell for title, cell in zip(_HEAD, cells, strict=True) if title != without])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _circumstances(compared: dict[str, Any]) -> str:
    machine, libraries = compared["machine"], compared["libraries"]
    olive = next((said["olive"] for said in compared["olive"].values() if said), None)
    versions = libraries | ({"olive-ai": olive} if olive else {})
    told = ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
    images = max(compared["images"].values(), default=0)
    judged = f" Accuracy on the reference's {images} test images." if "latency" in plots_of(compared) else ""
    return (
        f"{machine['cpu'].partition(' (')[0]}, {_count(compared['threads'], 'thread')}; {told}; {_clock(compared)}. "
        f"{_count(compared['rounds'], 'round')} in turn, each subject alone in its process; in brackets the lowest and "
        f"the highest round.{judged}"
    )


def _clock(compared: dict[str, Any]) -> str:
    if compared["busy"]:
        return "on a clock that stands still while a program waits for a core, because the machine had other work"
    return f"load by {compared['driver']}"


def _absent(compared: dict[str, Any]) -> list[str]:
    rows = [row for row in compared["rows"].values() if row["problem"]]
    lines = [f"- {row['bundle']}, {row['title']}, `{row['artefact']}`: {row['problem']}" for row in rows]
    return [*lines, ""] if lines else []


def _starts(started: dict[str, Any], wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    chosen = [(name, row) for name, row in started["rows"].items() if wanted(name)]
    rows = sorted(chosen, key=lambda item: item[1]["seconds"]["value"])
    unit = "CPU seconds" if started["busy"] else "seconds"
    return [
        f"| cold start, the whole process | {unit} | times the Keras script |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {_spread(row['seconds'])} | {_spread(row.get('times_faster'))} |" for name, row in rows),
    ]


def _notes(compared: dict[str, Any], started: dict[str, Any], ceiling: dict[str, Any]) -> list[str]:
    best = ceiling["multiply_adds_per_second"]
    rates = " and ".join(
        f"{max(found.values()) / 1e9:.0f} G multiply-adds a second in {kind} ({max(found, key=found.__getitem__)})"
        for kind, found in best.items()
        if found
    )
    work = ", ".join(f"{name} {count / 1e9:.3g} G" for name, count in compared["multiply_adds"].items() if count)
    disturbed = sorted({*compared["disturbed"], *started["disturbed"], *ceiling["disturbed"]})
    others = [name for name, same in compared["ships"].items() if not same]
    scaled = [name for name, found in compared.get("scaled_back", {}).items() if found]
    return [
        *(
            f"The `{name}` measured here is another training of the network than the one that ships: times are alike, "
            "accuracy is left out."
            for name in others
        ),
        *(
            f"`{name}` ships in int8 alone: Keras and the float files compute with its integers scaled back "
            "(`benchmarks/whole_bundles.py`)."
            for name in scaled
        ),
        f"The roof is the best of plain matrix products here: {rates}. An image takes {work} of them. "
        "Nothing is trimmed. Not an MLPerf result.",
        *([f"While this was measured, {'; '.join(disturbed)}."] if disturbed else []),
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(one: dict[str, float] | None) -> str:
    if one is None:
        return ""
    return f"{_number(one['value'])} ({_number(one['low'])} to {_number(one['high'])})"


def _accuracy(row: dict[str, Any]) -> str:
    if "accuracy" not in row:
        return ""
    found = row["accuracy"]
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def main(arguments: list[str] | None = None) -> int:
    """Draw, or check; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if README is not what the records say")
    chosen = parser.parse_args(arguments)
    found = committed()
    text, (wanted, tables) = README.read_text(encoding="utf-8"), generated(found)
    if chosen.check:
        drawn = between(text) == wanted and all(
            table.is_file() and table.read_text(encoding="utf-8") == content for table, content in tables.items()
        )
        return int(not drawn)
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    write_whole(README, f"{text[:begin]}\n\n{wanted}\n\n{text[end:]}")
    from plots import draw_all

    for table, content in tables.items():
        write_whole(table, content)
    for kind, (compared, started, _) in found.items():
        draw_all(records.COMMITTED / kind, plots_of(compared), compared, started)
    print(f"drawn: {README.name}, and tables and plots in {records.COMMITTED.relative_to(records.CHECKOUT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
