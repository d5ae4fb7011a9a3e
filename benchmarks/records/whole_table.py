"""Draw the table of rates from file to answer in ``docs/benchmarks.md``."""

from __future__ import annotations

from typing import Any


def by_rate(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return model, title and row of each subject: the models in their order, the fastest subject first."""
    rows = [(*key.split(": ", 1), row) for key, row in record["rows"].items()]
    return sorted(rows, key=lambda row: (record["models"].index(row[0]), -row[2]["scans_per_s"]["value"]))


def table(kind: str, record: dict[str, Any]) -> str:
    """Return the table of one kind of machine."""
    machine, energy = record["machine"], record["energy"]
    lines = [
        f"`{kind}`, {machine['cores']} cores; {record['rounds']} rounds in turn; in brackets the lowest and the "
        f"highest round. Energy: {energy or 'this machine has no counter that a program may read'}.",
        "",
        f"| model | what runs | scans a second | times the Keras script |{' J for 1,000 scans |' if energy else ''}",
        f"| --- | --- | ---: | ---: |{' ---: |' if energy else ''}",
    ]
    for model, title, row in by_rate(record):
        cells = [model, title, _spread(row["scans_per_s"]), _spread(row.get("times_faster"))]
        if energy:
            cells.append(_spread(row.get("joules_per_1000")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    value, low, high = (f"{spread[name]:,.0f}" if spread[name] >= 100 else f"{spread[name]:.3g}" for name in spread)
    return f"{value} ({low} to {high})"
