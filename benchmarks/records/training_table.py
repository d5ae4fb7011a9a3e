"""Draw the table of training speed in ``docs/benchmarks.md``."""

from __future__ import annotations

from typing import Any


def table(kind: str, record: dict[str, Any]) -> str:
    """Return the table of one kind of machine."""
    versions = record["libraries"]
    lines = [
        f"`{kind}`, {record['machine']['cores']} cores; Keras {versions['keras']} with TensorFlow "
        f"{versions['tensorflow']}; {record['rounds']} rounds in turn; in brackets the lowest and the highest round.",
        "",
        "| recipe | our precision | seconds a step | Keras' fit, float32 | times as fast | minutes an epoch |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in record["rows"].items():
        minutes = row["epoch_steps"] * row["seconds"]["value"] / 60
        cells = [name, f"`{row['precision']}`", *(_spread(row[key]) for key in ("seconds", "keras_seconds"))]
        lines.append(f"| {' | '.join([*cells, _spread(row['times_faster']), f'{minutes:.2g}'])} |")
    return "\n".join(lines)


def _spread(spread: dict[str, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*(spread[name] for name in ("value", "low", "high")))
