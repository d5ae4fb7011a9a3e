"""Execution providers: which ones are tried, what strict means, and why one did not start. No GPU is needed.

A stand-in takes the place of the onnxruntime package. It behaves as the real one was seen to: a
provider that cannot start is dropped in silence, and a strict session then refuses to be made.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier, ProviderUnavailable
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.engines import PROVIDERS, _nvidia, engine_file, open_engine
from mri_edge.engines.onnxruntime import choose_providers
from mri_edge.errors import EngineError

SCAN = Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg"
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_WHEEL = [TENSORRT, CUDA, CPU]


class StandIn(types.ModuleType):
    """A fake onnxruntime with ``built_in`` providers: ``working`` ones start, ``partial`` ones run some nodes."""

    def __init__(self, folder: Path, built_in: list[str], working: list[str], partial: tuple[str, ...] = ()) -> None:
        super().__init__("onnxruntime")
        self.__file__ = str(folder / "__init__.py")
        self.__spec__ = ModuleSpec("onnxruntime", None)
        self.opened: list[tuple[str, ...]] = []
        self.settings: dict[str, str] = {}
        outer = self

        class Options:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}

            def add_session_config_entry(self, name: str, value: str) -> None:
                self.entries[name] = value

        class Session:
            def __init__(self, path, options, providers, enable_fallback=1):
                assert enable_fallback == 0, "the library would retry on the CPU and print to stdout"
                names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
                outer.opened.append(tuple(names))
                outer.settings = {} if isinstance(providers[0], str) else providers[0][1]
                strict = options.entries.get("session.disable_cpu_ep_fallback") == "1"
                up = [name for name in names if name in working or name in partial]
                if strict and not any(name in working for name in names):
                    raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")
                self._providers = [*up, CPU] if CPU not in up else up

            def get_providers(self):
                return self._providers

            def get_inputs(self):
                return [types.SimpleNamespace(name="image", type="tensor(uint8)", shape=["N", 128, 128, 3])]

            def get_outputs(self):
                return [types.SimpleNamespace(name="probabilities", type="tensor(float)", shape=["N", 2])]

            def run(self, names, feed):
                return [np.full((len(feed["image"]), 2), 0.5, np.float32)]

        self.SessionOptions = Options
        self.InferenceSession = Session
        self.RunOptions = types.SimpleNamespace
        self.get_available_providers = lambda: built_in
        self.set_default_logger_severity = lambda level: None
        self.disable_telemetry_events = lambda: None


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    def put(*arguments, **options) -> StandIn:
        module = StandIn(tmp_path, *arguments, **options)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return module

    return put


@pytest.mark.parametrize(
    ("wanted", "installed", "expected"),
    [
        ("auto", [CPU], ["cpu"]),
        ("auto", ["AzureExecutionProvider", CPU], ["cpu"]),
        ("auto", GPU_WHEEL, ["cuda", "cpu"]),  # TensorRT builds for minutes: only when it is asked for
        ("auto", ["CoreMLExecutionProvider", CPU], ["coreml", "cpu"]),
        ("auto", ["DmlExecutionProvider", CPU], ["directml", "cpu"]),
        ("tensorrt", GPU_WHEEL, ["tensorrt"]),
        ("cpu", GPU_WHEEL, ["cpu"]),
    ],
)
def test_order_of_providers(wanted, installed, expected):
    assert choose_providers(wanted, installed) == expected


def test_auto_chooses_the_best_provider_that_starts(stand_in, tiny_onnx):
    stand_in(GPU_WHEEL, [CUDA, CPU])
    assert open_engine(tiny_onnx).provider == CUDA
    module = stand_in(GPU_WHEEL, [CPU])
    assert open_engine(tiny_onnx).provider == CPU
    assert module.opened[0] == (CUDA,)
    assert module.opened[-1] == (CPU,)


def test_an_explicit_provider_that_stays_away_is_an_error(stand_in, tiny_onnx):
    stand_in(GPU_WHEEL, [CPU])
    with pytest.raises(ProviderUnavailable, match="'cuda' did not start"):
        open_engine(tiny_onnx, provider="cuda")


@pytest.mark.parametrize(
    ("provider", "name", "fix"), [("cuda", CUDA, "float32"), ("tensorrt", TENSORRT, "onnx-fp16,onnx-int8-symmetric")]
)
def test_a_provider_for_only_a_part_of_the_model_does_not_count(stand_in, tiny_onnx, monkeypatch, provider, name, fix):
    monkeypatch.setattr("mri_edge.engines.onnxruntime.explain", lambda *_: None)
    stand_in(GPU_WHEEL, [CPU], partial=(name,))
    with pytest.raises(ProviderUnavailable, match="parts would run on the CPU") as caught:
        open_engine(tiny_onnx, provider=provider)
    assert fix in str(caught.value.hint)  # TensorRT does not start the float32 file either
    assert open_engine(tiny_onnx).provider == CPU


def test_gpu_chooses_the_best_gpu_provider_that_starts(stand_in, tiny_onnx):
    for working in (CUDA, TENSORRT):
        stand_in(GPU_WHEEL, [working, CPU])
        assert open_engine(tiny_onnx, provider="gpu").provider == working
    stand_in(["CoreMLExecutionProvider", CPU], ["CoreMLExecutionProvider", CPU])
    assert open_engine(tiny_onnx, provider="gpu").provider == "CoreMLExecutionProvider"


@pytest.mark.parametrize("wheel", [[CPU], GPU_WHEEL])
def test_gpu_is_never_the_cpu(stand_in, tiny_onnx, wheel):
    stand_in(wheel, [CPU])
    with pytest.raises(ProviderUnavailable, match=r"no GPU started.*'cuda'.*'tensorrt'.*'coreml'") as caught:
        open_engine(tiny_onnx, provider="gpu")
    assert caught.value.hint


@pytest.mark.parametrize("engine", ["litert", "openvino"])
def test_an_engine_without_a_gpu_refuses_provider_gpu(engine, tiny_onnx, tmp_path):
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    path = tmp_path / f"model{engine_file(engine).SUFFIXES[0]}"
    path.write_bytes(tiny_onnx.read_bytes())
    with pytest.raises(ProviderUnavailable, match=r"runs on the CPU only\. Received: --provider gpu"):
        open_engine(path, engine=engine, provider="gpu")


REMEDIES = {  # how to make each provider start: all differ, but for those in the same wheel
    "cuda": "onnxruntime-gpu[cuda,cudnn]",
    "tensorrt": "onnxruntime-gpu[cuda,cudnn]",
    "openvino": "--engine openvino",
    "coreml": "macOS",
    "directml": "onnxruntime-directml",
}


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in ("auto", "cpu", "gpu")])
def test_each_provider_that_the_wheel_lacks_names_its_own_remedy(tiny_onnx, provider, stand_in):
    stand_in([CPU], [CPU])
    with pytest.raises(ProviderUnavailable, match=f"{provider}.*wheel has no") as caught:
        open_engine(tiny_onnx, provider=provider)
    assert REMEDIES[provider] in caught.value.hint
    others = {remedy for remedy in REMEDIES.values() if remedy != REMEDIES[provider]}
    assert not any(remedy in caught.value.hint for remedy in others)


def test_a_broken_model_is_not_blamed_on_the_provider(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(EngineError, match="cannot open it") as caught:
        open_engine(path)
    assert not isinstance(caught.value, ProviderUnavailable)


def test_tensorrt_engines_are_kept_by_model_gpu_and_version(stand_in, tiny_onnx, tmp_path, monkeypatch, caplog):
    module = stand_in(GPU_WHEEL, [TENSORRT, CPU])
    gpu = "NVIDIA-Orin-sm87"
    monkeypatch.setattr("mri_edge.engines.onnxruntime.gpu_name", lambda: gpu)

    def cache_of(model: Path) -> Path:
        assert open_engine(model, provider="tensorrt").provider == TENSORRT
        assert module.settings["trt_engine_cache_enable"] == "1"
        return Path(module.settings["trt_engine_cache_path"])

    first = cache_of(tiny_onnx)
    assert first.is_dir()
    assert first.parent == tmp_path / "cache" / "mri-edge" / "tensorrt"
    assert gpu in first.name
    assert "mri-edge warmup" in caplog.text  # it takes minutes, so it is not silent
    caplog.clear()
    (first / "graph_sm87.engine").touch()
    assert cache_of(tiny_onnx) == first
    assert caplog.text == ""
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(tiny_onnx.read_bytes() + b"\x08\x08")  # the IR version once more
    gpu = "NVIDIA-H100-sm90"
    assert len({first, cache_of(tiny_onnx), cache_of(changed)}) == 3


def test_tensorrt_runs_without_a_cache_if_the_folder_is_unwritable(stand_in, tiny_onnx, tmp_path, monkeypatch, caplog):
    module = stand_in(GPU_WHEEL, [TENSORRT, CPU])
    monkeypatch.setattr("mri_edge.engines.onnxruntime.gpu_name", lambda: "NVIDIA-Orin-sm87")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_engine(tiny_onnx, provider="tensorrt").provider == TENSORRT
    assert module.settings == {}
    assert "every start builds it again" in caplog.text


class Driver:
    """A fake libcuda with a cuInit that returns ``code``."""

    def __init__(self, code: int) -> None:
        self.cuInit = lambda flags: code


def loader(code: int | None, missing: str = ""):
    def load(name: str, mode: int = 0):
        if code is None:
            raise OSError(f"{name}: cannot open shared object file")
        if missing and missing in name:
            raise OSError("libcudnn.so.9: cannot open shared object file: No such file or directory")
        return Driver(code)

    return load


@pytest.mark.parametrize(
    ("load", "reason", "cure"),
    [
        (loader(None), "no NVIDIA driver", "--gpus all"),
        (loader(100), "no GPU is visible", "nvidia-smi"),
        (loader(803), "different versions", "nvidia-smi"),
        (loader(0, missing="providers_cuda"), "libcudnn.so.9", "cuDNN"),
    ],
)
def test_true_reason_why_an_nvidia_provider_stays_away(load, reason, cure, tmp_path):
    said = _nvidia.explain("cuda", tmp_path, load)
    assert said is not None
    assert reason in said[0]
    assert cure in said[1]


def test_no_reason_is_invented_if_driver_and_libraries_load(tmp_path):
    assert _nvidia.explain("cuda", tmp_path, loader(0)) is None


def test_strict_provider_exits_4_and_fallback_is_stamped_on_every_result(tiny_bundle, tmp_path, capfd):
    from PIL import Image

    Image.new("L", (40, 40), 99).save(tmp_path / "scan.png")
    arguments = ["predict", "--json", "--model", str(tiny_bundle), "--provider", "tensorrt", str(tmp_path / "scan.png")]
    if TENSORRT in __import__("onnxruntime").get_available_providers():
        pytest.skip("this onnxruntime has TensorRT, which may start")
    assert run(arguments) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert "TensorrtExecutionProvider" in err
    assert run([*arguments, "--allow-fallback"]) == 0
    out, _ = capfd.readouterr()
    assert "CPUExecutionProvider ran in its place" in out
    assert '"provider": "CPUExecutionProvider"' in out


def test_fallback_is_not_claimed_where_none_was_needed(tiny_bundle):
    with Classifier.load(Bundle.open(tiny_bundle), provider="cpu", allow_fallback=True) as classifier:
        assert classifier.predict(SCAN).warnings == ()


@pytest.mark.skipif(sys.platform == "win32", reason="there the library reports through the system, not files")
def test_the_library_leaves_no_identifier_and_queues_no_events(tiny_bundle, tmp_path):
    """ONNX Runtime 1.31 and later would write a device id and an event store into the cache folder."""
    from PIL import Image

    Image.new("L", (40, 40)).save(tmp_path / "scan.png")
    home = tmp_path / "home"
    home.mkdir()
    # Its own rule keeps it quiet on build servers; this must hold on a user's machine.
    watched = {"CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in watched}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    subprocess.run(
        [Path(sys.executable).with_name("mri-edge"), "predict", "--model", tiny_bundle, tmp_path / "scan.png"],
        check=True,
        env=environment,
        capture_output=True,
    )
    assert [path for path in home.rglob("*") if path.is_file()] == []
