"""Shared fixtures: the real scans, a tiny seeded ONNX model, a tiny bundle."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.manifest import Artifact, Creation, HeatmapScore, Manifest, Metric, TensorSpec, Training
from mri_edge.inference.heatmap.score import FIGURE
from mri_edge.scans.preprocessing import Preprocessing

# A process that was started in the background ignores SIGINT, and its children inherit that. Tests interrupt programs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As in ``load_keras``: test modules import TensorFlow before they call it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

CHECKOUT = Path(__file__).resolve().parents[1]
# Variables that the tests read: the folders of the real scans, of the tiny models, and of public image test suites.
READ_BY_TESTS = ("MRI_EDGE_DATA", "MRI_EDGE_TINY", "MRI_EDGE_SUITES")
# Coverage traces every Python process, which then writes a data file. The processes of these tests run without it,
# because the tests check the files that a process writes, its limits or its CPU time.
UNTRACED = ("test_no_network.py", "test_picture_limits.py", "test_a_limit_on_file_sizes_is_a_full_disk")
SLOW_TIMEOUT = 900  # seconds for a test that is marked slow; pyproject.toml sets the limit for the others


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give slow tests more time, if pytest-timeout is installed. Devices run the tests without it.

    Workers of pytest-xdist begin with the files that contain most slow tests, so that none is left to run alone at the
    end. ``--no-loadscope-reorder`` keeps this order.
    """
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the options and device profiles of this machine out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MRI_EDGE_") and name not in READ_BY_TESTS:
                patch.delenv(name)
        patch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path_factory.getbasetemp() / "no-profiles"))
        # Training records the path of its data folder there. Keep that out of the user's home.
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        # If this variable were set, a program that forgets to flush its output would pass the tests.
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        yield


@pytest.fixture(autouse=True)
def untraced_processes(request: pytest.FixtureRequest) -> None:
    """Keep coverage out of the processes that the tests in UNTRACED start."""
    if any(name in request.node.nodeid for name in UNTRACED):
        request.getfixturevalue("monkeypatch").delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    """Restore the logger, which commands in the test process configure, because the next test may read the log."""
    logger = logging.getLogger("mri_edge")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def scans() -> Path:
    """The data folder with ``navoneel/no`` and ``navoneel/yes``. Skips the test if there is none."""
    folder = Path(os.environ.get("MRI_EDGE_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (folder / "navoneel" / "yes").is_dir():
        pytest.skip(f"no real scans: {folder} has no navoneel/yes; set MRI_EDGE_DATA to the data folder")
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models. ``MRI_EDGE_TINY`` sets it, for a device that cannot build them."""
    folder = os.environ.get("MRI_EDGE_TINY")
    return Path(folder) if folder else tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_models: Path) -> Path:
    """A seeded ONNX model with 3 layers: uint8 (N, 128, 128, 3) RGB -> float32 (N, 2), rows sum to 1."""
    path = tiny_models / "model.onnx"
    if path.exists():
        return path
    onnx = pytest.importorskip("onnx", reason="the tiny model is built with onnx (group 'dev')")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "kernel"], ["maps"], strides=[8, 8]),
            helper.make_node("Relu", ["maps"], ["active"]),
            helper.make_node("Flatten", ["active"], ["flat"]),
            helper.make_node("Gemm", ["flat", "dense"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 128, 128, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            weights("kernel", 4, 3, 8, 8),
            weights("dense", 4 * 16 * 16, 2),
        ],
    )
    # These versions are old, so every supported ONNX Runtime can open the model.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def tiny_tflite(tiny_onnx: Path) -> Path:
    """The weights of ``tiny_onnx`` as TFLite."""
    path = tiny_onnx.with_name("model.tflite")
    if path.exists():
        return path
    if not find_spec("tensorflow"):
        pytest.skip("the tiny TFLite file is made with tensorflow (extra 'export')")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import onnx
    import tensorflow as tf
    from onnx import numpy_helper

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tiny_onnx).graph.initializer}

    @tf.function(input_signature=[tf.TensorSpec((None, 128, 128, 3), tf.uint8)])
    def answer(image: Any) -> Any:
        scaled = tf.cast(image, tf.float32) / 255
        maps = tf.nn.relu(tf.nn.conv2d(scaled, weights["kernel"].transpose(2, 3, 1, 0), 8, "VALID"))
        flat = tf.reshape(tf.transpose(maps, (0, 3, 1, 2)), (-1, 1024))
        return tf.nn.softmax(flat @ weights["dense"])

    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([answer.get_concrete_function()], module)
    path.write_bytes(converter.convert())
    return path


@pytest.fixture(scope="session")
def tiny_manifest() -> Manifest:
    """A complete manifest without artifacts."""
    return Manifest(
        name="tiny",
        version="1",
        labels=("no", "yes"),
        positive=1,
        threshold=None,
        preprocessing=Preprocessing(),
        artifacts=(),
        creation=Creation(
            created="2026-01-01T00:00:00+00:00",
            command="pytest",
            code_version="0",
            code_commit=None,
            libraries={},
            platform="any",
        ),
        training=Training(
            recipe="none",
            seed=2,
            backbone="none",
            backbone_weights="random",
            backbone_sha256="0" * 64,
            data_fingerprint="0" * 64,
            split="none",
            split_fingerprint="0" * 64,
            train_images=0,
            test_images=0,
            classes={"no": ["no"], "yes": ["yes"]},
        ),
    )


@pytest.fixture(scope="session")
def tiny_artifact() -> Artifact:
    """The manifest's entry for ``tiny_onnx`` as ``model.onnx``, without its size and hash."""
    return Artifact(
        file="model.onnx",
        format="onnx",
        precision="float32",
        size_bytes=0,
        sha256="",
        input=TensorSpec("image", "uint8", (None, 128, 128, 3)),
        output=TensorSpec("probabilities", "float32", (None, 2)),
    )


@pytest.fixture(scope="session")
def written_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path, tiny_manifest: Manifest, tiny_artifact: Artifact
) -> Path:
    """The bundle folder that ``tiny_bundle`` copies. The writer waits for the disk, which a copy does not."""
    folder = tmp_path_factory.mktemp("written") / "tiny"
    with new_bundle(folder, tiny_manifest) as writer:
        writer.path("model.onnx").write_bytes(tiny_onnx.read_bytes())
        writer.add_artifact(tiny_artifact)
    return folder


@pytest.fixture
def tiny_bundle(tmp_path: Path, written_bundle: Path) -> Path:
    """A new bundle folder for each test. Its only artifact is ``model.onnx``, a copy of ``tiny_onnx``."""
    return shutil.copytree(written_bundle, tmp_path / "tiny")


@pytest.fixture
def heatmap_score() -> Callable[..., HeatmapScore]:
    """Return a function that makes a score of heatmaps with one figure, for an artifact or for another hash."""

    def make(artifact: Artifact, value: float, *, sha256: str | None = None, figure: str = FIGURE) -> HeatmapScore:
        return HeatmapScore(
            created="2026-01-01T00:00:00+00:00",
            artifact=artifact.file,
            sha256=sha256 or artifact.sha256,
            engine="onnxruntime",
            provider="CPUExecutionProvider",
            method="covering",
            scans=60,
            lesions=120,
            data="healthy",
            fingerprint="0" * 64,
            metrics={figure: Metric(value, value - 0.1, value + 0.05, 120, "wilson")},
        )

    return make


@pytest.fixture
def as_user() -> list[str]:
    """Return a command prefix that drops privileges, because root may read a folder of mode 0."""
    if os.geteuid():
        return []
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], check=False).returncode:
        pytest.skip("root cannot drop its privileges here")
    return drop


@pytest.fixture
def recipe_code() -> Callable[[str], str]:
    """Return a function that returns the first Python block below a heading of CONTRIBUTING.md."""

    def find(heading: str) -> str:
        text = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
        code = re.search(r"```python\n(.*?)```", text.partition(f"## {heading}")[2], re.DOTALL)
        assert code
        return code[1]

    return find


@pytest.fixture
def write_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Register a reader of files with geometry, and return a function that writes such a file.

    The function takes a name, the mean gray level of each frame (None: a frame that cannot be read), and changes to the
    facts of the frames. Frame i lies ``i * step`` mm above ``at``.
    """
    from types import ModuleType

    from mri_edge.errors import InputError
    from mri_edge.scans import readers
    from mri_edge.scans.frame import Frame
    from mri_edge.scans.options import ReadOptions
    from mri_edge.scans.series import SliceFacts

    def read(source: Any, options: ReadOptions) -> Iterator[Frame]:
        content = json.loads(Path(source).read_text())
        for index, level in enumerate(content["levels"]):
            if level is None:
                raise InputError(f"{source}: damaged frame", code="damaged")
            step = 60 if level < 128 else -60  # a stripe, because a blank slice does not count
            pixels = np.full((128, 128, 3), max(0, level - step // 15), np.uint8)
            pixels[:, 40:48] = level + step
            yield Frame(pixels, str(source), index, len(content["levels"]))

    def slice_facts(path: str, options: ReadOptions) -> Iterator[SliceFacts]:
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:
            raise InputError(f"{path}: damaged header", code="damaged") from error
        for index in range(len(content["levels"])):
            facts = {
                "kind": "test",
                "orientation": (1, 0, 0, 0, 1, 0),
                "position": (0, 0, content["at"] + index * content["step"]),
                **{key: tuple(value) if isinstance(value, list) else value for key, value in content["facts"].items()},
            }
            facts.pop("code", None)
            if refusal := facts.pop("refusal", None):
                facts["refusal"] = InputError(f"{path}: {refusal}", code=content["facts"].get("code", "localizer"))
            yield SliceFacts(path, index, len(content["levels"]), **facts)

    module = ModuleType("mri_edge.scans.readers.slices")
    module.__dict__.update(NAME="slices", SUFFIXES=(".slices",), read=read, slice_facts=slice_facts)
    module.__dict__["recognizes"] = lambda head, path: False
    names = [*readers._names(), "slices"]
    reader = readers._reader
    monkeypatch.setattr(readers, "_names", lambda: names)
    monkeypatch.setattr(readers, "_reader", lambda name: module if name == "slices" else reader(name))

    def write(name: str, *levels: int | None, at: float = 0, step: float = 5, **facts: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"levels": levels, "at": at, "step": step, "facts": facts}))
        return path

    return write
