"""Draw the table of ``docs/server.md`` from the record of ``benchmarks.compare.server``."""

from __future__ import annotations

from typing import Any


def table(kind: str, record: dict[str, Any]) -> str:
    """Return the table of one kind of machine and a sentence about latency."""
    machine, latency = record["machine"], record["latency"]
    lines = [
        f"`{kind}`, {machine['cores']} cores, which the load generator and other programs used too (load average "
        f"{record['load'][0]:.0f} to {record['load'][1]:.0f}); {record['rounds']} rounds in turn; medians, in brackets "
        "the lowest and the highest round:",
        "",
        "| sent | requests a second | compared with | times its rate | target | CPU per request | of the peer |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in record["rows"].items():
        ratio, rate = row["ratio"], row["requests_per_s"]["value"]
        target = f"{row['target']}" if row["target"] else ""
        lines.append(
            f"| {name.partition(', ' + row['peer'])[0]} | {rate:,.0f} | {row['peer']} | {ratio['value']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}) | {target} | {_milliseconds(row['cpu_us'])} "
            f"| {_milliseconds(row['peer_cpu_us'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"A single picture is answered in {latency['single_ms']:.1f} ms. At half the highest rate "
            f"({latency['rate']:.0f} pictures a second) 99% are answered in {latency['server']['p99_ms']:.1f} ms, "
            f"{latency['p99_to_single']:.1f} times as long (target: at most 3); an echo of the same bodies in "
            f"{latency['echo']['p99_ms']:.1f} ms.",
        ]
    )


def _milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1e3:.3g} ms" if microseconds else ""
