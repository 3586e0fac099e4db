"""Pictures that the page is sent."""

from __future__ import annotations

import base64

import numpy as np

A_ROW, GAP = 8, 2  # maps across of a column's 48, and transparent pixels between them


def picture_address(content: bytes, kind: str) -> str:
    """A picture as an address, which needs no further request."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def map_sheet(maps: np.ndarray) -> np.ndarray:
    """(n, h, w) responses of one column -> (H, W, 2) uint8, grey and alpha: each scaled to its own largest, black where it is silent."""
    count, height, width = maps.shape
    maps = np.nan_to_num(maps)
    most = maps.max(axis=(1, 2), keepdims=True)
    grey = np.rint(255 * maps.clip(0) / np.where(most > 0, most, 1)).astype(np.uint8)
    across = min(A_ROW, count)
    sheet = np.zeros((-(-count // across) * (height + GAP) - GAP, across * (width + GAP) - GAP, 2), np.uint8)
    for i, one in enumerate(grey):
        y, x = i // across * (height + GAP), i % across * (width + GAP)
        sheet[y : y + height, x : x + width, 0], sheet[y : y + height, x : x + width, 1] = one, 255
    return sheet
