"""How much a model file may unpack to, and the error of a file that is refused."""

from __future__ import annotations

# Largest sum of the arrays of one file, in bytes: VGG16 with its top has 553 MB, the largest of Keras' own
# image classifiers 1.4 GB.
_LARGEST = 4 << 30
# Trained weights hardly compress, and Keras does not compress them; pruned ones may shrink to a fifth.
_ALLOWANCE, _RATIO = 64 << 20, 10


class UnsafeModelError(ValueError):
    """A model file asks for more than a classifier needs: code, other files, or memory out of proportion."""


def unpacked_limit(size: int) -> int:
    """Largest sum in bytes that a file of ``size`` bytes may unpack to."""
    return min(_LARGEST, _ALLOWANCE + _RATIO * size)


def check_unpacked(total: int, size: int, name: str) -> None:
    """Raise UnsafeModelError if ``total`` bytes are out of proportion to a file of ``size`` bytes."""
    if total > unpacked_limit(size):
        raise UnsafeModelError(
            f"{name} of {size:,} bytes unpacks to {total:,} bytes or more, the limit is {unpacked_limit(size):,}"
        )
