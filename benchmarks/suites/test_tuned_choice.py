"""What ``mri-edge tune`` chooses, beside every engine with the default artifact, all cores, and batch 1 or 8."""

from __future__ import annotations

import pytest

from benchmarks.compare.subjects import bundles
from benchmarks.processes import ENVIRONMENT, output, program, ratio_of_medians, script
from mri_edge.bundles.bundle import DEFAULT_MODEL
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import engine_files
from mri_edge.errors import MriEdgeError
from mri_edge.inference.selection import DEFAULT_BATCH, select
from mri_edge.inference.tuned_profile import load_profile

ROUNDS = 5
NOISE = 1.05  # the ratio of two runs of the same choice on the same machine

BUNDLE = bundles()[DEFAULT_MODEL]


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the profile that ``tune`` makes now."""
    folder = tmp_path_factory.mktemp("profiles")
    output(program("tune", "--model", BUNDLE.folder), env={**ENVIRONMENT, "MRI_EDGE_PROFILE_DIR": str(folder)})
    return folder


@pytest.mark.parametrize("many", [False, True], ids=["single", "many"])
def test_tuned_choice_is_no_slower_than_any_engine_by_default(profiles, many, report):
    batch = DEFAULT_BATCH if many else 1
    best = load_profile(BUNDLE, profiles).best(many=many)
    choices = {"tuned": (best.artifact, best.engine, best.threads, best.batch)}
    for name, engine in engine_files().items():
        if not engine.MODULE or engine.missing():
            continue
        try:
            choices[name] = (select(BUNDLE, engine=name).artifact.file, name, available_cpus(), batch)
        except MriEdgeError:  # the bundle has no artifact for it
            continue
    seconds = {name: [] for name in choices}
    for _ in range(ROUNDS):
        for name, (artifact, engine, threads, size) in choices.items():
            command = script("run_artifact.py", BUNDLE.folder / artifact, size, threads, engine)
            seconds[name].append(float(output(command)[-1]) / size)
    for name in choices:
        ratio = ratio_of_medians(seconds, name, "tuned")
        report(f"{'many' if many else 'single'} scans: {name} / {choices['tuned']}", ratio)
        assert ratio >= 1 / NOISE
