"""The VGG16 backbone (Simonyan & Zisserman 2015, configuration D) without its top."""

from __future__ import annotations

from functools import partial
from typing import Any

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans.preprocessing import Preprocessing

from .network import Backbone, ignore_color
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


VGG16 = Backbone(
    title="VGG16",
    build=build_backbone,
    load_weights=load_weights,
    stages=tuple(f"block{number}_" for number in range(1, 6)),
    # The preprocessing of torchvision's weights; Keras' own weights work with it too.
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    feature_stride=32,
    feature_channels=512,
    ignore_color=partial(ignore_color, "block1_conv1"),
)
