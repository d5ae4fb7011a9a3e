"""Open exported files in other people's runtimes, and compare the probabilities.

    python scripts/peers.py                  # the table of docs/other-programs.md, for the embedded models
    python scripts/peers.py BUNDLE...

A runtime that is not installed is left out. ``pip install openvino opencv-python-headless tract`` adds the Python ones.
``npm install --prefix DIR onnxruntime-web`` adds ONNX Runtime Web; set NODE_PATH to DIR/node_modules.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_edge import Bundle
from mri_edge.bundles.bundle import embedded_models
from mri_edge.bundles.manifest import Artifact, Manifest

EXAMPLES = Path(__file__).parents[1] / "examples"
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")  # of ONNX Runtime's optimization
INPUT, OUTPUT = "pixels", "probabilities"

_WEB = """
const ort = require('onnxruntime-web'), fs = require('fs');
const [model, pixels, shape] = process.argv.slice(1);
ort.env.wasm.numThreads = 1;
(async () => {
  const session = await ort.InferenceSession.create(fs.readFileSync(model), {executionProviders: ['wasm']});
  const input = new ort.Tensor('uint8', new Uint8Array(fs.readFileSync(pixels)), JSON.parse(shape));
  const output = (await session.run({INPUT: input}, ['OUTPUT'])).OUTPUT;
  console.log(JSON.stringify({dims: output.dims, data: Array.from(output.data)}));
})();
""".replace("INPUT", INPUT).replace("OUTPUT", OUTPUT)

Pixels = NDArray[np.uint8]
Answer = NDArray[np.float32]


@dataclass(frozen=True)
class Peer:
    """A runtime that is not ours: its name, whether it is installed, and what runs a file in it.

    ``run`` takes the file and uint8 (N, H, W, 3), and returns float32 (N, classes), or None if it only validates the
    file. It raises an error if the file cannot be used.
    """

    name: str
    suffix: str
    installed: Callable[[], bool]
    run: Callable[[Path, Pixels], Answer | None]


def check_onnx(file: Path, _pixels: Pixels) -> None:
    """Validate with ``onnx.checker`` and shape inference."""
    import onnx

    onnx.checker.check_model(str(file), full_check=True)


def run_onnxruntime(file: Path, pixels: Pixels, *, level: str) -> Answer:
    """Run in ONNX Runtime at one optimization level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


def run_openvino(file: Path, pixels: Pixels) -> Answer:
    """Run in OpenVINO, in float32 also where the CPU has bfloat16."""
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([pixels])[OUTPUT])


def run_opencv(file: Path, pixels: Pixels) -> Answer:
    """Run in OpenCV's DNN module."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(file))
    network.setInput(pixels)
    return np.array(network.forward(OUTPUT))


def run_tract(file: Path, pixels: Pixels) -> Answer:
    """Run in tract, a runtime in Rust."""
    import tract

    model = tract.onnx().load(str(file))
    model.set_input_fact(0, f"{','.join(map(str, pixels.shape))},u8")
    for output in range(model.output_count()):
        model.set_output_fact(output, None)  # computed from the input
    return np.array(model.into_model().into_runnable().run([pixels])[0].to_numpy())


def run_web(file: Path, pixels: Pixels) -> Answer:
    """Run in ONNX Runtime Web (WebAssembly) under Node.js."""
    with tempfile.NamedTemporaryFile(suffix=".raw") as raw:
        raw.write(pixels.tobytes())
        raw.flush()
        command = ["node", "-e", _WEB, str(file), raw.name, json.dumps(pixels.shape)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    return np.array(answer["data"], np.float32).reshape(answer["dims"])


def run_litert(file: Path, pixels: Pixels) -> Answer:
    """Run the signature ``serving_default`` in LiteRT, or the only subgraph of a file without a signature."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    if interpreter.get_signature_list():
        return np.array(interpreter.get_signature_runner("serving_default")(**{INPUT: pixels})[OUTPUT])
    [entry], [answer] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], pixels.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], pixels)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(answer["index"]))


def has_web() -> bool:
    """Whether Node.js finds the package onnxruntime-web."""
    if not shutil.which("node"):
        return False
    found = subprocess.run(["node", "-e", "require.resolve('onnxruntime-web')"], capture_output=True, check=False)
    return found.returncode == 0


def _has(module: str) -> Callable[[], bool]:
    return lambda: find_spec(module) is not None


PEERS = (
    Peer("onnx.checker", ".onnx", _has("onnx"), check_onnx),
    *(
        Peer(f"ONNX Runtime, {level}", ".onnx", _has("onnxruntime"), partial(run_onnxruntime, level=level))
        for level in LEVELS
    ),
    Peer("ONNX Runtime Web", ".onnx", has_web, run_web),
    Peer("OpenVINO", ".onnx", _has("openvino"), run_openvino),
    Peer("OpenCV", ".onnx", _has("cv2"), run_opencv),
    Peer("tract", ".onnx", _has("tract"), run_tract),
    Peer("LiteRT", ".tflite", _has("ai_edge_litert"), run_litert),
    Peer("OpenVINO", ".tflite", _has("openvino"), run_openvino),
)


def reference(file: Path, pixels: Pixels) -> Answer:
    """The answer that the peers are compared with: ONNX Runtime without optimization, or LiteRT."""
    return run_litert(file, pixels) if file.suffix == ".tflite" else run_onnxruntime(file, pixels, level=LEVELS[0])


def pictures(manifest: Manifest) -> Pixels:
    """The demo scans and eight pictures of noise, uint8 (N, H, W, 3)."""
    size = manifest.preprocessing
    scans = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(EXAMPLES.glob("*.jpg"))]
    noise = np.random.default_rng(0).integers(0, 256, (8, size.height, size.width, 3), dtype=np.uint8)
    return np.concatenate([size.resize_pictures(scans), noise])


def compare(bundle: Bundle, artifact: Artifact, pixels: Pixels, peers: list[Peer]) -> dict[str, str]:
    """The largest difference of a probability in each peer, or the first line of its error, by the peer's name."""
    file = bundle.path_of(artifact)
    expected = reference(file, pixels)
    cells = {}
    for peer in peers:
        if peer.suffix != file.suffix:
            continue
        try:
            answer = peer.run(file, pixels)
        except Exception as error:  # noqa: BLE001 - each runtime has its own errors
            lines = (line for line in str(error).splitlines() if line.strip())
            cells[peer.name] = next(lines, type(error).__name__)[:120]
        else:
            cells[peer.name] = "valid" if answer is None else f"{np.abs(answer - expected).max():.1e}"
    return cells


def main() -> None:
    """Print the table: one row a peer, one column a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", default=embedded_models(), metavar="BUNDLE")
    peers = [peer for peer in PEERS if peer.installed()]
    columns: dict[str, dict[str, str]] = {}
    for name in parser.parse_args().bundles:
        bundle = Bundle.open(name)
        pixels = pictures(bundle.manifest)
        for artifact in bundle.manifest.artifacts:
            if artifact.format in ("onnx", "tflite"):
                columns[f"`{name}` {artifact.file}"] = compare(bundle, artifact, pixels, peers)
    rows: list[list[Any]] = [["runtime", *columns], ["---"] * (len(columns) + 1)]
    names = dict.fromkeys(peer.name for peer in peers)
    rows += [[name, *(cells.get(name, "") for cells in columns.values())] for name in names]
    for row in rows:
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
