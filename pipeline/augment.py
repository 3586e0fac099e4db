"""What is done to a decoded picture, its settings and its plain form.

The loader does the same with DALI (graph.py) and with kernels of its own (windows.py, device_window.py); all are equal to this.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.colour import ColourRule, ColourStats, mean_colour
from pipeline.draws import CENTRE, WORDS, Draws, draw, fixed
from pipeline.scaled import Scale, evaluation_side, plain_window

MeanWindow = Literal["same", "centre", "channel"]


@dataclass(frozen=True)
class Augmentation:
    """Settings of training pictures.

    crop: side of the window in pixels. mean_window: "same" subtracts the mean image over the crop's own window, mirrored
    with it (paper); "centre" subtracts the mean's central window from every crop (the authors' program); "channel" the mean
    colour, three numbers (VGG): then what the functions here call the mean image has that colour everywhere. colour and
    sigma: see ColourStats.shift. divisor: the shifted picture is divided by it (1.1 in the authors' program).
    window_shared_by: consecutive positions of an epoch that share one crop and flip (32 in the authors' program).
    crops, flips: whether windows are drawn, or all central, and whether half of the pictures are mirrored.
    scale: the shorter side of each training picture is first resized to a number of pixels drawn from scale[0] .. scale[1], that
    of each picture in evaluation to their middle, see scaled.py; None: pictures are squares, and stay as they are.
    """

    crop: int = 227
    mean_window: MeanWindow = "same"
    colour: ColourRule = "eigenvalue"
    sigma: float = 0.1
    divisor: float = 1.0
    window_shared_by: int = 1
    crops: bool = True
    flips: bool = True
    scale: Scale | None = None

    def plain(self) -> Augmentation:
        """The same window and mean with neither colour noise nor division: what is used for evaluation."""
        return Augmentation(self.crop, self.mean_window, colour="none", scale=self.scale)

    def side(self, size: int) -> int:
        """Pixels of the squares that the views of evaluation are cut from; size: of the stored pictures' shorter side."""
        return size if self.scale is None else evaluation_side(self.scale)


def mean_for(a: Augmentation, stats: ColourStats) -> np.ndarray:
    """The mean image that is subtracted, (side, side, 3) float32 grey levels; with "channel" the mean colour everywhere."""
    return mean_colour(stats.statistics, a.side(len(stats.mean_image))) if a.mean_window == "channel" else stats.mean_image


def training_draws(a: Augmentation, size: int, seed: int, epoch: int, ids: np.ndarray, positions: np.ndarray) -> Draws:
    """What is drawn for training pictures of `size` pixels that stand at `positions` of an epoch. window_shared_by shares the scale, too."""
    offsets = size - a.crop + 1 if a.scale is None else WORDS
    own = draw(seed, epoch, ids, offsets, a.scale)
    window = own if a.window_shared_by == 1 else draw(seed, epoch, positions // a.window_shared_by, offsets, a.scale)
    central = central_draws(a, size, len(ids))
    place = window if a.crops else central
    return Draws(place.x, place.y, window.flip if a.flips else central.flip, own.normals, window.sides)


def central_draws(a: Augmentation, size: int, count: int) -> Draws:
    """The central window of each of `count` pictures of `size` pixels, at the scale of evaluation."""
    if a.scale is not None:
        return fixed(count, CENTRE, CENTRE, a.side(size))
    middle = centre_offset(size, a.crop)
    return fixed(count, middle, middle)


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
    in grey levels. shift: (n, 3) grey levels. With a scale DALI's windows may differ by 1 grey level: it rounds another sum.
    """
    crop = augmentation.crop
    windows, finished = [], []
    for i, jpeg in enumerate(jpegs):
        rows, columns = slice(draws.y[i], draws.y[i] + crop), slice(draws.x[i], draws.x[i] + crop)
        step = -1 if draws.flip[i] else 1
        picture = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
        scaled = augmentation.scale is not None
        window = (plain_window(picture, draws.rows(np.array([i])), crop) if scaled else picture[rows, columns])[:, ::step]
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
