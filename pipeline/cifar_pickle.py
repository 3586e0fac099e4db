"""The pickles of CIFAR-10's python archive, read without running anything that they name.

A pickle is a program: it may call whatever it names. These name what rebuilds a numpy array, and bytes where Python 3 wrote them for
Python 2; here each such name stands for a note of what it was called with, and any other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from pipeline.errors import InputError

_OF_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
_PARTS = 5  # of an array's state: version, shape, dtype, whether columns come first, bytes


class Note:
    """What a name stands for: it keeps what it is called with, and the state that it is given, and does nothing."""

    def __init__(self, name: str, given: tuple[Any, ...] = ()) -> None:
        self.name, self.given, self.state = name, given, None

    def __call__(self, *given: Any) -> Note:
        return Note(self.name, given)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Bytes:
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes in protocol 2. A new one each time, so that no pickle can change it."""

    def __call__(self, text: str, coding: str) -> bytes:
        if coding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes written as {coding!r}")
        return text.encode("latin-1")


class _Reader(pickle._Unpickler):
    """In Python: the one in C takes 16 bytes of memory for every number up to the highest that a pickle of six bytes can ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _OF_ARRAYS:
            return Note(name)
        if (module, name) == ("_codecs", "encode"):
            return _Bytes()
        raise InputError(f"it asks for {module}.{name}, which none of CIFAR-10's files does, and which was not run; trust nothing of this archive")


def read_pickle(data: bytes) -> Any:
    """What a pickle of plain values holds: text of Python 2 as bytes, arrays as Notes. Raises InputError, without a name of the file."""
    try:
        return _Reader(io.BytesIO(data), encoding="bytes").load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle fails in any way there is
        raise InputError(f"it cannot be read as a pickle ({type(error).__name__}: {str(error)[:80]}); fetch the archive again") from None


def byte_array(note: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The uint8 array of this shape that a Note stands for, not to be written to; None where it stands for anything else."""
    if not isinstance(note, Note) or note.name != "_reconstruct" or not isinstance(note.state, tuple) or len(note.state) != _PARTS:
        return None
    _, said, kind, columns_first, raw = note.state
    if not isinstance(kind, Note) or kind.name != "dtype" or kind.given[:1] not in (("u1",), (b"u1",)):
        return None
    if said != shape or not isinstance(raw, bytes) or len(raw) != int(np.prod(shape)):
        return None
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if columns_first else "C")
