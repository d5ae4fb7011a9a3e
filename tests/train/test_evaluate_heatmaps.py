"""``mri-edge evaluate --heatmaps``: a network that reacts to bright spots has known figures; bad input is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.authoring.card import CARD
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import TensorSpec
from mri_edge.bundles.split import CONDENSED, SPLIT, Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import BundleError, DataError, UsageError
from mri_edge.inference.prediction import HOT_SPOT
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")
pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")

from mri_edge.train.data.folder import list_scans
from mri_edge.train.data.healthy import find_healthy, healthy_labels
from mri_edge.train.evaluation import heatmap_score
from mri_edge.train.evaluation.heatmap_cases import choose_rows
from mri_edge.train.evaluation.heatmap_record import record_score, score_of
from mri_edge.train.evaluation.heatmaps import evaluate_heatmaps

SIDE = 64
SCANS = 12


def healthy_scan(seed: int, shape: tuple[int, int] = (96, 112)) -> Image.Image:
    """A head with a thin skull and coarse texture of its own, so that no two scans are near-duplicates."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radii = rng.uniform(0.40, 0.46), rng.uniform(0.38, 0.44)
    distance = np.hypot((rows - shape[0] / 2) / (radii[0] * shape[0]), (columns - shape[1] / 2) / (radii[1] * shape[1]))
    coarse = Image.fromarray(rng.normal(0, 9, (9, 9)).astype(np.float32))
    texture = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    tissue = np.clip(100 + texture, 80, 112)
    return Image.fromarray(np.where(distance < 1, np.where(distance > 0.95, 140, tissue), 0).astype(np.uint8))


@pytest.fixture(scope="session")
def spot_network(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ONNX model: log-odds are 0.4 times what the brightest 7 x 7 pixels are above a mean level of 118."""
    onnx = pytest.importorskip("onnx", reason="the model is built with onnx (group 'dev')")
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, values: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["gray"], axes=[3], keepdims=1),
            helper.make_node("Transpose", ["gray"], ["plane"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["plane"], ["means"], kernel_shape=[7, 7]),
            helper.make_node("ReduceMax", ["means"], ["brightest"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["brightest", "one"], ["column"]),
            helper.make_node("Sub", ["column", "level"], ["above"]),
            helper.make_node("MatMul", ["above", "gain"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "spot",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            constant("level", 118),
            constant("gain", [[-0.2, 0.2]]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture
def bundle(tmp_path, spot_network, tiny_manifest, tiny_artifact) -> Path:
    """A bundle with the spot network."""
    folder = tmp_path / "spot"
    manifest = replace(tiny_manifest, preprocessing=Preprocessing(height=SIDE, width=SIDE), threshold=0.5)
    with new_bundle(folder, manifest) as writer:
        writer.path("model.onnx").write_bytes(spot_network)
        writer.add_artifact(replace(tiny_artifact, input=TensorSpec("image", "uint8", (None, SIDE, SIDE, 3))))
    return folder


@pytest.fixture(scope="session")
def drawn_scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    for seed in range(SCANS):
        healthy_scan(seed).save(folder / f"scan-{'abcdefghijkl'[seed]}.png")
    return folder


@pytest.fixture
def scans(tmp_path, drawn_scans) -> Path:
    """A folder of healthy scans for each test."""
    return Path(shutil.copytree(drawn_scans, tmp_path / "scans"))


@pytest.fixture(scope="session")
def scored(tmp_path_factory, spot_network, tiny_manifest, tiny_artifact, drawn_scans):
    """The evaluation of the spot network on all scans, for tests that only read it."""
    folder = tmp_path_factory.mktemp("scored") / "spot"
    manifest = replace(tiny_manifest, preprocessing=Preprocessing(height=SIDE, width=SIDE), threshold=0.5)
    with new_bundle(folder, manifest) as writer:
        writer.path("model.onnx").write_bytes(spot_network)
        writer.add_artifact(replace(tiny_artifact, input=TensorSpec("image", "uint8", (None, SIDE, SIDE, 3))))
    return evaluate_heatmaps(Bundle.open(folder), drawn_scans)


def value(record, name: str) -> float:
    return record["metrics"][name]["value"]


# --- figures of a network that is understood


def test_network_that_reacts_to_bright_spots_is_understood(scored):
    record = scored.record
    assert record["lesions"] == 6 * SCANS  # fewer scans than the limit get a lesion of each look
    assert record["data"]["scans"] == SCANS
    assert record["data"]["groups"] > 8
    by_look = record["by_look"]
    assert by_look["solid"]["called"]["value"] > 0.7
    assert by_look["dark"]["called"]["value"] == 0
    assert value(record, "pointing_game") > 0.85
    assert value(record, "random_pointing_game") < 0.5
    assert value(record, "air") == 0
    assert value(record, "mass_in_lesion") > 2 * value(record, "lesion_share")
    assert record["metrics"]["deletion_minus_random"]["high"] < 0
    assert record["metrics"]["insertion_minus_random"]["low"] > 0
    assert value(record, "false_spots") < 0.5
    assert record["metrics"]["false_spots"]["images"] == SCANS


def test_each_lesion_is_described(scored):
    for case in scored.record["cases"]:
        assert case["called"] == (case["probability"] >= 0.5)
        if case["hit"]:
            assert np.hypot(*np.subtract(case["peak"], case["center"])) < 0.3
    assert {case["look"] for case in scored.record["cases"]} == set(scored.record["by_look"])


def test_record_is_plain(scored):
    assert json.loads(json.dumps(scored.record, allow_nan=False)) == scored.record
    assert scored.record["method"] == "covering"


FAULTS = {
    "inverted maps": (lambda heatmap: np.where(heatmap > 0, heatmap.max() - heatmap, 0), "pointing_game"),
    "maps of the air": (lambda heatmap: _corner(), "air"),
    "mirrored maps": (lambda heatmap: heatmap[:, ::-1], "pointing_game"),
    "transposed maps": (lambda heatmap: heatmap.T, "pointing_game"),
    "empty maps": (np.zeros_like, "pointing_game"),
}


def _corner() -> np.ndarray:
    heatmap = np.zeros((SIDE, SIDE), np.float32)
    heatmap[:3, :3] = 5
    return heatmap


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_maps_are_noticed(fault, bundle, scans, monkeypatch, scored):
    change, figure = FAULTS[fault]
    predict_batches = Classifier.predict_batches

    def changed(self, sources, **options):
        for result in predict_batches(self, sources, **options):
            heatmap = getattr(result, "heatmap", None)
            yield result if heatmap is None else replace(result, heatmap=change(heatmap).astype(np.float32))

    monkeypatch.setattr(Classifier, "predict_batches", changed)
    record = evaluate_heatmaps(Bundle.open(bundle), scans, limit=8).record
    if figure == "air":
        assert value(record, "air") == 1
        assert value(record, "pointing_game") == 0
        assert value(record, "false_spots") == 1
    else:
        assert value(record, "pointing_game") < value(scored.record, "pointing_game") - 0.3
        assert value(record, "deletion") > value(scored.record, "deletion")


def test_a_subset_gets_the_same_lesions(bundle, scans, scored):
    for path in sorted(scans.iterdir())[:8]:
        path.unlink()
    again = evaluate_heatmaps(Bundle.open(bundle), scans)
    assert len(again.cases) == 24
    known = {(case.scan.sha256, case.number): case for case in scored.cases}
    for case in again.cases:
        first = known[case.scan.sha256, case.number]
        assert np.array_equal(case.gray, first.gray)
        assert np.array_equal(case.heatmap, first.heatmap)
        assert case.look == first.look


def test_the_limit_takes_scans_of_many_groups(bundle, scans):
    record = evaluate_heatmaps(Bundle.open(bundle), scans, limit=3).record
    assert record["data"]["scans"] == record["data"]["groups"] == 3
    assert record["lesions"] == 6
    assert record["data"]["left_out"] == {"beyond the limit of scans": SCANS - 3}


def test_rows_are_chosen_from_as_many_groups_as_possible(scans):
    found = list_scans(scans, 0)
    group = np.array([0] * 9 + [1, 1, 2])
    for limit, counts in ((1, [1]), (3, [1, 1, 1]), (5, [2, 2, 1]), (100, [9, 2, 1])):
        rows = choose_rows(found, group, limit)
        assert len(set(rows)) == len(rows)
        assert sorted(np.bincount(group[rows])[np.unique(group[rows])].tolist(), reverse=True) == counts


# --- which scans


def test_only_scans_that_are_called_healthy_get_a_lesion(bundle, scans):
    bright = np.asarray(healthy_scan(50)).copy()
    bright[40:60, 40:60] = 220
    Image.fromarray(bright).save(scans / "bright.png")
    shutil.copy(scans / "scan-a.png", scans / "copy.png")
    record = evaluate_heatmaps(Bundle.open(bundle), scans, limit=20).record
    assert record["data"]["left_out"] == {"called yes": 1, "copy": 1}
    assert record["data"]["scans"] == SCANS
    assert "bright.png" not in {case["file"] for case in record["cases"]}


def test_scans_of_the_training_are_left_out(bundle, scans, capfd):
    files = sorted(scans.iterdir())
    roles = ["train"] * 3 + ["validation", "excluded", "test"]
    images = [SplitImage(f"no/{path.name}", sha256_of(path), 0, role) for path, role in zip(files, roles, strict=False)]
    images.append(SplitImage("yes/a.png", "0" * 64, 1, "test"))
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document(SPLIT, Split(tuple(images)).to_json())
    opened = Bundle.open(bundle)
    record = evaluate_heatmaps(opened, scans).record
    assert record["data"]["left_out"] == {"train": 3, "validation": 1, "excluded": 1}
    assert {case["file"] for case in record["cases"]} == {path.name for path in files[5:]}
    test = evaluate_heatmaps(opened, scans, role="test").record
    assert {case["file"] for case in test["cases"]} == {files[5].name}
    everything = evaluate_heatmaps(opened, scans, role="all").record
    assert everything["data"]["scans"] == SCANS
    assert "4 OF THESE 12 IMAGES WERE IN TRAINING" in everything["warnings"][0]
    for path in files[5:]:
        path.unlink()
    with pytest.raises(DataError, match="all 5 images are known from the bundle's training"):
        evaluate_heatmaps(opened, scans)


@pytest.mark.parametrize("condensed", [False, True])
@pytest.mark.parametrize("role", [None, "test"])
def test_excluded_copies_of_test_images_do_not_leave_them_out(role, condensed, bundle, scans):
    files = sorted(scans.iterdir())
    roles = ["train", "train", "excluded", "test", "test"]
    images = [SplitImage(f"no/{path.name}", sha256_of(path), 0, role) for path, role in zip(files, roles, strict=False)]
    copies = [replace(images[row], file=f"no/copy-{row}.png", role="excluded") for row in (0, 3)]
    split = Split((*images, *copies))
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document(*((CONDENSED, split.to_condensed()) if condensed else (SPLIT, split.to_json())))
    record = evaluate_heatmaps(Bundle.open(bundle), scans, role=role, limit=len(files)).record
    used = files[3:5] if role == "test" else files[3:]
    assert {case["file"] for case in record["cases"]} == {path.name for path in used}


def test_healthy_validation_scans_choose_the_limit_of_a_hot_spot(bundle, scans, monkeypatch, capfd):
    monkeypatch.setattr(heatmap_score, "_LEAST_HEALTHY", 4)
    images = [SplitImage(f"no/{path.name}", sha256_of(path), 0, "validation") for path in sorted(scans.iterdir())[:4]]
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document(SPLIT, Split(tuple(images)).to_json())
    with Classifier.load(bundle) as classifier:
        assert classifier.predict(scans / "scan-e.png").hot_spot == HOT_SPOT
        maxima = [float(classifier.predict(path, explain=True).heatmap.max()) for path in sorted(scans.iterdir())[:4]]
    assert record_with(bundle, scans, "--json") == 0
    limit = json.loads(capfd.readouterr().out)["hot_spot"]
    assert max(maxima) < limit <= max(maxima) + 0.1 + 1e-6
    with Classifier.load(bundle) as classifier:
        assert classifier.predict(scans / "scan-e.png").hot_spot == limit
    assert run(["info", str(bundle)]) == 0
    assert f"from {limit:g} log-odds" in capfd.readouterr().out


def test_class_folders_give_their_healthy_scans(bundle, scans, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scans, data / "no")
    (data / "yes").mkdir()
    healthy_scan(70).save(data / "yes" / "70.png")
    record = evaluate_heatmaps(Bundle.open(bundle), data, limit=2).record
    assert all(case["file"].startswith("no/") for case in record["cases"])
    found = find_healthy(data, Bundle.open(bundle).manifest)
    assert (len(found.scans), found.others) == (SCANS, 1)
    (data / "yes").rename(data / "ill")
    with pytest.raises(DataError, match="'ill' matches no label of the model"):
        find_healthy(data, Bundle.open(bundle).manifest)
    assert len(find_healthy(data, Bundle.open(bundle).manifest, "no=no,ill=yes").scans) == SCANS
    healthy_scan(71).save(data / "loose.png")
    (data / "ill").rename(data / "yes")
    with pytest.raises(DataError, match=r"contains pictures \(loose.png\) and folders of the model's labels"):
        find_healthy(data, Bundle.open(bundle).manifest)


def test_any_other_folder_is_healthy_with_its_subfolders(bundle, scans):
    (scans / "more" / "deeper").mkdir(parents=True)
    healthy_scan(80).save(scans / "more" / "deeper" / "80.png")
    (scans / ".hidden").mkdir()
    healthy_scan(81).save(scans / ".hidden" / "81.png")
    (scans / "link").symlink_to(scans)
    (scans / "notes.txt").write_text("no picture")
    found = find_healthy(scans, Bundle.open(bundle).manifest)
    assert len(found.scans) == SCANS + 1
    assert found.scans[0].file == "more/deeper/80.png"


def test_folder_without_healthy_scans_is_refused(bundle, tmp_path, scans):
    manifest = Bundle.open(bundle).manifest
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in it"):
        find_healthy(tmp_path / "empty", manifest)
    for rule in (None, "healthy=no"):
        with pytest.raises(DataError, match="no such folder"):
            find_healthy(tmp_path / "none", manifest, rule)
    data = tmp_path / "data"
    shutil.copytree(scans, data / "yes")
    with pytest.raises(DataError, match=r"no healthy scan\. All 12 scans are yes; healthy: 'no'"):
        find_healthy(data, manifest)
    with pytest.raises(DataError, match="its name says that its scans are 'yes'"):
        find_healthy(data / "yes", manifest)


def test_labels_that_mean_healthy(tiny_manifest):
    assert healthy_labels(tiny_manifest) == {0}
    several = replace(tiny_manifest, labels=("glioma", "notumor", "pituitary"), positive=None)
    assert healthy_labels(several) == {1}
    assert healthy_labels(replace(several, positive=2)) == {0, 1}
    by_folder = replace(
        several, labels=("a", "b"), training=replace(several.training, classes={"a": ["x"], "b": ["No"]})
    )
    assert healthy_labels(by_folder) == {1}
    unknown = replace(several, labels=("a", "b", "c"), training=replace(several.training, classes={}))
    with pytest.raises(UsageError, match="not known which of its labels means a healthy scan"):
        healthy_labels(unknown)


def test_model_that_calls_no_scan_healthy_is_reported(bundle, scans):
    opened = Bundle.open(bundle)
    always = replace(opened, manifest=replace(opened.manifest, threshold=0.0))
    with pytest.raises(DataError, match=r"calls none of 12 scans 'no' \(answers: yes 12\)"):
        evaluate_heatmaps(always, scans)


def test_no_called_lesion_leaves_figures_out(bundle, scans):
    opened = Bundle.open(bundle)
    never = replace(opened, manifest=replace(opened.manifest, threshold=1.0))
    record = evaluate_heatmaps(never, scans, limit=3).record
    assert record["called"] == 0
    assert "pointing_game" not in record["metrics"]
    assert "pointing_game_not_called" in record["metrics"]
    assert record["curves"] == {}
    assert "called none of the 6 drawn lesions" in record["warnings"][-1]


def test_scans_without_a_head_get_no_lesion(bundle, scans, tmp_path):
    data = tmp_path / "blank"
    data.mkdir()
    Image.fromarray(np.full((80, 80), 3, np.uint8)).save(data / "blank.png")
    with pytest.raises(DataError, match="1 show no head"):
        evaluate_heatmaps(Bundle.open(bundle), data)
    shutil.copy(scans / "scan-a.png", data)
    assert evaluate_heatmaps(Bundle.open(bundle), data).record["data"]["left_out"] == {"without a head": 1}


# --- the command


def test_command_writes_record_and_page(bundle, scans, tmp_path, capfd):
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    out = tmp_path / "report"
    options = ["--heatmaps", "--data", str(scans), "--scans", "4", "--json", "--out", str(out)]
    assert run(["evaluate", str(bundle), *options]) == 1
    printed, said = capfd.readouterr()
    record = json.loads(printed)
    assert "broken.png: damaged picture" in said
    assert [failure["file"] for failure in record["unreadable"]] == ["broken.png"]
    assert json.loads((out / "heatmaps.json").read_text()) == record
    page = (out / "heatmaps.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[\w+/=]*", "", page)
    assert page.count('<svg role="img"') == 2
    assert len([source for source in sources if source.startswith("data:")]) >= record["lesions"]
    for text in ("Research use only", "peak in the lesion, called lesions", "broken.png", "By look", str(scans)):
        assert text in page
    assert "Intervals of peak in the lesion, called lesions, " in page  # as the table names them
    assert "pointing game" not in page


def test_command_prints_tables(bundle, scans, capfd):
    assert run(["evaluate", str(bundle), "--heatmaps", "--data", str(scans), "--scans", "3"]) == 0
    printed = capfd.readouterr().out
    for text in ("peak in the lesion, called lesions", "healthy scans with a hot spot", "By look", "Research use only"):
        assert text in printed
    assert re.search(r"the same, minus that of a random map +[-+]0\.\d{3} \(", printed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record"], "--record needs --heatmaps"),
        (["--scans", "3"], "--scans needs --heatmaps"),
        (["--heatmaps", "--cv", "5"], "--heatmaps scores a model, and --cv a recipe"),
        (["--heatmaps", "--epochs", "5"], "--epochs applies to training"),
        (["--heatmaps", "--scans", "0"], "--scans"),
    ],
)
def test_options_that_do_not_go_together(options, message, bundle, scans, capfd):
    assert run(["evaluate", str(bundle), "--data", str(scans), *options]) == 2
    assert message in capfd.readouterr().err


# --- the score in the bundle


def record_with(bundle: Path, scans: Path, *options: str) -> int:
    return run(["evaluate", str(bundle), "--heatmaps", "--data", str(scans), "--scans", "3", "--record", *options])


def test_record_stores_the_score_in_manifest_card_and_info(bundle, scans, capfd):
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_card()
    (bundle / "notes").write_text("mine")
    before = Bundle.open(bundle).manifest
    assert record_with(bundle, scans, "--json") == 0
    record = json.loads(capfd.readouterr().out)
    opened = Bundle.open(bundle)
    opened.verify()
    score = opened.manifest.heatmaps
    assert replace(opened.manifest, heatmaps=None, documents=()) == replace(before, documents=())
    assert opened.manifest.content_hash == before.content_hash
    assert (score.artifact, score.engine, score.method) == ("model.onnx", "onnxruntime", "covering")
    assert score.sha256 == before.artifacts[0].sha256
    assert (score.scans, score.lesions) == (3, record["lesions"])
    assert score.metrics["pointing_game"].value == value(record, "pointing_game")
    assert score.metrics["pointing_game_all_solid"].images == record["by_look"]["solid"]["pointing_game_all"]["images"]
    assert not any(path.name in (bundle / "manifest.json").read_text() for path in scans.iterdir())
    assert (bundle / "notes").read_text() == "mine"
    figure = record["metrics"]["pointing_game"]
    text = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f}), {figure['images']} maps"
    assert text in (bundle / CARD).read_text()
    assert run(["info", str(bundle)]) == 0
    printed = capfd.readouterr().out
    assert text in printed
    assert "model.onnx in onnxruntime (CPUExecutionProvider): covering" in printed


def test_score_is_dropped_with_its_artifact(bundle, scans, scored):
    record_score(Bundle.open(bundle), scored.record)
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.path("other.onnx").write_bytes((bundle / "model.onnx").read_bytes())
        writer.add_artifact(replace(writer.manifest.artifacts[0], file="other.onnx"))
    assert Bundle.open(bundle).manifest.heatmaps == score_of(scored.record)
    with rewrite_bundle(Bundle.open(bundle), keep=["other.onnx"]):
        pass
    assert Bundle.open(bundle).manifest.heatmaps is None


def test_signed_bundle_is_not_changed(bundle, scans, tmp_path, capfd):
    pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
    from mri_edge.authoring.signing import sign
    from mri_edge.bundles.signatures import make_keys

    make_keys(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    sign(Bundle.open(bundle), tmp_path / "key.pem", passphrase=lambda: b"")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert record_with(bundle, scans) == 3
    error = capfd.readouterr().err
    assert "is signed, and storing a score would remove the signature. Its owner can store" in error
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_packed_and_embedded_bundles_are_not_changed(bundle, scans, tmp_path, capfd):
    packed = tmp_path / "spot.mribundle"
    assert run(["bundle", "pack", str(bundle), "--out", str(packed)]) == 0
    assert record_with(packed, scans) == 3
    assert "is packed, and a folder is needed" in capfd.readouterr().err
    assert record_with(Path("small"), scans) == 3
    assert "small: is embedded in the package" in capfd.readouterr().err
    with pytest.raises(BundleError, match="embedded"):
        record_score(Bundle.open("small"), {})
