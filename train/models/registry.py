"""List all backbones by name, as recipes refer to them."""

from __future__ import annotations

from mri_edge.errors import UsageError

from .efficientnet_lite0 import EFFICIENTNET_LITE0
from .network import Backbone
from .small_cnn import SMALL_CNN
from .vgg16 import VGG16

BACKBONES: dict[str, Backbone] = {
    "vgg16": VGG16,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
    "small_cnn": SMALL_CNN,
}


def find_backbone(name: str) -> Backbone:
    """Return a backbone by its name. Raises UsageError that lists the known names."""
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}", f"Backbones: {', '.join(BACKBONES)}")
    return BACKBONES[name]
