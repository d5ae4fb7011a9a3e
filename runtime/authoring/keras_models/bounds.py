"""Limit the size that a model file may unpack to, and define the error for refused files."""

from __future__ import annotations

# Largest sum of the arrays of one file, in bytes: VGG16 with its top has 553 MB, the largest image
# classifier of Keras 1.4 GB.
_LARGEST = 4 << 30
# Trained weights hardly compress, and Keras does not compress them; pruned ones may shrink to a fifth.
_ALLOWANCE, _RATIO = 64 << 20, 10


class UnsafeModelError(ValueError):
    """A model file needs more than a classifier should: code, other files, or too much memory for its size."""


def unpacked_limit(size: int) -> int:
    """Largest sum in bytes that a file of ``size`` bytes may unpack to."""
    return min(_LARGEST, _ALLOWANCE + _RATIO * size)


def check_unpacked(total: int, size: int, name: str) -> None:
    """Raise UnsafeModelError if ``total`` bytes are too many for a file of ``size`` bytes."""
    if total > unpacked_limit(size):
        raise UnsafeModelError(
            f"{name} of {size:,} bytes unpacks to {total:,} bytes or more, the limit is {unpacked_limit(size):,}"
        )
