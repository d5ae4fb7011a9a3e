"""Read NumPy arrays from a pickle without calling anything that the pickle names.

Even NumPy's own constructors are not safe: a crafted state can make them read beyond their memory, and a few
bytes can request gigabytes. Here an array is a view of a buffer in the file.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_NUMBERS = re.compile(r"[fiu][1248]")


class _Dtype:
    """Stands in for ``numpy.dtype``: kind and width of a number, then its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray`` and for the function that makes an empty one: its state brings the values."""

    array: NDArray[Any] | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, values = state
        if not isinstance(kind, _Dtype) or not isinstance(values, bytes):
            raise pickle.UnpicklingError("it holds an array that is not made of numbers")
        self.array = np.frombuffer(values, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Unpickles arrays in plain dictionaries; any other class or function, and any other opcode, is refused.

    The C unpickler keeps its memo in a list, which a pickle of ten bytes can grow to 34 GB; the Python one
    keeps it in a dictionary.
    """

    stack: list[Any]
    load_setitem: Callable[[], None]
    load_setitems: Callable[[], None]

    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        # NumPy 2 has moved the function.
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def _check_keys(self, first: int) -> None:
        # Hashing nested tuples that each contain the same tuple twice takes exponential time.
        if not all(isinstance(key, str) for key in self.stack[first::2]):
            raise pickle.UnpicklingError("it holds a dictionary whose keys are not text")

    def _set_item(self) -> None:
        self._check_keys(-2)
        self.load_setitem()

    def _set_items(self) -> None:
        self._check_keys(0)
        self.load_setitems()

    dispatch: ClassVar[dict[int, Any]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT),
            *(pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
        )
    } | {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}


def read_arrays(file: IO[bytes]) -> Any:
    """Unpickle dictionaries of arrays: each array comes as an object with ``array``.

    Raises
    ------
    pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError
        The pickle is damaged, or asks for anything else.
    """
    return _ArraysOnly(file).load()
