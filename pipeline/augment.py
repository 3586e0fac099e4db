"""What is done to a decoded picture, its settings and its plain form.

DALI's graph (graph.py) does the same on its own threads or on the GPU; `finish` does the last part in torch, for
pictures that crossed from another rank as uint8.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from pipeline.colour import ColourRule
from pipeline.draws import Draws

MeanWindow = Literal["same", "centre"]


@dataclass(frozen=True)
class Augmentation:
    """Settings of training pictures.

    crop: side of the window in pixels. mean_window: "same" subtracts the mean image over the crop's own window, mirrored
    with it (paper); "centre" subtracts the mean's central window from every crop (the authors' program). colour and
    sigma: see ColourStats.shift. divisor: the shifted picture is divided by it (1.1 in the authors' program).
    window_shared_by: consecutive positions of an epoch that share one crop and flip (32 in the authors' program).
    """

    crop: int = 227
    mean_window: MeanWindow = "same"
    colour: ColourRule = "eigenvalue"
    sigma: float = 0.1
    divisor: float = 1.0
    window_shared_by: int = 1

    def plain(self) -> Augmentation:
        """The same window and mean with neither colour noise nor division: what is used for evaluation."""
        return Augmentation(self.crop, self.mean_window, colour="none")


def centre_offset(size: int, crop: int) -> int:
    """First row and column of the central window; 14 for 227 of 256."""
    return (size - crop) // 2


def ten_views(size: int, crop: int) -> list[tuple[int, int, bool]]:
    """(y, x, mirrored) of the paper's ten test views (section 4.1): four corners and the centre, then their mirror images."""
    end, middle = size - crop, centre_offset(size, crop)
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    return [(y, x, mirrored) for mirrored in (False, True) for y, x in corners]


def plain_batch(
    jpegs: list[np.ndarray], draws: Draws, shift: np.ndarray, mean_image: np.ndarray, augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """The plain form, one picture after the other with Pillow and NumPy.

    Returns the windows as uint8 (n, crop, crop, 3), mirrored, and the finished pictures as float32 (n, 3, crop, crop)
    in grey levels. shift: (n, 3) grey levels.
    """
    crop = augmentation.crop
    windows, finished = [], []
    for i, jpeg in enumerate(jpegs):
        rows, columns = slice(draws.y[i], draws.y[i] + crop), slice(draws.x[i], draws.x[i] + crop)
        step = -1 if draws.flip[i] else 1
        window = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))[rows, columns][:, ::step]
        if augmentation.mean_window == "same":
            mean = mean_image[rows, columns][:, ::step]
        else:
            mean = central_mean(mean_image, crop)
        windows.append(window)
        finished.append(((window.astype(np.float32) - mean + shift[i]) / np.float32(augmentation.divisor)).transpose(2, 0, 1))
    return np.stack(windows), np.stack(finished)


def central_mean(mean_image: np.ndarray, crop: int) -> np.ndarray:
    """Central (crop, crop, 3) window of the mean image."""
    start = centre_offset(len(mean_image), crop)
    return mean_image[start : start + crop, start : start + crop]


def finish(windows: torch.Tensor, draws: Draws, shift: torch.Tensor, mean_image: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Mean subtraction and colour shift of pictures that are cropped and mirrored already.

    windows: (n, crop, crop, 3) uint8; shift: (n, 3) grey levels; mean_image: (size, size, 3) float32; all on one device.
    Returns (n, 3, crop, crop) float32 in grey levels, channels last in memory.
    """
    count, crop = len(windows), augmentation.crop
    rows = windows.reshape(count, crop, 3 * crop)  # a row of pixels is one run of numbers: three times as fast as by threes
    means = _mean_windows(mean_image, draws, augmentation)
    colours = shift.repeat(1, crop)
    if windows.device.type == "cpu":
        # Picture by picture stays in the cache. In NumPy, since torch would split each among threads that DALI keeps busy.
        pictures = torch.empty(rows.shape, dtype=torch.float32)
        for row, mean, colour, picture in zip(rows.numpy(), means, colours.numpy(), pictures.numpy(), strict=True):
            np.copyto(picture, row)  # converting first: a subtraction of mixed types goes through a small buffer
            picture -= mean.numpy()
            picture += colour
    else:
        pictures = rows.to(torch.float32).sub_(torch.stack(means)).add_(colours[:, None, :])
    if augmentation.divisor != 1.0:
        pictures.div_(augmentation.divisor)
    return pictures.view(count, crop, crop, 3).permute(0, 3, 1, 2)


def _mean_windows(mean_image: torch.Tensor, draws: Draws, augmentation: Augmentation) -> list[torch.Tensor]:
    """For each sample, (crop, 3 crop) of the mean image: over its window and mirrored with it, or the central one."""
    size, crop = len(mean_image), augmentation.crop
    plain = mean_image.reshape(size, 3 * size)
    if augmentation.mean_window == "centre":
        start = centre_offset(size, crop)
        return [plain[start : start + crop, 3 * start : 3 * (start + crop)]] * len(draws.x)
    mirrored = mean_image.flip(1).reshape(size, 3 * size)  # in it, the window that starts at x starts at size - crop - x
    views = []
    for x, y, flip in zip(draws.x.tolist(), draws.y.tolist(), draws.flip.tolist(), strict=True):
        image, left = (mirrored, size - crop - x) if flip else (plain, x)
        views.append(image[y : y + crop, 3 * left : 3 * (left + crop)])
    return views


def cut_ten_views(pictures: torch.Tensor, mean_image: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """The ten views of whole pictures, mean subtracted.

    pictures: (n, size, size, 3) uint8. Returns (n, 10, 3, crop, crop) float32 in grey levels.
    """
    count, size, crop = len(pictures), pictures.shape[1], augmentation.crop
    no_shift = torch.zeros(count, 3, device=pictures.device)
    views = []
    for y, x, mirrored in ten_views(size, crop):
        window = pictures[:, y : y + crop, x : x + crop]
        draws = Draws(np.full(count, x), np.full(count, y), np.full(count, mirrored), np.zeros((count, 3)))
        views.append(finish(window.flip(2) if mirrored else window, draws, no_shift, mean_image, augmentation))
    return torch.stack(views, dim=1)
