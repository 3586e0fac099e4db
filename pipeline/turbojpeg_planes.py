"""JPEG -> its YUV 4:2:0 planes as they lie in the file, upsampled and converted by nobody: libjpeg-turbo's TurboJPEG interface.

Half the bytes of RGB, and planes.rgb_of_planes makes of them the very pixels that DALI and Pillow give. The calls are those of
TurboJPEG 2.0, which 2.1 and 3 have as well, so that a library of the system does when the wheel is not there.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.jpeg_header import format_fault
from pipeline.libturbojpeg import INSTALL, open_library

_ACCURATE_DCT, _STOP_ON_WARNING = 4096, 8192  # of turbojpeg.h: the ISLOW transform, as in DALI and Pillow; damage is an error
_YCBCR = 1  # TJCS_YCbCr
_MIN_SIZE = 16  # of 4 pixels and less libjpeg does not blend colours but repeats them


class BadPicture(ValueError):
    """A JPEG that does not yield the planes that are stored. The message says why, and names neither shard nor sample."""


def check_planes(size: int) -> None:
    """Pictures of size x size pixels can be kept as planes on this machine. Raises InputError."""
    if size % 2 or size < _MIN_SIZE:
        raise InputError(
            f"pictures of {size} pixels a side cannot be kept as YUV 4:2:0 planes: the side must be even, {_MIN_SIZE} or more; cache RGB"
        )
    _library()


def decode_planes(jpeg: np.ndarray, out: np.ndarray, size: int) -> None:
    """Decode a baseline 4:2:0 JPEG of size x size pixels without the GIL; may be called on many threads.

    jpeg: (bytes,) uint8, contiguous. out: (size * size * 3 // 2,) uint8, contiguous: Y (size, size), then Cb and Cr, each
    (size / 2, size / 2). size: see check_planes. What the header claims is checked before anything is written or allocated.
    Raises BadPicture for any other JPEG and for one that libjpeg finds fault with (out is then half written), InputError when
    there is no library.
    """
    assert jpeg.dtype == out.dtype == np.uint8, f"bytes wanted, not {jpeg.dtype} and {out.dtype}"
    assert jpeg.flags.c_contiguous, "a contiguous JPEG wanted"
    assert out.flags.c_contiguous, "contiguous memory for the planes wanted"
    assert out.shape == (size * size * 3 // 2,), f"{out.shape} is not for planes of {size} x {size}"
    why = format_fault(jpeg, size)
    if why:
        raise BadPicture(why)
    library = _library()
    handle = library.tjInitDecompress()  # 1 us: one kept for the next picture would lend it this one's tables, and trip after an error
    if not handle:
        raise MemoryError("libjpeg-turbo has no memory for a decoder")
    try:
        fault = _header_fault(library, handle, jpeg, size)
        if fault is None and _decode(library, handle, jpeg, out, size):
            fault = _error(library, handle)
    finally:
        library.tjDestroy(handle)
    if fault is not None:
        raise BadPicture(fault)


def _header_fault(library: ctypes.CDLL, handle: int, jpeg: np.ndarray, size: int) -> str | None:
    """What is wrong with the header as libjpeg itself reads it: a picture in RGB has three components too, but not Y, Cb, Cr."""
    width, height, sampling, colours = (ctypes.c_int() for _ in range(4))
    pointers = [ctypes.byref(number) for number in (width, height, sampling, colours)]
    if library.tjDecompressHeader3(handle, jpeg.ctypes.data, jpeg.size, *pointers):
        return _error(library, handle)
    if colours.value != _YCBCR:
        return "its three colour components are not Y, Cb, Cr"
    if (width.value, height.value) != (size, size):
        return f"libjpeg finds {width.value} x {height.value} pixels in it, not {size} x {size}"
    return None


def _decode(library: ctypes.CDLL, handle: int, jpeg: np.ndarray, out: np.ndarray, size: int) -> int:
    at, luma, chroma = out.ctypes.data, size * size, size * size // 4
    planes = (ctypes.c_void_p * 3)(at, at + luma, at + luma + chroma)
    strides = (ctypes.c_int * 3)(size, size // 2, size // 2)
    flags = _ACCURATE_DCT | _STOP_ON_WARNING
    failed: int = library.tjDecompressToYUVPlanes(handle, jpeg.ctypes.data, jpeg.size, planes, size, strides, size, flags)
    return failed


def _error(library: ctypes.CDLL, handle: int) -> str:
    words: bytes = library.tjGetErrorStr2(handle)
    return words.decode(errors="replace").strip()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """libturbojpeg: the one that comes in the wheel `turbojpeg`, or else the system's. Raises InputError."""
    library = open_library()
    try:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        buffer: list[Any] = [pointer, pointer, ctypes.c_ulong]  # handle, JPEG, its bytes
        library.tjInitDecompress.restype = pointer
        library.tjDestroy.argtypes = [pointer]
        library.tjGetErrorStr2.argtypes, library.tjGetErrorStr2.restype = [pointer], ctypes.c_char_p
        library.tjDecompressHeader3.argtypes = [*buffer, *[ctypes.POINTER(number)] * 4]
        library.tjDecompressToYUVPlanes.argtypes = [*buffer, ctypes.POINTER(pointer), number, ctypes.POINTER(number), number, number]
    except AttributeError as error:
        raise InputError(f"libturbojpeg cannot be used for YUV 4:2:0 planes ({error}): {INSTALL}, or cache RGB") from None
    return library
