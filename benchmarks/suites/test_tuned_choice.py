"""What ``mri-edge tune`` chooses, beside every engine with the default artifact, all cores, and batch 1 or 8."""

from __future__ import annotations

from statistics import median

import pytest

from benchmarks.compare.subjects import bundles
from mri_edge.benchmarking.trial import Trial, attempt
from mri_edge.benchmarking.tuning import tune
from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import engine_files
from mri_edge.errors import MriEdgeError
from mri_edge.inference.selection import DEFAULT_BATCH, select

ROUNDS = 5
NOISE = 1.05  # the ratio of two runs of the same choice on the same machine
BUNDLE = bundles()[DEFAULT_MODEL]


@pytest.fixture(scope="module")
def profile():
    """The profile that ``tune`` makes now."""
    return tune(BUNDLE).profile


@pytest.mark.parametrize("many", [False, True], ids=["single", "many"])
def test_tuned_choice_is_no_slower_than_any_engine_by_default(profile, many, report):
    best = profile.best(many=many)
    choices = {"tuned": (best.artifact, best.engine, best.threads, best.batch)}
    for name, engine in engine_files().items():
        if not engine.missing():
            try:
                artifact = select(BUNDLE, engine=name).artifact.file
            except MriEdgeError:  # the bundle has no artifact for it
                continue
            choices[name] = (artifact, name, available_cpus(), DEFAULT_BATCH if many else 1)
    ms = {name: [] for name in choices}
    for _ in range(ROUNDS):
        for name, (artifact, engine, threads, batch) in choices.items():
            trial = Trial(engine, str(BUNDLE.folder), artifact, "cpu", threads, batch, seconds=1.5)
            outcome = attempt(trial, time_limit=300)
            assert outcome.problem is None
            ms[name].append(outcome.ms / batch)
    for name, values in ms.items():
        ratio = median(values) / median(ms["tuned"])
        report(f"{'many' if many else 'single'} scans: {name} / {choices['tuned']}", ratio)
        assert ratio >= 1 / NOISE
