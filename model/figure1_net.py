"""The four-layer net of Figure 1 (section 3.1), and its training without any regularisation, once around with ReLU and once with tanh.

The paper says: four layers, convolutional, CIFAR-10, no regularisation, a rate of its own for each net, training error against epochs. It
leaves the rest open; here it is as in the authors' own nets for CIFAR-10 (cuda-convnet, layers-18pct.cfg and layers-80sec.cfg, less their
weight decay and response normalisation):

    conv1 32 of 5x5, max-pool 3/2, f | conv2 32 of 5x5, f, mean-pool 3/2 | conv3 64 of 5x5, f, mean-pool 3/2 | fully connected, softmax

Padding 2, pooled sizes rounded up: 32 -> 16 -> 8 -> 4. Batch 128, momentum 0.9, pixels less the mean image, biases 0. Two starts:

  small     as in those files: grey levels as they are, weights with deviations of 0.0001, 0.01, 0.01 and 0.01
  fan-in    as one would begin today: pixels divided by their one standard deviation, weights N(0, gain^2 / inputs of a unit), gain^2 2 for
            ReLU (He et al. 2015) and 1 for tanh and for the last layer (LeCun et al. 1998)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.sgd import PaperSGD

Activation = Literal["relu", "tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "tanh")
Start = Literal["small", "fan-in"]
GAIN2 = {"relu": 2.0, "tanh": 1.0}
SMALL = (0.0001, 0.01, 0.01, 0.01)  # deviations, by layer
BATCH, MOMENTUM, SIDE = 128, 0.9, 32
MEASURED = 500  # pictures at a time where errors are counted


class FourLayers(nn.Module):
    """(n, 3, 32, 32) float32 -> (n, classes) scores. Seeds draw the same standard normal numbers for both activations."""

    def __init__(self, classes: int, activation: Activation, seed: int, start: Start = "fan-in") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc10 = nn.Linear(64 * 4 * 4, classes)
        self.squash = torch.relu if activation == "relu" else torch.tanh
        draws = torch.Generator().manual_seed(seed)
        layers: tuple[nn.Conv2d | nn.Linear, ...] = (self.conv1, self.conv2, self.conv3, self.fc10)
        for layer, small in zip(layers, SMALL, strict=True):
            gain2 = 1.0 if layer is self.fc10 else GAIN2[activation]
            deviation = small if start == "small" else math.sqrt(gain2 / layer.weight[0].numel())
            nn.init.normal_(layer.weight, 0.0, deviation, generator=draws)
            assert layer.bias is not None, "every layer has one"
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squash(F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
        x = F.avg_pool2d(self.squash(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.avg_pool2d(self.squash(self.conv3(x)), 3, 2, ceil_mode=True)
        return self.fc10(x.flatten(1))


class TrainingSet:
    """All pictures as bytes on the device, (n, 32, 32, 3) uint8, their labels, (n,) int64, what is subtracted and divided by, and the nets' start."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, device: torch.device, start: Start = "fan-in") -> None:
        assert pictures.shape[1:] == (SIDE, SIDE, 3), f"pictures of {pictures.shape[1:]}"
        mean, squares = pictures.mean(axis=0, dtype=np.float64), 0.0
        for some in np.array_split(pictures, -(-len(pictures) // 1000)):
            squares += float(((some - mean) ** 2).sum())
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.start: Start = start
        self.deviation = (math.sqrt(squares / pictures.size) if start == "fan-in" else 1.0) or 1.0
        self.pixels, self.labels = torch.from_numpy(pictures).to(device), torch.from_numpy(labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(rows, 3, 32, 32) float32 in channels_last memory, and labels."""
        x = (self.pixels[rows].to(torch.float32) - self.mean).div_(self.deviation)
        return x.permute(0, 3, 1, 2), self.labels[rows]

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: n // 128 batches in an order of its own, n % 128 pictures left out, others in every epoch. Of a smaller set one batch."""
        draws = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
        order = torch.randperm(len(self), generator=draws).to(self.labels.device)
        for at in range(0, max(len(self) - BATCH, 0) + 1, BATCH):
            yield self.take(order[at : at + BATCH])


@dataclass
class Curve:
    """One training. errors: percent wrong of the whole training set, before the first epoch and after each; seconds of each epoch's training
    and of counting its errors. diverged: the loss is no longer a number."""

    activation: Activation
    rate: float
    seed: int
    errors: list[float] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)
    measure_seconds: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def epochs(self) -> int:
        return len(self.errors) - 1


def train_epochs(data: TrainingSet, classes: int, activation: Activation, rate: float, seed: int) -> Iterator[Curve]:
    """The curve so far, after every epoch, for as long as it is asked for and does not diverge."""
    net = FourLayers(classes, activation, seed, data.start).to(data.pixels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = PaperSGD(net.parameters(), rate, MOMENTUM, weight_decay=0.0)
    curve = Curve(activation, rate, seed, [error_percent(net, data)])
    while not curve.diverged:
        began = time.perf_counter()
        loss = _train_epoch(net, optimiser, data, seed, curve.epochs)
        trained = time.perf_counter()
        curve.errors.append(error_percent(net, data))
        curve.train_seconds.append(trained - began)
        curve.measure_seconds.append(time.perf_counter() - trained)
        curve.diverged = not math.isfinite(loss)
        yield curve


def _train_epoch(net: FourLayers, optimiser: PaperSGD, data: TrainingSet, seed: int, epoch: int) -> float:
    """Sum of the batches' losses, read once, at the end, so that a GPU is not waited for in between."""
    total = torch.zeros((), device=data.pixels.device)
    for images, labels in data.batches(seed, epoch):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimiser.step()
        total += loss.detach()
    return float(total)


@torch.inference_mode()
def error_percent(net: FourLayers, data: TrainingSet) -> float:
    """How many of the whole training set are wrong, in percent. Scores that are no numbers are wrong."""
    right = torch.zeros((), dtype=torch.int64, device=data.pixels.device)
    for at in range(0, len(data), MEASURED):
        images, labels = data.take(slice(at, at + MEASURED))
        scores = net(images)
        right += ((scores.argmax(1) == labels) & scores.isfinite().all(1)).sum()
    return 100.0 * (1.0 - int(right) / len(data))


def epochs_to(errors: list[float], target: float) -> float | None:
    """Epochs until the error is `target` percent, on a straight line between the two epochs around it; None where it is not reached."""
    for epoch, error in enumerate(errors):
        if error <= target:
            before = errors[epoch - 1] if epoch else error
            return float(epoch) if before == error else epoch - 1 + (before - target) / (before - error)
    return None
