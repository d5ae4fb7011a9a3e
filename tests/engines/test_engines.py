"""Every engine keeps the same contract, tested with tiny artifacts that hold the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_edge import engines
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import (
    ENGINE_ALIASES,
    PROVIDERS,
    Engine,
    engine_file,
    engine_files,
    engine_for,
    offered,
    open_engine,
)
from mri_edge.engines.ncnn import _input_shape
from mri_edge.errors import EngineError, EngineUnavailable, InputError, ProviderUnavailable, UsageError

# Engines sum in other orders, and one batch size may take another kernel than the next: float32
# rounding over the 1,024 terms of the tiny model's last sum, far below what moves a label.
SAME = 1e-5


@pytest.fixture(scope="session")
def tiny_fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fake") / "model.fake"
    path.write_text(json.dumps({"input": [128, 128, 3], "classes": 2}))
    return path


@pytest.fixture(scope="session")
def tiny_ir(tiny_onnx: Path) -> Path:
    """The tiny ONNX file as OpenVINO IR."""
    openvino = pytest.importorskip("openvino")
    folder = tiny_onnx.parent
    openvino.save_model(openvino.Core().read_model(tiny_onnx), folder / "model.xml", compress_to_fp16=False)
    path = folder / "model.openvino.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model.xml", "model.bin"):
            archive.write(folder / name, name)
    return path


@pytest.fixture(scope="session")
def tiny_ncnn(tiny_onnx: Path) -> Path:
    """The weights of the tiny ONNX file in a network for ncnn."""
    onnx = pytest.importorskip("onnx")
    values = {part.name: onnx.numpy_helper.to_array(part) for part in onnx.load(tiny_onnx).graph.initializer}
    description = """7767517
6 6
Input pixels 0 1 pixels 0=128 1=128 2=3
BinaryOp scale 1 1 pixels scaled 0=3 1=1 2=255.0
Convolution kernel 1 1 scaled maps 0=4 1=8 3=8 5=0 6=768 9=1
Reshape flatten 1 1 maps flat 0=1024
InnerProduct dense 1 1 flat logits 0=2 1=0 2=2048
Softmax softmax 1 1 logits probabilities 0=0 1=1
"""
    is_float = bytes(4)  # precedes each kernel
    weights = is_float + values["kernel"].tobytes() + is_float + values["dense"].T.tobytes()
    path = tiny_onnx.with_name("model.ncnn.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.param", description)
        archive.writestr("model.bin", weights)
    return path


ARTIFACTS = {
    ".onnx": "tiny_onnx",
    ".tflite": "tiny_tflite",
    ".fake": "tiny_fake",
    ".openvino.zip": "tiny_ir",
    ".ncnn.zip": "tiny_ncnn",
}


@pytest.fixture(params=sorted(engine_files()))
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Open a tiny artifact in each engine in turn; skip the test if the library is missing."""
    name = request.param
    file = engine_file(name)
    assert set(file.SUFFIXES) <= set(ARTIFACTS), f"engine {name!r} opens a new suffix: give the tests a tiny artifact"
    if reason := file.missing():
        pytest.skip(reason)
    artifact = request.getfixturevalue(ARTIFACTS[file.SUFFIXES[0]])
    made: list[Engine] = []

    def open_it(**options: Any) -> Engine:
        made.append(open_engine(artifact, engine=name, **{"threads": 1, "provider": "cpu", **options}))
        return made[-1]

    open_it.artifact, open_it.file = artifact, file  # type: ignore[attr-defined]
    yield open_it
    for engine in made:
        engine.close()


def _batch(size: int, seed: int = 0) -> np.ndarray[Any, Any]:
    # Of uneven brightness, so that the answers differ from one picture to the next.
    rng = np.random.default_rng(seed)
    return (rng.random((size, 128, 128, 3)) * rng.integers(1, 256, (size, 1, 1, 1))).astype(np.uint8)


# --- what an engine declares


def test_an_engine_reports_its_name_and_provider(opened: Callable[..., Engine]) -> None:
    threads = min(2, available_cpus())
    engine = opened(threads=threads)
    assert isinstance(engine, Engine)
    assert engine.name == opened.file.NAME
    assert engine.provider
    assert engine.threads == threads
    assert (engine.input.dtype, engine.input.shape[1:]) == ("uint8", (128, 128, 3))
    assert (engine.outputs[0].dtype, engine.outputs[0].shape[1:]) == ("float32", (2,))
    # ncnn takes one image at a time.
    assert engine.input.shape[0] == engine.outputs[0].shape[0] == (1 if engine.name == "ncnn" else None)


def test_an_engine_file_defines_every_required_name() -> None:
    for name, file in engine_files().items():
        assert name == file.NAME
        assert all(suffix.startswith(".") for suffix in file.SUFFIXES)
        assert isinstance(file.EXTRA, str)
        assert set(file.PROVIDERS) <= set(PROVIDERS)
        assert "auto" not in file.PROVIDERS
        assert file.missing() is None or isinstance(file.missing(), str)


def test_looking_for_engines_imports_no_engine_library() -> None:
    libraries = ("onnxruntime", "ai_edge_litert", "openvino", "tensorflow")
    program = (
        "import sys; from mri_edge.engines import engine_files; "
        "[module.missing() for module in engine_files().values()];"
        f"print([name for name in {libraries!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- running


def test_openvino_gives_one_answer_for_onnx_and_ir(tiny_onnx: Path, tiny_ir: Path) -> None:
    answers = []
    for path in (tiny_onnx, tiny_ir):
        engine = open_engine(path, engine="openvino", threads=1)
        answers.append(engine.run(_batch(5)))
        engine.close()
    assert np.array_equal(*answers)


def _archive(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "hostile.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("line", "shape"),
    [
        ("Input in0 0 1 in0 0=48 1=32 2=3", (32, 48)),
        ("\nInput in0 0 1 in0 0=48 1=32 2=3", (32, 48)),
        ("Input in0 0 1 in0 0=48 1=32 2=1", None),
        (f"Input in0 0 1 in0 0={'9' * 5000} 1=32 2=3", None),
        ("Input", None),
        ("\n \n", None),
    ],
)
def test_any_description_for_ncnn_gives_a_size_or_none(line: str, shape: tuple[int, int] | None) -> None:
    assert _input_shape(line.encode()) == shape


@pytest.mark.parametrize("kind", ["openvino", "ncnn"])
@pytest.mark.parametrize("fault", ["compressed", "one part", "another part", "no archive", "cut off", "no weights"])
def test_a_broken_archive_is_refused(kind: str, fault: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    original = request.getfixturevalue({"openvino": "tiny_ir", "ncnn": "tiny_ncnn"}[kind])
    with zipfile.ZipFile(original) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    description, weights = parts
    if fault == "compressed":
        path = _archive(tmp_path, parts, zipfile.ZIP_DEFLATED)
    elif fault == "one part":
        path = _archive(tmp_path, {description: parts[description]})
    elif fault == "another part":
        path = _archive(tmp_path, {**parts, "../evil": b""})
    elif fault == "no weights":
        path = _archive(tmp_path, {**parts, weights: b""})
    else:
        path = tmp_path / "hostile.zip"
        path.write_bytes(b"text" if fault == "no archive" else original.read_bytes()[:-30])
    path = path.rename(tmp_path / original.name)
    with pytest.raises(EngineError) as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)


def test_batches_of_every_size_give_the_rows_of_single_runs(opened: Callable[..., Engine]) -> None:
    engine = opened()
    batch = _batch(64)
    alone = np.concatenate([engine.run(picture[None]) for picture in batch])
    assert np.ptp(alone[:, 1]) > 0.1  # the model distinguishes the pictures
    for size in (64, 1, 0, 7, 64):
        answer = engine.run(batch[:size])
        assert answer.dtype == np.float32
        assert answer.shape == (size, 2)
        np.testing.assert_allclose(answer, alone[:size], atol=SAME)
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=SAME)


def test_engines_of_one_model_agree(tiny_onnx: Path, tiny_tflite: Path) -> None:
    answers = {}
    for file in engine_files().values():
        artifact = {".onnx": tiny_onnx, ".tflite": tiny_tflite}.get(file.SUFFIXES[0])
        if file.missing() or artifact is None:  # the artifacts of other engines have other weights
            continue
        engine = open_engine(artifact, engine=file.NAME, provider="cpu", threads=1)
        answers[file.NAME] = engine.run(_batch(5))
        engine.close()
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, answers["onnxruntime"], atol=SAME, err_msg=name)


def test_answers_stay_when_the_engine_runs_again(opened: Callable[..., Engine]) -> None:
    engine = opened()
    first = engine.run(_batch(3, seed=1))
    kept = first.copy()
    engine.run(_batch(3, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_views_are_taken_as_they_are(opened: Callable[..., Engine]) -> None:
    engine = opened()
    batch = _batch(4)
    wanted = engine.run(batch)
    grey = np.broadcast_to(batch[:, :, :, :1], batch.shape)  # read-only, one channel seen three times
    np.testing.assert_allclose(engine.run(np.asfortranarray(batch)), wanted, atol=SAME)
    np.testing.assert_allclose(engine.run(batch[::-1]), wanted[::-1], atol=SAME)
    np.testing.assert_allclose(engine.run(grey), engine.run(np.ascontiguousarray(grey)), atol=SAME)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 128, 128, 3), np.float32),
        np.zeros((1, 128, 128, 3), np.int8),
        np.zeros((128, 128, 3), np.uint8),
        np.zeros((1, 3, 128, 128), np.uint8),
        np.zeros((1, 128, 128, 1), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((1, 1, 128, 128, 3), np.uint8),
        np.uint8(0),
        [[1, 2]],
        None,
    ],
    ids=str,
)
def test_a_wrong_batch_is_reported_and_leaves_the_engine_usable(opened: Callable[..., Engine], wrong: Any) -> None:
    engine = opened()
    before = engine.run(_batch(2))
    with pytest.raises(InputError, match=r"batch must .*Received: "):
        engine.run(wrong)
    np.testing.assert_array_equal(engine.run(_batch(2)), before)


def test_two_engines_run_in_one_process(opened: Callable[..., Engine]) -> None:
    first, second = opened(), opened()
    wanted = first.run(_batch(3))
    np.testing.assert_allclose(second.run(_batch(3)), wanted, atol=SAME)
    first.close()
    np.testing.assert_allclose(second.run(_batch(3)), wanted, atol=SAME)
    first.close()  # as a `with` does after an explicit close


def test_four_threads_share_one_engine(opened: Callable[..., Engine]) -> None:
    engine = opened()
    batches = [_batch(size, seed) for seed in range(8) for size in (1, 3)]
    wanted = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.run, batches * 3))
    for answer, right in zip(answers, wanted * 3, strict=True):
        np.testing.assert_allclose(answer, right, atol=SAME)


def test_closing_an_engine_that_threads_use_raises_nothing_but_engine_errors(opened: Callable[..., Engine]) -> None:
    engine, batch = opened(), _batch(8)
    wanted = engine.run(batch)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(engine.run, batch) for _ in range(100)]
        runs[0].result()
        engine.close()
    for run in runs:
        if error := run.exception():
            assert isinstance(error, EngineError), repr(error)
        else:
            np.testing.assert_allclose(run.result(), wanted, atol=SAME)


@pytest.mark.skipif(available_cpus() < 2, reason="one core has no second thread to wait")
def test_threads_sleep_between_runs(opened: Callable[..., Engine]) -> None:
    """Idle threads must not use the CPU. By default those of ONNX Runtime spin for a third of these pauses."""
    engine = opened(threads=2)
    batch = _batch(1)
    engine.run(batch)
    pause, burned = 0.02, 0.0
    for _ in range(25):
        engine.run(batch)
        start = time.process_time()  # of all threads
        time.sleep(pause)
        burned += time.process_time() - start
    assert burned < 0.15 * 25 * pause  # OpenVINO's take some hundredths


@pytest.mark.parametrize("name", offered())
def test_engine_names_the_package_that_brings_its_library(name: str) -> None:
    """These names let a device profile notice a changed library, and doctor notice two installed ones."""
    file = engine_file(name)
    assert file.PACKAGES
    if reason := file.missing():
        pytest.skip(reason)
    brought_by = {
        package.lower().replace("_", "-") for package in packages_distributions()[file.MODULE.partition(".")[0]]
    }
    assert brought_by & set(file.PACKAGES)


# --- what cannot be had


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in ("auto", "cpu", "gpu")])
def test_an_explicit_provider_starts_or_is_refused(opened: Callable[..., Engine], provider: str) -> None:
    try:
        engine = opened(provider=provider)
    except ProviderUnavailable as error:
        named = str(error)
    else:  # a machine that has it: then it runs, under its own name
        named = engine.provider.lower().replace("dml", "directml")
        assert "cpu" not in named
    assert provider in named


def test_the_automatic_provider_always_starts(opened: Callable[..., Engine]) -> None:
    assert opened(provider="auto").provider


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")
def test_cuda_without_a_gpu_is_an_error_and_not_the_cpu(tiny_onnx: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="cuda") as caught:
        open_engine(tiny_onnx, provider="cuda")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000), None], ids=["empty", "text", "zeros", "half"])
def test_damaged_artifact_is_an_engine_error(
    opened: Callable[..., Engine], content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = opened.artifact.read_bytes()
    path = tmp_path / opened.artifact.name
    path.write_bytes(original[: len(original) // 2] if content is None else content)
    with pytest.raises(EngineError, match=path.name):
        open_engine(path, engine=opened.file.NAME, provider="cpu", threads=1)
    assert capfd.readouterr().out == ""


def test_missing_artifact_is_an_engine_error(opened: Callable[..., Engine], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="none"):
        open_engine(tmp_path / f"none{opened.file.SUFFIXES[0]}", engine=opened.file.NAME)


@pytest.mark.parametrize("dtype", ["FLOAT", "INT8"])
@pytest.mark.parametrize("engine", [name for name, module in engine_files().items() if ".onnx" in module.SUFFIXES])
def test_onnx_model_that_takes_something_else_is_refused(engine: str, dtype: str, tiny_models: Path) -> None:
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    path = _flat_onnx(tiny_models, [dtype])
    with pytest.raises(EngineError, match=r"model\.onnx"):
        open_engine(path, engine=engine, provider="cpu", threads=1)


@pytest.mark.parametrize("engine", [name for name, module in engine_files().items() if ".onnx" in module.SUFFIXES])
def test_onnx_model_of_two_inputs_is_refused(engine: str, tiny_models: Path) -> None:
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    path = _flat_onnx(tiny_models, ["UINT8", "UINT8"])
    with pytest.raises(EngineError, match=r"model\.onnx"):
        open_engine(path, engine=engine, provider="cpu", threads=1)


def _flat_onnx(folder: Path, dtypes: list[str]) -> Path:
    """A model that casts its inputs to float32, adds and flattens them."""
    path = folder / f"flat-{'-'.join(dtypes)}" / "model.onnx"
    if path.exists():
        return path
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    names = [f"image{i}" for i in range(len(dtypes))]
    nodes = [helper.make_node("Cast", [name], [f"float {name}"], to=TensorProto.FLOAT) for name in names]
    nodes += [
        helper.make_node("Sum", [f"float {name}" for name in names], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["probabilities"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, getattr(TensorProto, dtype), ["N", 128, 128, 3])
        for name, dtype in zip(names, dtypes, strict=True)
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 128 * 128 * 3])]
    model = helper.make_model(
        helper.make_graph(nodes, "flat", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path


# --- choosing


def test_suffix_chooses_the_engine() -> None:
    assert engine_for("a/model.int8.onnx").NAME == "onnxruntime"
    assert engine_for(Path("model.tflite")).NAME == "litert"
    with pytest.raises(EngineError, match="no engine opens such a file"):
        engine_for("model.keras")


def test_unknown_engine_provider_and_thread_count(tiny_onnx: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine 'abacus'") as caught:
        open_engine(tiny_onnx, engine="abacus")
    assert caught.value.hint == f"Engines: {', '.join(offered())}"
    assert "fake" not in caught.value.hint
    with pytest.raises(UsageError, match="unknown provider 'abacus'"):
        open_engine(tiny_onnx, provider="abacus")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        open_engine(tiny_onnx, threads=0)
    with pytest.raises(UsageError, match=r"opens \.tflite files"):
        open_engine(tiny_onnx, engine="litert")


@pytest.mark.parametrize("alias", ENGINE_ALIASES)
def test_an_engine_has_aliases(alias: str) -> None:
    assert engine_file(alias) is engine_files()[ENGINE_ALIASES[alias]]
    assert alias not in engine_files()  # an alias that is an engine would hide it


def test_more_threads_than_cores_are_refused(opened: Callable[..., Engine]) -> None:
    cores = available_cpus()
    with pytest.raises(UsageError, match=f"threads must be at most {cores}, .*Received: {cores + 1}"):
        opened(threads=cores + 1)
    assert opened(threads=cores).threads == cores


def test_an_error_about_a_missing_library_says_how_to_install_it(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_file("openvino"), "missing", lambda: "the package openvino is not installed")
    with pytest.raises(EngineUnavailable, match="the package openvino is not installed") as caught:
        open_engine(tiny_onnx, engine="openvino")
    assert caught.value.hint == "pip install 'mri-edge[openvino]'"
    assert engines.remedy(engine_file("onnxruntime")) == "pip install mri-edge"
    monkeypatch.setattr(engines, "is_32_bit_arm", lambda: True)
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(tiny_onnx, engine="openvino")
    assert caught.value.hint == "No engine has wheels for 32-bit ARM: use a 64-bit system image"


def test_threads_are_those_of_this_process_unless_named(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "available_cpus", lambda: 3)
    engine = open_engine(tiny_onnx, provider="cpu")
    assert engine.threads == 3
    engine.close()
