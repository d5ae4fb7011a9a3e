"""Make whole bundles of the embedded models, with Keras' file and all formats, for the benchmarks; without training.

    python -m scripts.whole_bundles --data DIR       # writes bundles/NAME for each embedded model
    make bench DATA=DIR                              # runs it if they are missing

Shipped files are used as they are, and all other formats are made from the same weights. A model that ships only in
int8 gets float weights by scaling the integers back: its speed is that of any training, its answers differ from the
shipped ones by the rounding of activations. DIR is the data that it was trained on. The split is drawn again and must
be the recorded one, so that calibration sees no test image.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.compare.subjects import SCALED_BACK
from benchmarks.guard.float_twin import write_float_twin
from benchmarks.processes import CHECKOUT, program
from mri_edge import Classifier
from mri_edge.authoring.writer import KERAS, rewrite_bundle
from mri_edge.bundles.bundle import EMBEDDED, Bundle, embedded_models
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.data.collection import Collection, collect
from mri_edge.train.data.folder import find_scans
from mri_edge.train.data.roles import choose_roles, rows_of
from mri_edge.train.models.network import Network, build_network, predict
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.recipes.base import RecipeSpec
from mri_edge.train.recipes.registry import find_recipe

Weights = list[NDArray[np.float32]]

FLOAT, INT8 = "model.onnx", "model.int8.onnx"
AS_SHIPPED = 0.02  # largest mean difference of probabilities by rounded activations: the exporter's limit


def layers_of(model: Path) -> list[Weights]:
    """Return kernel and bias of each convolution and dense layer of an exported model, in Keras' layout."""
    graph = onnx.load(model).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    bias_after = {node.input[0]: values.get(node.input[1]) for node in graph.node if node.op_type == "Add"}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in values or "explanation" in node.name:
            continue
        kernel = values[node.input[1]]
        bias = values[node.input[2]] if len(node.input) > 2 else bias_after[node.output[0]]
        found.append([_in_keras_layout(kernel) if node.op_type == "Conv" else kernel, bias])
    return found


def _in_keras_layout(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn (out, in, height, width) into (height, width, in, out); for a depthwise one into (height, width, out, 1)."""
    kernel = kernel.transpose(2, 3, 1, 0)
    return kernel.swapaxes(2, 3) if kernel.shape[2] == 1 else kernel


def unfold(kernel: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the first kernel for normalized input, from the exported one for 8-bit pixels with its mean channel."""
    factor = np.asarray(preprocessing.deviation) / preprocessing.scale
    return np.asarray(kernel[:, :, :3] * factor[:, None], np.float32)


def keras_network(bundle: Bundle, recipe: RecipeSpec) -> Network:
    """The embedded model's network in Keras, with its weights."""
    manifest = bundle.manifest
    classes = len(manifest.labels)
    with tempfile.TemporaryDirectory() as folder:
        model = bundle.folder / FLOAT
        if not model.is_file():
            model = Path(folder) / FLOAT
            write_float_twin(bundle.folder / INT8, model)
        weights = layers_of(model)
    size, backbone = manifest.preprocessing, find_backbone(recipe.backbone)
    weights[0][0] = unfold(weights[0][0], size)
    if backbone.student:
        network = backbone.student.build_shipped(recipe, classes)
    else:
        layers = backbone.build(None, size.height, size.width)
        network = build_network(layers, recipe.head, recipe.schedule.learning_rate, classes, seed=0)
    if not (backbone.student or recipe.head.pooled):
        # The exporter flattens channels first, Keras last.
        height, width, channels = network.backbone.output_shape[1:]
        head = weights[-2][0].reshape(channels, height, width, -1)
        weights[-2][0] = head.transpose(1, 2, 0, 3).reshape(weights[-2][0].shape)
    network.whole.set_weights([array for layer in weights for array in layer])
    return network


def write_keras_bundle(name: str, out: Path, collection: Collection, split: Split) -> None:
    """Write a copy of an embedded model to ``out``, with ``model.keras`` and the whole split besides its own files."""
    bundle = Bundle.open(EMBEDDED / name)
    training = bundle.manifest.training
    if split.split_fingerprint != training.split_fingerprint:
        sys.exit(f"--data: not the images, or not the split, that {name} was trained on")
    recipe = find_recipe(training.recipe)
    network = keras_network(bundle, recipe)
    test = rows_of(split, collection)[2]
    probabilities = predict(network.whole, collection.pixels, recipe.preprocessing, rows=test)
    with Classifier.load(name) as shipped:
        difference = float(np.abs(probabilities - shipped.engine.run(collection.pixels[test])).mean())
    if difference > AS_SHIPPED:
        sys.exit(f"{name}: Keras' answers differ from the shipped ones by {difference:.3f} on average")
    with rewrite_bundle(bundle, out) as writer:
        network.whole.save(writer.path(KERAS))
        writer.add_keras_model()
        writer.add_document(SPLIT, split.to_json())
        if not (bundle.folder / FLOAT).is_file():
            writer.update(training=replace(training, details={**training.details, SCALED_BACK: INT8}))


def restore_shipped(name: str, out: Path) -> None:
    """Replace files made here by the shipped ones: another CPU sums in another order, and so rounds differently."""
    shipped = Bundle.open(EMBEDDED / name)
    with rewrite_bundle(Bundle.open(out)) as writer:
        for artifact in shipped.manifest.artifacts:
            shutil.copyfile(shipped.path_of(artifact), writer.path(artifact.file))
            writer.add_artifact(artifact)


def main(arguments: list[str] | None = None) -> int:
    """Write ``bundles/NAME`` for each embedded model; return the exit code of the export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the training data")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "bundles", help="default: bundles/")
    options = parser.parse_args(arguments)
    scans, _ = find_scans(options.data)
    codes = []
    for name in embedded_models():
        collection = collect(scans, Bundle.open(name).manifest.preprocessing, with_slices=False)
        split = choose_roles(collection)
        write_keras_bundle(name, options.out / name, collection, split)
        export = program("export", options.out / name, "--all", "--keep-going", "--data", options.data)
        codes.append(subprocess.run(export, check=False).returncode)
        restore_shipped(name, options.out / name)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
