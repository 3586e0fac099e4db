"""What of each picture a net is evaluated on: its centre, ten windows, or all of it; the loader that gives it, and what the net makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from model import dense
from model.layout import Layout
from model.net import Net
from model.pictures import Source, augmentation, default_batch, validation_loader
from model.recipe import Recipe
from model.vgg_design import VggDesign
from pipeline import Batch, ImageLoader, InputError, ShardSet, WholeBatch, WholePictures

VIEWS = ("1", "10", *get_args(dense.Views))
Show = Callable[[torch.nn.Module, Any], torch.Tensor]


def of_windows(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """(n, classes) softmax outputs; pictures (n, 3, s, s), or (n, views, 3, s, s) whose outputs are averaged."""
    images = batch.images
    views = images.reshape(-1, *images.shape[-3:]).contiguous(memory_format=torch.channels_last)
    logits = net(views)
    return logits.float().softmax(dim=1).reshape(len(images), -1, logits.shape[1]).mean(dim=1)


def shown(views: str) -> Show:
    """How a net is shown a batch of the loader of `views`, one of VIEWS: (net, batch) -> (n, classes) softmax outputs."""
    if views not in get_args(dense.Views):
        return of_windows

    def of_whole(net: Any, batch: WholeBatch) -> torch.Tensor:
        return dense.probabilities(net, batch.pictures, views)  # type: ignore[arg-type]

    return of_whole


def loader_of(
    net: Net, source: Source, recipe: Recipe, layout: Layout, views: str, scales: tuple[int, ...], batch: int | None, split: Literal["val", "test"]
) -> ImageLoader | WholePictures:
    """scales: of whole pictures, () for the one that the net was validated at. Raises InputError."""
    batch = batch or default_batch(recipe, layout, views)
    check_views(recipe, views, scales)
    if views not in get_args(dense.Views):
        return validation_loader(source, recipe, layout, int(views), batch, split)
    assert isinstance(net, dense.Dense), "it was checked"
    if recipe.data.scale is not None:
        scales = scales or (augmentation(recipe).side(0),)
    loader = WholePictures(
        source.shards,
        split,
        scales,
        batch,
        rank=layout.rank,
        world=layout.world,
        device=layout.device,
        threads=source.threads,
        on_bad_sample=source.on_bad_sample,
        local=source.local,
        local_gb=source.local_gb,
    )
    for side in loader.scales:
        dense.check_side(net, side)
    return loader


def check_views(recipe: Recipe, views: str, scales: tuple[int, ...], shards: ShardSet | None = None) -> None:
    """Whether a net of this recipe can be shown pictures so; shards: those that it is to be shown. Raises InputError."""
    if views not in get_args(dense.Views):
        if scales:
            raise InputError(f"--scales are of whole pictures, and --views {views} cuts windows; use --views dense, 50 or both")
        if shards is not None and shards.manifest.settings.shape != "square" and recipe.data.scale is None:
            raise InputError(f"{shards.folder} has whole pictures, and the net was trained on squares; give shards made without --resize shorter")
        return
    if not isinstance(recipe.model, VggDesign):
        raise InputError(f"--views {views} shows whole pictures, which only VGG nets take, and this is an AlexNet; use --views 10")
    if recipe.data.mean_window != "channel":
        raise InputError(f"--views {views} subtracts the mean colour, and this net was trained less the mean image; use --views 10")


def name_of(views: str, scales: tuple[int, ...]) -> str:
    """For the user. scales: of the whole pictures; () where they are of no matter."""
    names = {"1": "1 view", "10": "10 views", "50": "50 crops", "dense": "dense", "both": "dense and 50 crops"}
    return names[views] + (f" at scale{'s' * (len(scales) > 1)} {', '.join(map(str, scales))}" if scales else "")
