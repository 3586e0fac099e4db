"""JPEG decoding at a reduced scale, of a part of the picture, and encoding: libjpeg-turbo through its TurboJPEG interface.

What Pillow's own libjpeg cannot be asked for from Python: only the central columns, four bytes a pixel, errors for damage that
libjpeg merely warns of.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.libturbojpeg import INSTALL, open_library

# Of turbojpeg.h, version 3
_COMPRESS, _DECOMPRESS = 0, 1
_STOP_ON_WARNING, _QUALITY, _SUBSAMP, _WIDTH, _HEIGHT, _COLOURS, _OPTIMIZE, _SCAN_LIMIT = 0, 3, 4, 5, 6, 8, 11, 13
_RGB, _RGBX = 0, 2
_SAMPLINGS = {"4:4:4": 0, "4:2:0": 2}
_BLOCK_WIDTH = (8, 16, 16, 8, 8, 32, 8)  # of TJSAMP_444, 422, 420, GRAY, 440, 411, 441: pixels of an iMCU
_BLOCK_HEIGHT = 16  # at most; rows may begin anywhere, but it costs nothing to begin where blocks do
_YCBCR, _GREY = 1, 2
SCANS = 100  # of a progressive picture; the usual has 10, an attack thousands


class CodecError(ValueError):
    """libjpeg-turbo's words, for a JPEG that it finds any fault with."""


class UnsupportedError(CodecError):
    """A JPEG with which nothing is wrong, but which is not for this decoder."""


class _Factor(ctypes.Structure):
    _fields_ = (("num", ctypes.c_int), ("denom", ctypes.c_int))


class _Region(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class Decoding:
    """One JPEG being decoded: its size is read on entry, its pixels by `pixels`.

    Raises CodecError for what libjpeg-turbo cannot decode or warns of, UnsupportedError for colours other than grey and Y, Cb, Cr.
    """

    def __init__(self, jpeg: bytes) -> None:
        self._jpeg, self._library = jpeg, _library()

    def __enter__(self) -> Decoding:
        self._handle = self._library.tj3Init(_DECOMPRESS)
        if not self._handle:
            raise MemoryError("libjpeg-turbo has no memory for a decoder")
        try:
            for parameter, value in ((_STOP_ON_WARNING, 1), (_SCAN_LIMIT, SCANS)):
                self._check(self._library.tj3Set(self._handle, parameter, value))
            self._check(self._library.tj3DecompressHeader(self._handle, self._jpeg, len(self._jpeg)))
            if self._get(_COLOURS) not in (_YCBCR, _GREY):
                raise UnsupportedError("its colours are neither grey nor Y, Cb, Cr")
        except BaseException:
            self._library.tj3Destroy(self._handle)
            raise
        self.width, self.height = self._get(_WIDTH), self._get(_HEIGHT)
        return self

    def __exit__(self, *_: object) -> None:
        self._library.tj3Destroy(self._handle)

    def pixels(self, eighths: int, columns: range, top: int) -> tuple[np.ndarray, int, int]:
        """(h, w, 4) uint8 RGBX at `eighths` / 8 of the size, 1 ... 8, rounded up, and the column and row at which it begins.

        At least these columns of the reduced picture, or what of them there is, and its rows from `top` on. The others are read, so
        that damage in them is noticed, but not transformed; rows at the end would not even be read, so they are not left out.
        """
        width, height = (-(-side * eighths // 8) for side in (self.width, self.height))
        common = gcd(eighths, 8)  # only reduced fractions are taken
        self._check(self._library.tj3SetScalingFactor(self._handle, _Factor(eighths // common, 8 // common)))
        sampling = self._get(_SUBSAMP)
        step = -(-_BLOCK_WIDTH[sampling] * eighths // 8) if 0 <= sampling < len(_BLOCK_WIDTH) else width
        left, right = max(columns.start, 0) // step * step, min(columns.stop, width)
        top = max(top, 0) // _BLOCK_HEIGHT * _BLOCK_HEIGHT
        if left or top or right < width:
            self._check(self._library.tj3SetCroppingRegion(self._handle, _Region(left, top, right - left, height - top)))
        out = np.empty((height - top, right - left, 4), np.uint8)
        self._check(self._library.tj3Decompress8(self._handle, self._jpeg, len(self._jpeg), out.ctypes.data, 0, _RGBX))
        return out, left, top

    def _get(self, parameter: int) -> int:
        value: int = self._library.tj3Get(self._handle, parameter)
        return value

    def _check(self, failed: int) -> None:
        if failed:
            raise CodecError(_words(self._library, self._handle))


def encode(pixels: np.ndarray, quality: int, subsampling: str) -> bytes:
    """Baseline JPEG with optimised Huffman tables and no metadata. pixels: (h, w, 3) uint8 RGB, contiguous; subsampling: "4:2:0", "4:4:4"."""
    library = _library()
    handle = library.tj3Init(_COMPRESS)
    if not handle:
        raise MemoryError("libjpeg-turbo has no memory for an encoder")
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    try:
        for parameter, value in ((_QUALITY, quality), (_SUBSAMP, _SAMPLINGS[subsampling]), (_OPTIMIZE, 1)):
            if library.tj3Set(handle, parameter, value):
                raise CodecError(_words(library, handle))
        place = pixels.ctypes.data
        if library.tj3Compress8(handle, place, pixels.shape[1], 0, pixels.shape[0], _RGB, ctypes.byref(buffer), ctypes.byref(size)):
            raise CodecError(_words(library, handle))
        return ctypes.string_at(buffer, size.value)
    finally:
        library.tj3Free(buffer)
        library.tj3Destroy(handle)


def _words(library: ctypes.CDLL, handle: int) -> str:
    words: bytes = library.tj3GetErrorStr(handle)
    return words.decode(errors="replace").strip()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """Raises InputError when there is no libjpeg-turbo 3."""
    library = open_library()
    pointer, number = ctypes.c_void_p, ctypes.c_int
    try:
        library.tj3Init.argtypes, library.tj3Init.restype = [number], pointer
        library.tj3Destroy.argtypes = library.tj3Free.argtypes = [pointer]
        library.tj3Set.argtypes, library.tj3Get.argtypes = [pointer, number, number], [pointer, number]
        library.tj3GetErrorStr.argtypes, library.tj3GetErrorStr.restype = [pointer], ctypes.c_char_p
        library.tj3DecompressHeader.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t]
        library.tj3SetScalingFactor.argtypes = [pointer, _Factor]
        library.tj3SetCroppingRegion.argtypes = [pointer, _Region]
        library.tj3Decompress8.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t, pointer, number, number]
        buffers: list[Any] = [ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_size_t)]
        library.tj3Compress8.argtypes = [pointer, pointer, number, number, number, number, *buffers]
    except AttributeError:
        raise InputError(f"the libturbojpeg of this system is older than version 3, which make_shards needs: {INSTALL}") from None
    return library
