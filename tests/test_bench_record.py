"""README and the committed table say what the committed records say; peers are run as their file says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
BENCHMARKS = CHECKOUT / "benchmarks"

KINDS = sorted(one.parent for one in (BENCHMARKS / "results").glob("*/compare.json"))


@pytest.fixture
def programs(monkeypatch):
    """The folder of benchmarks on the path: it is no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_readme_is_what_the_records_say():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "draw.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run python benchmarks/draw.py\n{done.stderr}"


def test_a_figure_that_was_changed_by_hand_is_seen(programs, monkeypatch, tmp_path):
    import draw

    readme = tmp_path / "README.md"
    text = draw.README.read_text(encoding="utf-8")
    row = next(line for line in draw.between(text).splitlines() if "keras.Model.predict" in line)
    readme.write_text(text.replace(row, row.replace("0", "1", 1)), encoding="utf-8")
    monkeypatch.setattr(draw, "README", readme)
    assert draw.main(["--check"]) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_plots_are_there_and_hold_no_picture(kind):
    shown = re.findall(r"!\[(\w+)\]\(\1\.svg\)", (kind / "README.md").read_text(encoding="utf-8"))
    assert "cold_start" in shown
    for name in shown:
        text = (kind / f"{name}.svg").read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "<image" not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_figure_lies_between_its_rounds(kind):
    record = json.loads((kind / "compare.json").read_text(encoding="utf-8"))
    spreads = [row["times_faster"] for row in record["rows"].values() if "times_faster" in row]
    spreads += [row["model"]["median"] for row in record["rows"].values() if "model" in row]
    assert spreads
    assert all(one["low"] <= one["value"] <= one["high"] for one in spreads)


@pytest.mark.parametrize(
    ("ships", "moved", "shown"), [(True, 0.0, True), (True, 0.1, False), (False, 0.0, False)], ids=str
)
def test_accuracy_is_shown_of_the_model_that_ships_alone(programs, monkeypatch, ships, moved, shown):
    import draw

    from mri_edge.bundles.bundle import EMBEDDED, Bundle

    threshold = Bundle.open(EMBEDDED / "small").manifest.threshold

    def record(name, kind):
        rows = {"a": {"bundle": "small", "accuracy": {"value": 0.9}}}
        return {"ships": {"small": ships}, "thresholds": {"small": threshold + moved}, "rows": rows}

    monkeypatch.setattr(draw, "_record", record)
    for compared, *_ in draw.committed().values():
        assert ("accuracy" in compared["rows"]["a"]) is shown
        assert ("latency" in draw.plots_of(compared)) is shown


def test_records_lie_by_kind_of_machine(programs):
    import records

    assert records.kinds()[0] == records.MAIN
    for kind in records.kinds():
        facts = records.load("compare", kind)["machine"]
        assert records.kind_of_machine(facts) == kind


@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        ("AMD EPYC (x86_64): avx2, avx512, bf16, f16c, fma, vnni", "x86_64-vnni"),
        ("Intel(R) Core(TM) i5-4570 CPU (x86_64): avx2, f16c, fma", "x86_64-avx2"),
        ("Cortex-A76 (aarch64): dotprod, fp16, neon", "aarch64-dotprod"),
        ("unknown (riscv64): instructions unknown", "riscv64"),
    ],
)
def test_a_kind_of_machine_is_named_by_what_int8_rests_on(programs, cpu, kind):
    import records

    assert records.kind_of_machine({"cpu": cpu}) == kind


def test_no_profile_of_this_machine_is_measured_with(programs):
    import paired

    assert not Path(paired.ENVIRONMENT["MRI_EDGE_PROFILE_DIR"]).exists()


def test_claims_are_judged_by_their_spread(programs):
    import claims

    record = {
        "baseline": "slow",
        "rows": {
            name: {"times_faster": {"value": v, "low": v - 1, "high": v + 1}} for name, v in (("slow", 1), ("fast", 10))
        },
    }

    def fresh(value):
        return {"rows": {"fast": {"times_faster": {"value": value}}}}

    for value, reproduced in ((10.0, True), (7.0, False), (13.0, False)):
        [one] = claims.judge("x", fresh(value), record)
        assert (one.fresh, one.reproduced, one.judged) == (value, reproduced, True)


@pytest.mark.parametrize(
    ("title", "rows", "of_run", "code", "words"),
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
        *("peer missing", "nothing measured", "no baseline", "another CPU", "other cores", "cores not said"),
        *("a busy run", "without the data", "Olive was not asked for", "Olive was asked for"),
    ],
)
def test_a_claim_that_was_not_measured_is_not_reproduced(
    programs, monkeypatch, capsys, title, rows, of_run, code, words
):
    import claims

    faster = {"value": 10, "low": 9, "high": 11}
    record = {"baseline": "slow", "busy": False, "disturbed": [], "machine": {"cpu": "a", "cores": 2}}
    record["images"] = {"small": 51}
    fast = {"bundle": "small", "title": title, "times_faster": faster}
    record["rows"] = {"slow": {"times_faster": faster}, "fast": fast}
    monkeypatch.setattr(claims.records, "load", lambda name: record)
    monkeypatch.setattr(claims.records, "load_fresh", lambda name: {**record, "rows": rows, **of_run})
    assert claims.main() == code
    assert re.search(words, capsys.readouterr().out)


def test_another_of_olives_recipes_is_the_same_claim(programs):
    import claims

    def of(recipe, value):
        spread = {"value": value, "low": value, "high": value}
        row = {"bundle": "small", "title": claims.OLIVE, "times_faster": spread}
        return {"baseline": "slow", "rows": {f"small: {claims.OLIVE}: model.onnx, {recipe}": row}}

    [one] = claims.judge("compare", of("static QDQ", 10.5), of("static QOperator", 10.0))
    assert one.reproduced


def test_olive_is_calibrated_with_our_images_and_made_anew_when_they_change(
    programs, monkeypatch, tmp_path, tiny_bundle
):
    """A stand-in for Olive's Python writes what it was called with."""
    import numpy as np
    import olive_peer
    from PIL import Image

    from mri_edge import Bundle
    from mri_edge.authoring.writer import rewriting
    from mri_edge.bundles.split import SPLIT, Split, SplitImage
    from mri_edge.export.calibration.calibrate import draw, record
    from mri_edge.storage.atomic import sha256_of

    data = tmp_path / "data"
    data.mkdir()
    for level in range(12):
        Image.new("L", (130, 130), level * 20).save(data / f"{level:02}.png")
    scans = sorted(data.iterdir())
    roles = ["train"] * 9 + ["test"] * 3
    pairs = enumerate(zip(scans, roles, strict=True))
    split = Split(tuple(SplitImage(one.name, sha256_of(one), i % 2, role) for i, (one, role) in pairs))

    def calibrate(seed):
        drawn = draw(split.locate(data, "train"), 4, seed)
        with rewriting(Bundle.open(tiny_bundle)) as writer:
            writer.add_document(SPLIT, split.to_json())
            writer.update(calibration=record(drawn, "minmax", seed))
        return drawn

    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncp "$3" "$4"\necho "{\\"threads\\": $5}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(olive_peer, "FRESH", tmp_path / "kept")

    drawn = calibrate(seed=0)
    made, said = olive_peer.olive_model(str(python), Bundle.open(tiny_bundle), data, threads=3)
    assert said == {"threads": 3}
    levels = [int(one.stem) * 20 for one in drawn]
    assert np.load(made).reshape(4, -1).mean(axis=1).tolist() == levels
    assert olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=3) == (made, said)
    assert isinstance(olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=2)[0], str)
    assert calibrate(seed=1) != drawn
    assert isinstance(olive_peer.olive_model(None, Bundle.open(tiny_bundle), data, threads=3)[0], str)
    scans[int(calibrate(seed=1)[0].stem)].write_bytes(scans[11].read_bytes())
    told, _ = olive_peer.olive_model(str(python), Bundle.open(tiny_bundle), data, threads=3)
    assert str(scans[0].parent) in told


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("claims", "suites", "busy", "fails", "ran"),
    [(0, 0, "", False, True), (5, 0, "", True, True), (0, 1, "", True, True), (5, 0, "1", True, False)],
    ids=["all well", "a claim fails", "a suite fails", "busy"],
)
def test_make_bench_runs_its_suites_whatever_the_claims_say(tmp_path, claims, suites, busy, fails, ran):
    """Stand-ins for Python and pytest say what they were asked to run."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name, code in (("python", f'case "$1" in *claims.py) exit {claims};; esac'), ("pytest", f"exit {suites}")):
        (venv / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*"\n{code}\n')
        (venv / "bin" / name).chmod(0o755)
    for made in (".dev", ".bench"):
        (venv / made).touch()
    command = ["make", "bench", f"VENV={venv}", f"DATA={tmp_path / 'none'}", f"BUSY={busy}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert bool(done.returncode) is fails, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert ("pytest benchmarks -s" in lines) is ran
    assert ("python benchmarks/compare.py --busy" in lines) is bool(busy)


@pytest.mark.parametrize("peer", ["mri_edge_engine", "onnxruntime_script", "openvino_api"])
def test_peers_give_the_same_answer(programs, peer, tiny_onnx, tmp_path):
    import numpy as np

    if peer == "openvino_api":
        pytest.importorskip("openvino", reason="OpenVINO is an extra")
    tensors = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    np.save(tmp_path / "tensors.npy", tensors)
    request = {"peer": peer, "model": str(tiny_onnx), "threads": 1, "tensors": str(tmp_path / "tensors.npy")}
    request |= {"seconds": 0.01, "queries": 3, "samples": 4, "batch": 2, "answers": True}
    command = [sys.executable, str(BENCHMARKS / "run_peer.py"), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["ms"]) >= 3
    assert found["rate"] > 0
    from mri_edge.engines import open_engine

    expected = open_engine(tiny_onnx, engine="onnxruntime", provider="cpu").run(tensors)
    # OpenVINO computes in bfloat16 by itself where the CPU has it: 8 bits of mantissa.
    np.testing.assert_allclose(found["probabilities"], expected, atol=5e-3 if peer == "openvino_api" else 1e-5)


def test_multiply_adds_are_counted(programs, tiny_bundle):
    from macs import multiply_adds

    from mri_edge import Bundle

    # 16 x 16 places, 4 channels, 8 x 8 x 3 each; then 1024 x 2.
    assert multiply_adds(Bundle.open(tiny_bundle)) == 16 * 16 * 4 * 8 * 8 * 3 + 1024 * 2


def test_the_undisturbed_clock_counts_sleep_and_work(programs):
    import time

    import undisturbed

    start = time.perf_counter()
    spent = undisturbed.seconds_of(lambda: time.sleep(0.05))
    assert spent + 1e-3 >= 0.05
    assert spent <= time.perf_counter() - start
    assert undisturbed.cpu_seconds([sys.executable, "-c", "import time; time.sleep(0.5)"]) < 0.5
    assert undisturbed.cpu_seconds([sys.executable, "-c", "sum(range(20_000_000))"]) > 0.1
    with pytest.raises(RuntimeError, match="no"):
        undisturbed.cpu_seconds([sys.executable, "-c", "raise SystemExit('no')"])


def test_a_wait_beside_what_is_measured_is_not_taken_off(programs, monkeypatch):
    """A thread that waits for a core between looking at the clock and at its count must not seem to take no time."""
    import time

    import undisturbed

    counted = iter((10_000_000, 20_000_000))

    def waits_before_it_counts():
        time.sleep(0.01)
        return next(counted)

    monkeypatch.setattr(undisturbed, "_of_this_thread", lambda stack: waits_before_it_counts)
    assert undisturbed.seconds_of(lambda: None) >= 0


@pytest.mark.parametrize("name", ["small", "vgg16"])
def test_an_embedded_model_comes_back_in_keras(programs, name):
    """Its answers are the shipped ones: to rounding where float weights ship, as parity allows where int8 does."""
    pytest.importorskip("keras", reason="Keras builds the network (extra 'train')")
    import numpy as np
    import whole_bundles

    from mri_edge import Bundle, Classifier
    from mri_edge.scans.readers import picture
    from mri_edge.train.models.network import predict
    from mri_edge.train.recipes.registry import find_recipe

    bundle = Bundle.open(whole_bundles.EMBEDDED / name)
    preprocessing = bundle.manifest.preprocessing
    scans = sorted((CHECKOUT / "examples").glob("*.jpg"))
    pixels = np.stack([preprocessing.fit(picture.load(one)) for one in scans])
    network = whole_bundles.keras_network(bundle, find_recipe(bundle.manifest.training.recipe))
    whole = (bundle.folder / whole_bundles.FLOAT).is_file()
    with Classifier.load(name, artefact=whole_bundles.FLOAT if whole else None) as shipped:
        apart = np.abs(predict(network.whole, pixels, preprocessing) - shipped.engine.run(pixels)).max()
    assert apart < (1e-5 if whole else 0.03)


def test_what_ships_is_measured_as_it_ships(programs, tmp_path):
    """int8 made on another CPU differs in a rounding here and there, and its label in an image of the 51."""
    import whole_bundles

    from mri_edge.authoring.writer import rewriting
    from mri_edge.bundles.bundle import EMBEDDED, Bundle

    shipped = Bundle.open(EMBEDDED / "small")
    with rewriting(shipped, tmp_path / "whole") as writer:
        artefact = shipped.artefact("int8.onnx")
        writer.path(artefact.file).write_bytes(b"made here")
        writer.add_artefact(artefact)
        writer.path("model.fp16.onnx").write_bytes(b"does not ship")
        writer.add_artefact(replace(artefact, file="model.fp16.onnx", precision="float16"))
    whole_bundles.put_shipped("small", tmp_path / "whole")
    whole = Bundle.open(tmp_path / "whole")
    whole.verify()
    assert [one for one in whole.manifest.artefacts if one not in shipped.manifest.artefacts] == [
        whole.artefact("fp16.onnx")
    ]
    assert len(whole.manifest.artefacts) == len(shipped.manifest.artefacts) + 1
