"""The VGG16 backbone (Simonyan & Zisserman 2015, configuration D) without its top."""

from __future__ import annotations

from typing import Any

import numpy as np

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans.preprocessing import Preprocessing

from .network import Backbone
from .weights import BackboneWeights, load_weights


def build_backbone(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Build the frozen backbone; it maps float32 (N, height, width, 3) to (N, height // 32, width // 32, 512).

    ``None`` keeps the random initial weights.
    """
    keras = load_keras("train")
    backbone = keras.applications.VGG16(weights=None, include_top=False, input_shape=(height, width, 3), name="vgg16")
    if weights is not None:
        convolutions = [layer for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)]
        for layer, arrays in zip(convolutions, weights.arrays, strict=True):
            layer.set_weights(arrays)
    backbone.trainable = False
    return backbone


def ignore_color(backbone: Any, preprocessing: Preprocessing) -> None:
    """Change the first convolution so that it responds only to the mean of the color channels.

    Gray pictures give the same features as before, except for a constant in the outermost pixels, where zero padding
    stands in for a normalized value. A tinted picture gives the features of its gray version.
    """
    first = backbone.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (preprocessing.mean, preprocessing.deviation))
    gray = (kernel / std).mean(axis=2, keepdims=True)
    shift = (kernel * (mean.mean() - mean) / std).sum(axis=(0, 1, 2))
    first.set_weights([gray * std, bias + shift])


VGG16 = Backbone(
    title="VGG16",
    build=build_backbone,
    load_weights=load_weights,
    stages=tuple(f"block{number}_" for number in range(1, 6)),
    # The preprocessing of torchvision's weights; Keras' own weights work with it too.
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    feature_stride=32,
    feature_channels=512,
    ignore_color=ignore_color,
)
