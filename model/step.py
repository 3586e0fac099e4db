"""A training step: the paper's SGD on one batch. Plain, or with bfloat16 weights beside the float32 ones; graphed.py has a third."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F

from model.alexnet import AlexNet
from model.convolve import choose
from model.layout import Layout
from model.net import Masks, Net
from model.recipe import Recipe
from model.sgd import PaperSGD
from model.ways import Ways, is_half

Stage = Callable[[str], AbstractContextManager[object]]  # see Timeline.stage


class Step(Protocol):
    """Takes one step and gives its loss: nats, the mean over this replica's pictures, on the device, not waited for."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, masks: Masks, stage: Stage = nullcontext) -> torch.Tensor: ...

    def settle(self) -> None:
        """Whatever is computed next on the current stream sees the weights and losses of the steps so far."""


def loss_of(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Mean cross-entropy, nats, in float32 at least."""
    logits = model(images, masks)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels)


class PlainStep:
    """Forward, backward, update. A net that computes in bfloat16 casts its weights in every step, and their gradients back."""

    def __init__(self, model: torch.nn.Module, optimiser: PaperSGD) -> None:
        self.model, self.optimiser = model, optimiser

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, masks: Masks, stage: Stage = nullcontext) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        with stage("forward"):
            loss = loss_of(self.model, images.contiguous(memory_format=torch.channels_last), labels, masks)
        with stage("backward"):
            loss.backward()
        with stage("optimiser"):
            self.optimiser.step()
        return loss.detach()

    def settle(self) -> None:
        """Everything is on the current stream."""


class HalfStep(PlainStep):
    """The same numbers as PlainStep's of a net that computes in bfloat16, on a bfloat16 copy of its weights.

    An update writes the copy beside the float32 weights, so that neither weights nor gradients are cast: 20 bytes a parameter
    go through memory instead of 44. For one replica: nothing sums the gradients of others.
    """

    def __init__(self, net: Net, optimiser: PaperSGD) -> None:
        super().__init__(half_copy(net), optimiser)
        optimiser.halves = dict(zip(net.parameters(), self.model.parameters(), strict=True))

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, masks: Masks, stage: Stage = nullcontext) -> torch.Tensor:
        self.model.zero_grad(set_to_none=True)
        return super().__call__(images.to(torch.bfloat16), labels, masks, stage)


def half_copy(net: Net) -> Net:
    """The net with its weights in bfloat16, in the same place of its layout."""
    made = copy.deepcopy(net, {id(net.columns): net.columns})  # whose process groups are not to be copied
    made.look = None
    return made.to(torch.bfloat16)


def ways_for(net: Net, recipe: Recipe, layout: Layout) -> Ways:
    """How the net of a run computes. The forms that hang on the device are found by trying, but not where bits must come again."""
    train, device = recipe.train, layout.device
    half = is_half(train.precision, device)
    if train.step == "plain":
        return Ways(half, fused=False)
    if device.type != "cuda":
        return Ways(half)
    like = torch.zeros((), dtype=torch.bfloat16 if half else torch.float32, device=device)
    forms = {} if train.deterministic or net.groups == 1 else choose(net.design.two_column_shapes(train.batch // layout.data_count), like)
    return Ways(half, blocks=isinstance(net, AlexNet), forms=forms)


def make_step(net: Net, model: torch.nn.Module, optimiser: PaperSGD, recipe: Recipe, layout: Layout, graph: bool) -> Step:
    """The quickest step for a recipe and layout. model: the net, or the net in its data-parallel wrapping; graph: whether it may be one."""
    if recipe.train.step == "plain" or not net.ways.half or layout.data_group is not None:
        return PlainStep(model, optimiser)
    if graph and layout.device.type == "cuda" and net.columns.alone:
        from model.graphed import GraphedStep

        return GraphedStep(net, optimiser, recipe.train.batch)
    return HalfStep(net, optimiser)
