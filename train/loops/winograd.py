"""The frozen backbone made fast on CPUs: Winograd's minimal filtering, a quarter of the multiplications.

F(4 x 4, 3 x 3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016: a picture is
cut into tiles of 6 x 6 that overlap by 2, tiles and kernels are transformed, multiplied element by
element (as 36 matrix products over the channels), and transformed back to 4 x 4 results. In
float32 the result differs from direct convolution by some 1e-5 of its largest value.

Written in Keras operations alone; worth its while where XLA fuses the transforms. GPU libraries do
the same by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .keras import accelerated, load_keras

keras = load_keras()
ops = keras.ops

# From this layer on the channels are enough for the products to outweigh the transforms, and this many images
# at a time keep the tiles near the cache and the products large (both measured, float32, 2 cores).
_FIRST = "block3_conv1"
_AT_ONCE = 16

# The kernel's transform for the points 0, 1, -1, 2, -2 and infinity; Lavin & Gray, section 4.1.
_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


class WinogradConvolution(keras.layers.Layer):
    """A 3 x 3 convolution with stride 1, padding "same" and ReLU, then 2 x 2 max pooling where ``pool``.

    float32 (N, H, W, in) -> (N, H, W, out), or half of H and W with pooling; H and W are multiples of 4.
    """

    def __init__(self, kernel: NDArray[np.float32], bias: NDArray[np.float32], *, pool: bool) -> None:
        super().__init__(trainable=False)
        self._pool = pool
        transformed = np.einsum("ai,bj,ijkl->bakl", _KERNEL, _KERNEL, kernel.astype(np.float64))
        self._kernel = self._constant(transformed.reshape(36, *kernel.shape[2:]))
        self._bias = self._constant(bias)
        self.built = True

    def _constant(self, value: NDArray[Any]) -> Any:
        return self.add_weight(value.shape, initializer=lambda shape, dtype: ops.cast(value, dtype), trainable=False)

    def call(self, pictures: Any) -> Any:
        """Convolve."""
        _, height, width, channels = pictures.shape
        rows, columns = height // 4, width // 4
        padded = ops.pad(pictures, [[0, 0], [1, 1], [1, 1], [0, 0]])
        lines = ops.stack(_transform([padded[:, i : i + 4 * rows - 3 : 4] for i in range(6)]))
        tiles = ops.stack(_transform([lines[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(6)]))
        product = ops.matmul(ops.reshape(tiles, (36, -1, channels)), self._kernel)
        product = ops.reshape(product, (6, 6, -1, rows, columns, product.shape[-1]))
        lines = ops.stack(_transform_back([product[j] for j in range(6)]))
        result = [_transform_back([lines[j, i] for i in range(6)]) for j in range(4)]
        result = [[ops.relu(one + self._bias) for one in column] for column in result]  # [column][row] in the tile
        if self._pool:
            result = [[ops.maximum(_larger(result[j], i), _larger(result[j + 1], i)) for i in (0, 2)] for j in (0, 2)]
        size = len(result)
        merged = ops.stack([ops.stack(column, axis=2) for column in result], axis=4)  # N, rows, i, columns, j, out
        return ops.reshape(merged, (-1, size * rows, size * columns, merged.shape[-1]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the result."""
        count, height, width, _ = input_shape
        step = 2 if self._pool else 1
        return count, height // step, width // step, self._kernel.shape[-1]


def _larger(lines: list[Any], index: int) -> Any:
    return ops.maximum(lines[index], lines[index + 1])


def _transform(six: list[Any]) -> list[Any]:
    """Six lines of a tile to six sums: B' of the paper."""
    a, b, c, d, e, f = six
    even, odd = e - 4 * c, d - 4 * b
    near, far = e - c, 2 * (d - b)
    return [4 * a - 5 * c + e, even + odd, even - odd, near + far, near - far, 4 * b - 5 * d + f]


def _transform_back(six: list[Any]) -> list[Any]:
    """Six lines of products to four results: A' of the paper."""
    a, b, c, d, e, f = six
    even, odd = b + c, b - c
    near, far = d + e, d - e
    return [a + even + near, odd + 2 * far, even + 4 * near, odd + 8 * far + f]


def frozen_features(backbone: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The fastest way here to what ``backbone.predict_on_batch`` gives, equal to it within float32 rounding.

    ``backbone`` is a VGG16 without its top whose weights will not change. On a GPU, or on a Keras
    backend without XLA, it is used as it is.
    """
    if accelerated() or keras.backend.backend() not in ("tensorflow", "jax"):
        return backbone.predict_on_batch
    layers = backbone.layers[1:]
    middle = next(index for index, layer in enumerate(layers) if layer.name == _FIRST)
    lower = keras.Model(backbone.input, layers[middle - 1].output)
    # TensorFlow's own convolutions are faster than XLA's, and its transforms slower.
    lower.compile(jit_compile=keras.backend.backend() == "jax")
    upper = _winograd_model(layers[middle:])
    upper.compile(jit_compile=True)

    def extract(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        maps = lower.predict_on_batch(pictures)
        # XLA compiles for each size anew, which takes seconds: the last images are filled up.
        maps = np.concatenate([maps, np.zeros((-len(maps) % _AT_ONCE, *maps.shape[1:]), np.float32)])
        pieces = [maps[start : start + _AT_ONCE] for start in range(0, len(maps), _AT_ONCE)]
        return np.concatenate([upper.predict_on_batch(piece) for piece in pieces])[: len(pictures)]

    return extract


def _winograd_model(layers: list[Any]) -> Any:
    """The same layers in one model, convolutions and the pooling that follows replaced where the size allows."""
    inputs = tensor = keras.Input(layers[0].input.shape[1:])
    pooled = False
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if pooled:
            pooled = False
        elif isinstance(layer, keras.layers.Conv2D) and tensor.shape[1] % 4 == tensor.shape[2] % 4 == 0:
            pooled = isinstance(following, keras.layers.MaxPooling2D)
            kernel, bias = (ops.convert_to_numpy(weight) for weight in layer.weights)
            tensor = WinogradConvolution(kernel, bias, pool=pooled)(tensor)
        else:
            tensor = layer(tensor)
    return keras.Model(inputs, tensor)
