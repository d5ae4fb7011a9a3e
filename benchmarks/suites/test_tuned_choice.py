"""What ``mri-edge tune`` chooses beside every engine used naively: the rule's artefact, all cores, batch 1 or 8."""

from __future__ import annotations

import statistics
import subprocess

import pytest
from paired import ENVIRONMENT, program, script
from subjects import bundles

from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import engine_files
from mri_edge.errors import MriEdgeError
from mri_edge.inference.selection import DEFAULT_BATCH, select
from mri_edge.inference.tuned_profile import load_profile

ROUNDS = 5
# Two runs of the same choice on the same machine are this far apart.
NOISE = 1.05


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The default model with artefacts for several engines, if it is here whole."""
    return bundles()[DEFAULT_MODEL]


@pytest.fixture(scope="module")
def profiles(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory):
    """A folder with the profile that tune makes now."""
    folder = tmp_path_factory.mktemp("profiles")
    command = program("tune", "--model", bundle.folder)
    subprocess.run(command, check=True, capture_output=True, env={**ENVIRONMENT, "MRI_EDGE_PROFILE_DIR": str(folder)})
    return folder


@pytest.mark.parametrize("many", [False, True], ids=["single", "many"])
def test_tuned_choice_is_no_slower_than_any_engine_used_naively(bundle, profiles, many, monkeypatch, record_property):
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(profiles / "none"))
    batch = DEFAULT_BATCH if many else 1
    ways = {}
    for name, one in engine_files().items():
        if not one.MODULE or one.missing():
            continue
        try:
            ways[name] = (select(bundle, engine=name).artefact.file, name, available_cpus(), batch)
        except MriEdgeError:  # the bundle has nothing for it
            continue
    best = load_profile(bundle, profiles).best(many=many)
    ways["tuned"] = (best.artefact, best.engine, best.threads, best.batch)
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (artefact, engine, threads, size) in ways.items():
            command = script("run_artefact.py", bundle.folder / artefact, size, threads, engine)
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
            seconds[name].append(float(done.stdout.splitlines()[-1]) / size)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{'many' if many else 'single'} scans, tuned: {ways['tuned']}")
    for name in ways:
        ratio = medians[name] / medians["tuned"]
        record_property(f"{'many' if many else 'single'}: {name} / tuned", round(ratio, 2))
        print(f"  {name}: {ratio:.2f} times the tuned time a scan")
        assert ratio >= 1 / NOISE
