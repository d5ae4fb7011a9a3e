"""int8 artifacts keep the mean of every output, and their sums saturate on no CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.engines import open_engine
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import record
from mri_edge.export.calibration.observation import Observation, mean_rounding_error
from mri_edge.scans.preprocessing import Preprocessing

SIZE = 16
PLAIN = Preprocessing(SIZE, SIZE, scale=1 / 255)
# Less than half a step of a kernel with a largest weight of 1, in 64 and in 127 steps, so that it is rounded to 0.
LOST = 0.0035


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> tuple[Path, ...]:
    """Twenty pictures of noise with a mean of 128."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return tuple(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def calibrator(noise) -> Calibrator:
    return Calibrator(noise, PLAIN, record(noise, "minmax", 0))


@pytest.fixture(scope="module", params=["dense", "depthwise"])
def graph(request):
    """A network of kernels with one large weight and many small positive ones, which are rounded to 0."""
    import keras

    from mri_edge.export.sources.device_graph import device_graph

    keras.utils.set_random_seed(0)
    layers = keras.layers
    # Both convolutions give the sum of 27 pixels: of three channels, or of one.
    depthwise = layers.DepthwiseConv2D((3, 9), depth_multiplier=1, activation="relu", name="convolution")
    dense = layers.Conv2D(4, 3, activation="relu", name="convolution")
    convolution = depthwise if request.param == "depthwise" else dense
    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            convolution,
            layers.GlobalAveragePooling2D(),
            layers.Dense(8, activation="relu", name="hidden"),
            layers.Dense(2, activation="softmax", name="head"),
        ]
    )
    kernel, bias = (np.full(array.shape, LOST, np.float32) for array in convolution.get_weights())
    kernel[1, kernel.shape[1] // 2, 1 if request.param == "dense" else slice(None)] = 1
    convolution.set_weights([kernel, bias * 0 + 0.1])
    channels = len(bias)
    kernel = np.full((channels, 8), LOST, np.float32)
    kernel[np.arange(8) % channels, np.arange(8)] = 1
    network.get_layer("hidden").set_weights([kernel, np.full(8, 0.1, np.float32)])
    # The mean of a channel is 0.1 + 0.5 x (1 + 26 LOST), and that of a hidden unit 0.1 more and 3 LOST of it.
    mean = 0.1 + (0.1 + 0.5 * (1 + 26 * LOST)) * (1 + (channels - 1) * LOST)
    kernel = np.zeros((8, 2), np.float32)
    kernel[:, 1] = 5
    network.get_layer("head").set_weights([kernel, np.array([0, -40 * mean], np.float32)])
    return device_graph(network, PLAIN)


def probabilities(content: bytes, suffix: str, folder: Path, files: tuple[Path, ...]) -> np.ndarray:
    """Probability of the second label for each picture, computed in the engine of the artifact."""
    path = folder / f"model{suffix}"
    path.write_bytes(content)
    engine = open_engine(path, provider="cpu")
    try:
        return engine.run(np.stack([np.asarray(Image.open(file)) for file in files]))[:, 1]
    finally:
        engine.close()


def log_odds(probability: np.ndarray) -> np.ndarray:
    return np.log(probability) - np.log1p(-probability)


def shift_of(float_content, int8_content, suffix, folder, files) -> float:
    """Mean change of the log-odds by quantization."""
    plain, quantized = (
        log_odds(probabilities(content, suffix, folder, files).astype(float))
        for content in (float_content, int8_content)
    )
    assert np.abs(plain).mean() < 1.5, "a shift is only visible if the answers are uncertain"
    return float((quantized - plain).mean())


# Change of the log-odds by rounding: 26 weights of LOST times the mean 0.5, in eight units with a weight of 5.
UNCORRECTED = 40 * 26 * LOST / 2


def test_int8_onnx_keeps_the_mean_in_spite_of_rounding(graph, calibrator, noise, tmp_path):
    from mri_edge.export.onnx.convert import float_model
    from mri_edge.export.onnx.quantize import quantize

    model = float_model(graph)
    content, facts = quantize(model, calibrator)
    shift = shift_of(model.SerializeToString(), content, ".onnx", tmp_path, noise)
    assert abs(shift) < 0.15 * UNCORRECTED, f"without the correction {-UNCORRECTED:.2f}"
    assert facts["weights"] == "int8 per channel, 7 bits, bias corrected"


def test_int8_tflite_keeps_the_mean_in_spite_of_rounding(graph, calibrator, noise, tmp_path):
    from mri_edge.export.tflite.convert import to_tflite
    from mri_edge.export.tflite.quantize import quantize

    model = to_tflite(graph)
    content, facts = quantize(model, calibrator)
    shift = shift_of(model, content, ".tflite", tmp_path, noise)
    assert abs(shift) < 0.15 * UNCORRECTED, f"without the correction {-UNCORRECTED:.2f}"
    assert facts["weights"] == "int8 per channel, 8 bits, bias corrected"


def test_weights_of_an_int8_onnx_file_have_seven_bits(graph, calibrator):
    """2 x 255 x 64 fits into 16 bits, 2 x 255 x 127 does not."""
    import onnx

    from mri_edge.export.onnx.convert import constants, float_model
    from mri_edge.export.onnx.quantize import quantize

    content, _ = quantize(float_model(graph), calibrator)
    kernels = [
        values
        for values in constants(onnx.load_from_string(content)).values()
        if values.dtype == np.int8 and values.ndim > 1
    ]
    assert len(kernels) == 2
    assert {int(np.abs(kernel.astype(int)).max()) for kernel in kernels} == {64}


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("levels", [64, 127])
def test_mean_rounding_error_equals_that_of_a_simulation(levels, per_tensor):
    rng = np.random.default_rng(1)
    kernel = rng.normal(0, 0.2, (3, 5, 4)).astype(np.float32)
    means = rng.uniform(0.5, 2, 5)
    inputs = rng.normal(means[:, None, None], 0.3, (5, 4, 20_000))  # (inputs, taps, samples)
    rounded = kernel.copy()
    for output in rounded:
        step = np.abs(kernel if per_tensor else output).max() / levels
        output[...] = np.round(output / step) * step
    exact, approximate = (np.einsum("oit,its->os", weights, inputs).mean(axis=1) for weights in (kernel, rounded))
    # The tolerance is the sampling error of 20,000 samples.
    error = mean_rounding_error(kernel, means, levels, per_tensor=per_tensor)
    assert error == pytest.approx(approximate - exact, abs=2e-4)
    assert mean_rounding_error(np.zeros_like(kernel), means, levels).tolist() == [0, 0, 0]


@pytest.mark.parametrize("axis", [1, -1])
def test_channel_means_are_over_all_other_axes_and_batches(axis):
    values = np.random.default_rng(2).normal(3, 1, (11, 6, 5, 4)).astype(np.float32)
    observation = Observation(axis)
    for part in np.array_split(values, [2, 3, 8]):
        observation.add(part)
    others = tuple(index for index in range(4) if index != axis % 4)
    np.testing.assert_allclose(observation.channel_means, values.mean(axis=others), rtol=1e-5)
    assert observation.range("minmax") == pytest.approx((min(0, values.min()), values.max()))
