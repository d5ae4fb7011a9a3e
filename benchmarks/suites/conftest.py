"""Make the checkout importable for the suites, and report what they measure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.processes import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # models that the suites open in this process ignore the profiles of this machine, too


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of test_peers.py."""
    parser.addoption("--subject", choices=["mri-edge", "peer"], default="mri-edge", help="what test_peers.py runs")


@pytest.fixture
def report(record_property):
    """A function that prints a figure and records it as a property of the test: NAME, VALUE."""

    def write(name: str, value: float) -> None:
        record_property(name, round(value, 3))
        print(f"{name}: {value:.3g}")

    return write
