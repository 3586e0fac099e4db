"""The lines of a shard's index, read by compiled code: 10,000 shards of 2,000 samples have 1.5 GB of them, 40 seconds of plain Python."""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK, _MAX_JPEG, _MAX_LABEL = 512, 64 << 20, 10  # as in tarshard.py, which imports this file late; its tests compare them
_MAX_KEY = 90
_OF_KEY = np.array([(chr(byte).isalnum() and byte < 128) or chr(byte) in "_-" for byte in range(256)])
_MAX_DIGITS = 18  # of a number that fits 64 bits whatever its digits
_JPG, _CLS, _DOT_JPG, _DOT_CLS, _SPACE = (np.frombuffer(word, np.uint8) for word in (b"jpg ", b" cls ", b".jpg", b".cls\n", b" "))


@njit(nogil=True, error_model="numpy", cache=True)
def _after(text: np.ndarray, at: int, word: np.ndarray) -> int:
    """The place behind `word` if it stands at `at`, else -1; -1 for at < 0. A line's end stops every comparison before the text's end."""
    if at < 0:
        return -1
    for k in range(len(word)):
        if text[at + k] != word[k]:
            return -1
    return at + len(word)


@njit(nogil=True, error_model="numpy", cache=True)
def _number(text: np.ndarray, at: int) -> tuple[int, int]:
    """The digits at `at` as a number, and the place behind them; -1 for that where there are none, or too many, or at < 0."""
    start, value = at, 0
    while at >= 0 and 48 <= text[at] <= 57:
        value = 10 * value + np.int64(text[at]) - 48
        at += 1
        if at - start > _MAX_DIGITS:
            return 0, -1
    return value, at if at > start else -1


@njit(nogil=True, error_model="numpy", cache=True)
def _key_end(text: np.ndarray, at: int) -> int:
    """The place behind a key at `at` (tarshard.KEY), or -1."""
    start = at
    while at >= 0 and _OF_KEY[text[at]]:
        at += 1
    return at if start < at <= start + _MAX_KEY else -1


@njit(nogil=True, error_model="numpy", cache=True)
def read_lines(
    text: np.ndarray, at: int, jpeg_offset: np.ndarray, jpeg_size: np.ndarray, label_size: np.ndarray, keys: np.ndarray, ends: np.ndarray
) -> bool:
    """Whether the text from `at` on is n well-formed lines, each `jpg OFFSET SIZE KEY.jpg cls OFFSET SIZE KEY.cls`, with offsets that follow
    from the sizes before them; what they say goes into the arrays.

    text: (bytes,) uint8, which ends with a line's end and has n of them from `at` on. jpeg_offset (n,) int64, jpeg_size (n,)
    int32, label_size (n,) uint8; keys: (at least the bytes of all keys,) uint8, one behind the other; ends: (n,) int32, where each ends.
    """
    position, used = 0, 0
    for row in range(len(jpeg_offset)):
        offset, at = _number(text, _after(text, at, _JPG))
        size, at = _number(text, _after(text, at, _SPACE))
        first = _after(text, at, _SPACE)
        end = _key_end(text, first)
        if end < 0:
            return False
        label_offset, at = _number(text, _after(text, _after(text, end, _DOT_JPG), _CLS))
        label, at = _number(text, _after(text, at, _SPACE))
        at = _after(text, at, _SPACE)
        if at < 0:
            return False
        for k in range(end - first):  # it stands twice
            keys[used + k] = text[first + k]
            if text[at + k] != text[first + k]:
                return False
        used += end - first
        ends[row] = used
        at = _after(text, at + end - first, _DOT_CLS)
        expected = position + 2 * _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if at < 0 or offset != position + _BLOCK or label_offset != expected or not (1 <= size <= _MAX_JPEG and 1 <= label <= _MAX_LABEL):
            return False
        position = label_offset + _BLOCK  # a label always fits one block
        jpeg_offset[row], jpeg_size[row], label_size[row] = offset, size, label
    return True
