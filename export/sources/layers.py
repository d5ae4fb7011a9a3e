"""Find the Keras layer that a node of a converted graph comes from, so that an error can name it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mri_edge.errors import ConversionError


def layer_names(model: Any) -> frozenset[str]:
    """The names of all layers of a Keras model, also of those in models inside it."""
    names: set[str] = set()
    for layer in model.layers:
        names |= layer_names(layer) if hasattr(layer, "layers") else {layer.name}
    return frozenset(names)


def layer_of(node: str, layers: Iterable[str]) -> str | None:
    """The innermost layer on the path of a node such as ``functional_1/resizing_1/resize/Cast``, or None.

    TensorFlow appends ``_1`` to a scope that it enters a second time, and Keras enters the scope of each layer twice.
    """
    known = frozenset(layers)
    for part in reversed(node.split("/")):
        for name in (re.sub(r"_\d+$", "", part), part):
            if name in known:
                return name
    return None


def unsupported(operations: Iterable[tuple[str, str]], layers: Iterable[str], reason: str) -> ConversionError:
    """Return an error that names each operation with its layer.

    Parameters
    ----------
    operations
        Path and kind of each node, at least one.
    reason
        The end of the sentence, for example ``which tf2onnx 1.17 cannot convert to ONNX``.
    """
    named = dict.fromkeys((layer_of(node, layers) or node, kind) for node, kind in operations)
    listed = [f"{kind} of layer {layer!r}" for layer, kind in list(named)[:3]]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ConversionError(
        f"the model uses {', '.join(listed)}{more}, {reason}",
        "Replace the layer, or leave this format out: --formats or --keep-going",
    )
