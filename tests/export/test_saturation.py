"""Seven-bit weights never saturate on x86 CPUs without VNNI, which sum pairs of u8 x s8 products in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest


def pairs_of_products(activations, weights):
    """The instruction ``vpmaddubsw`` (Intel 64 manual, volume 2): u8 x s8, sums of two, saturated to 16 bits."""
    products = activations.astype(np.int32) * weights.astype(np.int32)
    return np.clip(products[..., ::2] + products[..., 1::2], -32768, 32767)


def dot_without_vnni(activations, weights):
    return pairs_of_products(activations, weights).sum(axis=-1)


def exact(activations, weights):
    return (activations.astype(np.int64) * weights.astype(np.int64)).sum(axis=-1)


@pytest.mark.parametrize("sign", [-1, 1])
def test_eight_bit_weights_saturate_and_seven_bit_weights_do_not(sign):
    bright = np.full(64, 255, np.uint8)
    assert dot_without_vnni(bright, np.full(64, sign * 127, np.int8)) != exact(bright, np.full(64, sign * 127))
    assert dot_without_vnni(bright, np.full(64, sign * 64, np.int8)) == exact(bright, np.full(64, sign * 64))


def test_weights_of_the_artifact_never_saturate(trained, pictures):
    """The worst case: every activation is 255, and the largest weights are neighbors."""
    import onnx

    from mri_edge.authoring.quiet import quiet
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.export.calibration.calibrator import Calibrator
    from mri_edge.export.calibration.images import pictures_in, record
    from mri_edge.export.onnx.convert import constants, float_model
    from mri_edge.export.onnx.quantize import head, observer, quantize_with
    from mri_edge.export.sources.device_graph import device_graph
    from mri_edge.export.sources.keras_model import load

    source = Bundle.open(trained)
    preprocessing = source.manifest.preprocessing
    files = tuple(path for path, _ in pictures_in(pictures))[:20]
    with quiet():
        model = float_model(device_graph(load(trained / "model.keras"), preprocessing))
        observed = Calibrator(files, preprocessing, record(files, "minmax", 0)).observe(observer(model), 1)
    saturated = {}
    for bits in (7, 8):
        content, _ = quantize_with(model, observed, "minmax", head(model), weight_bits=bits)
        kernels = [
            values
            for values in constants(onnx.load_from_string(content)).values()
            if values.dtype == np.int8 and values.ndim > 1
        ]
        assert len(kernels) == 3
        worst = [kernel.reshape(kernel.shape[0], -1) for kernel in kernels]
        worst = [np.sort(rows, axis=1)[:, ::-1][:, : rows.shape[1] // 2 * 2] for rows in worst]
        saturated[bits] = sum(
            int(
                (
                    dot_without_vnni(np.full_like(rows, 255, np.uint8), rows)
                    != exact(np.full_like(rows, 255, np.uint8), rows)
                ).sum()
            )
            for rows in worst
        )
    assert saturated[7] == 0
    assert saturated[8] > 0  # control: with 8 bits, this network gives other results without VNNI
