"""What a loader gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.draws import Draws


@dataclass(frozen=True)
class Batch:
    """images: float32 grey levels, mean subtracted, RGB, (n, 3, crop, crop), or (n, 10, 3, crop, crop) for ten views; with
    out="uint8" the mirrored windows, uint8, from which mean and colour are still to be taken: draws says where each was cut
    (with a scale by words, see Draws), shift, (n, 3) float32 grey levels, what its colour is shifted by.

    labels, ids: (n,) int64; an id is the sample's number in its split; the label is -1 for a sample of a validation that is
    not counted (on_bad_sample="skip"). All on the loader's device but draws and, if no ranks exchange pictures, ids.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    draws: Draws
    shift: np.ndarray


class LoadingGivenUp(Exception):
    """The wait for a batch was ended by ImageLoader.given_up; the loader stands where it stood."""
