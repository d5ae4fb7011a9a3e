"""The documents agree with the committed benchmark records, and the benchmark programs work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.bundles.bundle import embedded_models

CHECKOUT = Path(__file__).resolve().parents[1]
BENCHMARKS = CHECKOUT / "benchmarks"

KINDS = sorted(path.parent for path in (BENCHMARKS / "results").glob("*/compare.json"))


def test_documents_agree_with_the_records():
    command = [sys.executable, "-m", "benchmarks.records.draw", "--check"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python -m benchmarks.records.draw\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("file", "name", "words"),
    [
        ("README.md", "tables", "keras.Model.predict"),
        ("docs/speed/benchmarks.md", "tables", "keras.Model.predict"),
        ("docs/networks.md", "networks", "| ResNet50 | `onnx` |"),
    ],
)
def test_figure_edited_by_hand_is_detected_in_any_document(tmp_path, file, name, words):
    from benchmarks.records import draw

    (tmp_path / "README.md").write_text("# A README without figures\n", encoding="utf-8")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    block = f"<!-- benchmarks: {name} -->\n<!-- benchmarks: end -->\n"
    right = draw.drawn(block, tmp_path / file, draw.committed())
    (tmp_path / file).write_text(right, encoding="utf-8")
    assert draw.main(["--check"], root=tmp_path) == 0
    row = next(line for line in right.splitlines() if words in line)
    (tmp_path / file).write_text(right.replace(row, row.replace("0", "1", 1)), encoding="utf-8")
    assert draw.main(["--check"], root=tmp_path) == 1


def test_kept_networks_are_those_of_the_same_machine_and_libraries(monkeypatch):
    from benchmarks.compare import networks

    rows = {"ResNet50": {"formats": {}}}
    record = networks._record(rows)
    older = record | {"libraries": record["libraries"] | {"onnxruntime": "1.0"}}
    elsewhere = record | {"machine": record["machine"] | {"cpu": "another"}}
    fewer = record | {"libraries": {"onnxruntime": record["libraries"]["onnxruntime"]}}  # installed since, and not used
    for fresh, committed, kept in (
        (record, None, rows),
        (None, record, rows),
        (None, fewer, rows),
        (None, None, {}),
        (older, record, {}),
        (None, elsewhere, {}),
    ):
        monkeypatch.setattr(networks, "load_fresh", lambda name, found=fresh: found)
        monkeypatch.setattr(networks, "load", lambda name, kind, found=committed: found)
        assert networks._measured_rows() == kept


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_plots_exist_and_contain_no_bitmap(kind):
    shown = re.findall(r"!\[(\w+)\]\(\1\.svg\)", (kind / "README.md").read_text(encoding="utf-8"))
    assert "cold_start" in shown
    for name in shown:
        text = (kind / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "<image" not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_figure_is_between_its_lowest_and_highest_round(kind):
    record = json.loads((kind / "compare.json").read_text(encoding="utf-8"))
    spreads = [row["times_faster"] for row in record["rows"].values() if "times_faster" in row]
    spreads += [row["model"]["median"] for row in record["rows"].values() if "model" in row]
    assert spreads
    assert all(spread["low"] <= spread["value"] <= spread["high"] for spread in spreads)


@pytest.mark.parametrize(
    ("ships", "moved", "shown"), [(True, 0.0, True), (True, 0.1, False), (False, 0.0, False)], ids=str
)
def test_accuracy_is_shown_only_for_the_embedded_model(monkeypatch, ships, moved, shown):
    from benchmarks.records import draw
    from mri_edge.bundles.bundle import EMBEDDED, Bundle

    threshold = Bundle.open(EMBEDDED / "small").manifest.threshold

    def record(name, kind):
        rows = {"a": {"bundle": "small", "accuracy": {"value": 0.9}}}
        return {"ships": {"small": ships}, "thresholds": {"small": threshold + moved}, "rows": rows}

    monkeypatch.setattr(draw, "_record", record)
    for compared, *_ in draw.committed().values():
        assert ("accuracy" in compared["rows"]["a"]) is shown
        assert ("latency" in draw.plots_of(compared)) is shown


def test_records_are_stored_by_kind_of_machine():
    from benchmarks.records import store

    assert store.kinds()[0] == store.MAIN
    for kind in store.kinds():
        facts = store.load("compare", kind)["machine"]
        assert store.kind_of_machine(facts) == kind


@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        ("AMD EPYC (x86_64): avx2, avx512, bf16, f16c, fma, vnni", "x86_64-vnni"),
        ("Intel(R) Core(TM) i5-4570 CPU (x86_64): avx2, f16c, fma", "x86_64-avx2"),
        ("Cortex-A76 (aarch64): dotprod, fp16, neon", "aarch64-dotprod"),
        ("unknown (riscv64): instructions unknown", "riscv64"),
    ],
)
def test_kind_of_machine_is_named_after_its_int8_instructions(cpu, kind):
    from benchmarks.records import store

    assert store.kind_of_machine({"cpu": cpu}) == kind


def test_measurements_ignore_the_device_profiles_of_this_machine():
    from benchmarks import processes

    assert not Path(processes.ENVIRONMENT["MRI_EDGE_PROFILE_DIR"]).exists()


def test_claim_is_judged_by_the_spread_in_its_record():
    from benchmarks.records import claims

    record = {
        "baseline": "slow",
        "rows": {
            name: {"times_faster": {"value": v, "low": v - 1, "high": v + 1}} for name, v in (("slow", 1), ("fast", 10))
        },
    }

    def fresh(value):
        return {"rows": {"fast": {"times_faster": {"value": value}}}}

    for value, reproduced in ((10.0, True), (7.0, False), (13.0, False)):
        [claim] = claims.judge("x", fresh(value), record)
        assert (claim.fresh, claim.reproduced, claim.judged) == (value, reproduced, True)


@pytest.mark.parametrize(
    ("title", "rows", "of_run", "code", "pattern"),
    [
        ("OpenVINO", {"fast": {"problem": "not available: no openvino"}}, {}, 5, "NOT MEASURED .*fast: not available"),
        ("OpenVINO", {}, {}, 5, "NOT MEASURED .*fast: not in this run"),
        ("OpenVINO", {"fast": {"problem": None}}, {}, 5, "NOT MEASURED .*fast: its baseline"),
        ("OpenVINO", {}, {"machine": {"cpu": "b", "cores": 2}}, 0, "not measured .*fast"),
        ("OpenVINO", {}, {"machine": {"cpu": "a", "cores": 8}}, 0, "not measured .*fast"),
        ("OpenVINO", {}, {"machine": {"cpu": "a"}}, 5, "NOT MEASURED .*fast"),
        ("OpenVINO", {"fast": {"times_faster": {"value": 3}}}, {"busy": True}, 0, "other +3 .*fast"),
        ("OpenVINO", {}, {"images": {"small": 0}}, 0, "not measured .*fast"),
        ("Olive's best, in ONNX Runtime", {}, {}, 0, "not measured .*small: Olive"),
        ("Olive's best, in ONNX Runtime", {}, {"olive_asked": True}, 5, "NOT MEASURED .*small: Olive"),
    ],
    ids=[
        *("peer missing", "nothing measured", "no baseline", "another CPU", "other cores", "cores not recorded"),
        *("a busy run", "without the data", "Olive was not asked for", "Olive was asked for"),
    ],
)
def test_claim_that_was_not_measured_is_not_reproduced(monkeypatch, capsys, title, rows, of_run, code, pattern):
    from benchmarks.records import claims

    faster = {"value": 10, "low": 9, "high": 11}
    record = {"baseline": "slow", "busy": False, "disturbed": [], "machine": {"cpu": "a", "cores": 2}}
    record["images"] = {"small": 51}
    fast = {"bundle": "small", "title": title, "times_faster": faster}
    record["rows"] = {"slow": {"times_faster": faster}, "fast": fast}
    monkeypatch.setattr(claims.store, "load", lambda name: record)
    monkeypatch.setattr(claims.store, "load_fresh", lambda name: {**record, "rows": rows, **of_run})
    assert claims.main() == code
    assert re.search(pattern, capsys.readouterr().out)


def test_different_recipe_of_olive_is_the_same_claim():
    from benchmarks.records import claims

    def of(recipe, value):
        spread = {"value": value, "low": value, "high": value}
        row = {"bundle": "small", "title": claims.OLIVE, "times_faster": spread}
        return {"baseline": "slow", "rows": {f"small: {claims.OLIVE}: model.onnx, {recipe}": row}}

    [claim] = claims.judge("compare", of("static QDQ", 10.5), of("static QOperator", 10.0))
    assert claim.reproduced


def test_olive_uses_our_calibration_images_and_runs_again_if_they_change(monkeypatch, tmp_path, tiny_bundle):
    """A stub replaces the Python of Olive and writes its arguments."""
    import numpy as np
    from PIL import Image

    from benchmarks.compare import olive_peer
    from mri_edge import Bundle
    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.split import SPLIT, Split, SplitImage
    from mri_edge.export.calibration.images import draw, record
    from mri_edge.storage.atomic import sha256_of

    data = tmp_path / "data"
    data.mkdir()
    for level in range(12):
        Image.new("L", (130, 130), level * 20).save(data / f"{level:02}.png")
    scans = sorted(data.iterdir())
    roles = ["train"] * 9 + ["test"] * 3
    pairs = enumerate(zip(scans, roles, strict=True))
    split = Split(tuple(SplitImage(scan.name, sha256_of(scan), i % 2, role) for i, (scan, role) in pairs))

    def calibrate(seed):
        drawn = draw(split.locate(data, "train"), 4, seed)
        with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
            writer.add_document(SPLIT, split.to_json())
            writer.update(calibration=record(drawn, "minmax", seed))
        return drawn

    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncp "$3" "$4"\necho "{\\"threads\\": $5}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(olive_peer, "FRESH", tmp_path / "fresh")

    drawn = calibrate(seed=0)
    model, facts = olive_peer.olive_model(str(python), Bundle.open(tiny_bundle), data, threads=3)
    assert facts == {"threads": 3}
    levels = [int(path.stem) * 20 for path in drawn]
    assert np.load(model).reshape(4, -1).mean(axis=1).tolist() == levels
    assert olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=3) == (model, facts)
    assert isinstance(olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=2)[0], str)
    assert calibrate(seed=1) != drawn
    assert isinstance(olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=3)[0], str)
    scans[int(calibrate(seed=1)[0].stem)].write_bytes(scans[11].read_bytes())
    text, _ = olive_peer.olive_model(str(python), Bundle.open(tiny_bundle), data, threads=3)
    assert str(scans[0].parent) in text


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("claims", "suites", "busy", "fails", "ran"),
    [(0, 0, "", False, True), (5, 0, "", True, True), (0, 1, "", True, True), (5, 0, "1", True, False)],
    ids=["all pass", "a claim fails", "a suite fails", "busy"],
)
def test_make_bench_runs_its_suites_even_if_claims_fail(tmp_path, claims, suites, busy, fails, ran):
    """Stubs replace Python and pytest and print their arguments."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name, code in (("python", f'case "$2" in *claims) exit {claims};; esac'), ("pytest", f"exit {suites}")):
        (venv / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*"\n{code}\n')
        (venv / "bin" / name).chmod(0o755)
    for made in (".dev", ".bench"):
        (venv / made).touch()
    command = ["make", "bench", f"VENV={venv}", f"DATA={tmp_path / 'none'}", f"BUSY={busy}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert bool(done.returncode) is fails, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ("pytest benchmarks/suites -s" in lines) is ran
    assert ("python -m benchmarks.compare.engines --busy" in lines) is bool(busy)


@pytest.mark.parametrize("peer", ["mri_edge_engine", "onnxruntime_script", "openvino_api"])
def test_peers_return_the_same_probabilities(peer, tiny_onnx, tmp_path):
    import numpy as np

    if peer == "openvino_api":
        pytest.importorskip("openvino", reason="OpenVINO is an extra")
    tensors = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    np.save(tmp_path / "tensors.npy", tensors)
    request = {"peer": peer, "model": str(tiny_onnx), "threads": 1, "tensors": str(tmp_path / "tensors.npy")}
    request |= {"seconds": 0.01, "queries": 3, "samples": 4, "batch": 2, "answers": True}
    command = [sys.executable, "-m", "benchmarks.compare.run_peer", json.dumps(request)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["ms"]) >= 3
    assert found["rate"] > 0
    from mri_edge.engines import open_engine

    expected = open_engine(tiny_onnx, engine="onnxruntime", provider="cpu").run(tensors)
    # If the CPU supports bfloat16, OpenVINO computes in it, with 8 bits of mantissa.
    np.testing.assert_allclose(found["probabilities"], expected, atol=5e-3 if peer == "openvino_api" else 1e-5)


def test_multiply_adds_are_counted(tiny_bundle):
    from benchmarks.compare.roof import multiply_adds
    from mri_edge import Bundle

    # Convolution: 16 x 16 positions, 4 channels, 8 x 8 x 3 weights. Dense layer: 1024 x 2.
    assert multiply_adds(Bundle.open(tiny_bundle)) == 16 * 16 * 4 * 8 * 8 * 3 + 1024 * 2


def test_undisturbed_clock_counts_sleep_and_work():
    import time

    from benchmarks.guard import undisturbed
    from benchmarks.processes import cpu_seconds

    start = time.perf_counter()
    spent = undisturbed.seconds_of(lambda: time.sleep(0.05))
    assert spent + 1e-3 >= 0.05
    assert spent <= time.perf_counter() - start
    assert cpu_seconds([sys.executable, "-c", "import time; time.sleep(0.5)"]) < 0.5
    assert cpu_seconds([sys.executable, "-c", "sum(range(20_000_000))"]) > 0.1
    with pytest.raises(RuntimeError, match="no"):
        cpu_seconds([sys.executable, "-c", "raise SystemExit('no')"])


def test_wait_outside_the_measurement_is_not_subtracted(monkeypatch):
    """A thread may wait for a core between reading the clock and reading its wait. The time must not be negative."""
    import time

    from benchmarks.guard import undisturbed

    counted = iter((10_000_000, 20_000_000))

    def waits_before_it_counts():
        time.sleep(0.01)
        return next(counted)

    monkeypatch.setattr(undisturbed, "_open_wait_of_this_thread", lambda stack: waits_before_it_counts)
    assert undisturbed.seconds_of(lambda: None) >= 0


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_model_is_rebuilt_in_keras(name):
    """The results equal those of the embedded model: up to rounding for float, as its parity report says for int8."""
    pytest.importorskip("keras", reason="Keras builds the network (extra 'train')")
    import numpy as np

    from mri_edge import Bundle, Classifier
    from mri_edge.scans.readers import picture
    from mri_edge.train.models.network import predict
    from mri_edge.train.recipes.registry import find_recipe
    from scripts import whole_bundles

    bundle = Bundle.open(whole_bundles.EMBEDDED / name)
    preprocessing = bundle.manifest.preprocessing
    scans = sorted((CHECKOUT / "examples").glob("*.jpg"))
    pixels = np.stack([preprocessing.resize_picture(picture.load(scan)) for scan in scans])
    network = whole_bundles.keras_network(bundle, find_recipe(bundle.manifest.training.recipe))
    whole = (bundle.folder / whole_bundles.FLOAT).is_file()
    with Classifier.load(name, artifact=whole_bundles.FLOAT if whole else None) as shipped:
        difference = np.abs(predict(network.whole, pixels, preprocessing) - shipped.engine.run(pixels)).max()
        parity = shipped.artifact.parity
    assert difference < (1e-5 if whole else parity.max_difference)


def test_embedded_files_replace_rebuilt_ones(tmp_path):
    """int8 files made on another CPU differ by rounding, and in the label of one of the 51 images."""
    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.bundle import EMBEDDED, Bundle
    from scripts import whole_bundles

    shipped = Bundle.open(EMBEDDED / "small")
    with rewrite_bundle(shipped, tmp_path / "whole") as writer:
        artifact = shipped.artifact("int8.onnx")
        writer.path(artifact.file).write_bytes(b"made here")
        writer.add_artifact(artifact)
        writer.path("model.fp16.onnx").write_bytes(b"does not ship")
        writer.add_artifact(replace(artifact, file="model.fp16.onnx", precision="float16"))
    whole_bundles.restore_shipped("small", tmp_path / "whole")
    whole = Bundle.open(tmp_path / "whole")
    whole.verify()
    assert [artifact for artifact in whole.manifest.artifacts if artifact not in shipped.manifest.artifacts] == [
        whole.artifact("fp16.onnx")
    ]
    assert len(whole.manifest.artifacts) == len(shipped.manifest.artifacts) + 1
