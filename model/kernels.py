"""The first layer's kernels as a picture (paper, Figure 3)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from model import checkpoint
from model.recipe import Recipe
from pipeline import InputError

A_ROW = 16  # kernels at most; 48 of a column make three rows, as in the figure
GAP, BETWEEN = 1, 9  # white pixels between kernels, and between the columns
SIDE, ENLARGED = 11, 3  # of the paper's kernels, and how many times they are enlarged; smaller ones are drawn as large


def first_kernels(path: Path, recipe: Recipe, classes: int) -> torch.Tensor:
    """Weights of a checkpoint's first layer alone, a whole net has half a gigabyte: float32 (maps, 3, side, side). Raises InputError."""
    layer = recipe.model.layers()[0]
    weights = {f"{layer}.weight": torch.empty(recipe.model.shapes(classes)[layer])}
    try:
        checkpoint.fill(path, weights)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__})") from None
    return weights[f"{layer}.weight"]


def kernel_sheet(weights: torch.Tensor, columns: int = 2) -> np.ndarray:
    """(maps, 3, side, side) weights -> (h, w, 3) uint8: the kernels of column 0 above those of column 1; of one column, one block.

    Each is scaled to its own range around mid-grey: zero is grey, its largest weight black or white; what is no number is grey too.
    """
    pixels = kernel_pixels(weights)
    part = -(-len(pixels) // columns)
    above, *below = (rows_of(pixels[first : first + part], min(A_ROW, part)) for first in range(0, len(pixels), part))
    between = np.full((BETWEEN, above.shape[1], 3), 255, np.uint8)
    return np.concatenate((above, *(piece for block in below for piece in (between, block))))


def kernel_pixels(weights: torch.Tensor) -> np.ndarray:
    """(n, 3, side, side) weights -> (n, larger side, larger side, 3) uint8, scaled as kernel_sheet says."""
    kernels = weights.detach().float().nan_to_num().cpu().numpy().transpose(0, 2, 3, 1)
    most = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pixels = np.rint(127.5 * (1 + kernels / np.where(most > 0, most, 1))).astype(np.uint8)
    times = max(1, SIDE * ENLARGED // pixels.shape[1])
    return pixels.repeat(times, 1).repeat(times, 2)


def rows_of(kernels: np.ndarray, across: int) -> np.ndarray:
    """(n, side, side, 3) pixels -> (h, w, 3): rows of so many kernels, white around each."""
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
