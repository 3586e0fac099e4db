"""The first layer's kernels as a picture (paper, Figure 3)."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

A_ROW = 16  # kernels at most; 48 of a column make three rows, as in the figure
GAP, BETWEEN = 1, 9  # white pixels between kernels, and between the columns
ENLARGED = 3  # times


def kernel_sheet(weights: torch.Tensor) -> np.ndarray:
    """(maps, 3, side, side) weights -> (h, w, 3) uint8: the kernels of column 0 above those of column 1.

    Each is scaled to its own range around mid-grey: zero is grey, its largest weight black or white; what is no number is grey too.
    """
    kernels = weights.detach().float().nan_to_num().cpu().numpy().transpose(0, 2, 3, 1)
    most = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.rint(127.5 * (1 + kernels / np.where(most > 0, most, 1))).astype(np.uint8).repeat(ENLARGED, 1).repeat(ENLARGED, 2)
    half = (len(pixels) + 1) // 2
    above, below = (_rows(part, min(A_ROW, half)) for part in (pixels[:half], pixels[half:]))
    return np.concatenate((above, np.full((BETWEEN, above.shape[1], 3), 255, np.uint8), below))


def _rows(kernels: np.ndarray, across: int) -> np.ndarray:
    side, rows = kernels.shape[1] + GAP, -(-len(kernels) // across)
    sheet = np.full((rows * side + GAP, across * side + GAP, 3), 255, np.uint8)
    for i, kernel in enumerate(kernels):
        y, x = GAP + i // across * side, GAP + i % across * side
        sheet[y : y + side - GAP, x : x + side - GAP] = kernel
    return sheet


def as_png(sheet: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "png")
    return content.getvalue()
