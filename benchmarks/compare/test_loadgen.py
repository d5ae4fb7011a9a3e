"""The load generator of MLPerf inference and our scenarios measure the same."""

from __future__ import annotations

import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from mri_edge.benchmarking import scenarios
from mri_edge.errors import EngineError

# By path: this folder is no package and is not installed.
_SPEC = spec_from_file_location("compare_loadgen", Path(__file__).with_name("loadgen.py"))
loadgen = module_from_spec(_SPEC)
_SPEC.loader.exec_module(loadgen)

pytestmark = pytest.mark.skipif(not loadgen.is_installed(), reason="needs mlcommons-loadgen")


def test_latencies_and_rates_agree():
    """Both run the same engine of known speed in turn: medians and rates differ by noise alone."""

    def run(index):
        time.sleep(0.003)

    def run_many(indices):
        for _ in indices:
            time.sleep(0.003)

    streams = {scenarios: [], loadgen: []}
    rates = {scenarios: [], loadgen: []}
    for _ in range(4):
        for module in (scenarios, loadgen):
            streams[module] += module.single_stream(run, 10, seconds=0.2, queries=10)
            rates[module].append(module.offline(run_many, 10, queries=40))
    # The lower quartile is the time of the sleep when no other program has the CPU.
    first, second = (float(np.quantile(streams[module], 0.25)) for module in (scenarios, loadgen))
    assert 0.9 < second / first < 1.1
    assert 0.8 < max(rates[loadgen]) / max(rates[scenarios]) < 1.25


def test_server_latency_includes_the_wait():
    """At twice the rate that can be served, queries wait; at a tenth of it they do not."""
    latencies = {
        rate: np.median(loadgen.server(lambda index: time.sleep(0.004), 5, rate=rate, queries=40).latencies_ms)
        for rate in (25, 500)
    }
    assert latencies[500] > 3 * latencies[25]


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("single_stream", {"seconds": 0.01, "queries": 3}),
        ("offline", {"queries": 3}),
        ("server", {"rate": 100, "queries": 3}),
    ],
)
def test_a_failure_under_load_ends_the_run(scenario, settings):
    def run(index):
        raise EngineError("the engine is gone")

    with pytest.raises(EngineError, match="the engine is gone"):
        getattr(loadgen, scenario)(run, 3, **settings)
