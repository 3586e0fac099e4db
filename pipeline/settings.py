"""What may be asked of a loader, and what cannot be had together."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pipeline.augment import Augmentation, MeanWindow
from pipeline.cache import CacheSettings
from pipeline.errors import InputError
from pipeline.order import Order
from pipeline.pixels import Decoded, Out
from pipeline.samples import OnBadSample
from pipeline.shards import ShardSet

MAX_SCALE = 2048  # pixels of a shorter side
Views = Literal["train", "centre", "ten"]
DecoderName = Literal["dali", "turbojpeg"]


def decoded_as(decoder: DecoderName, cache: CacheSettings | None, cached: bool, device: str, scaled: bool) -> Decoded:
    """What comes out of the decoder. Raises InputError.

    With a scale DALI resizes windows. On a GPU DALI cuts windows where nothing is kept. On a CPU its cut is no quicker than decoding
    the whole picture and our copy of the window (tools/bench_decode.py), and would not notice a picture that is damaged outside of it.
    """
    if scaled:
        return "windows"
    if cache is None or not cached:
        return "yuv420" if decoder == "turbojpeg" else "rgb" if device == "cpu" else "windows"
    if decoder == "turbojpeg" and cache.pixels == "rgb":
        raise InputError("decoder turbojpeg gives YUV planes, which is what is cached; use cache_pixels: yuv420, or decoder: dali for rgb")
    return cache.pixels


_WORDS = {"views": Views, "order": Order, "out": Out, "decoder": DecoderName, "on_bad_sample": OnBadSample, "mean_window": MeanWindow}


def check_words(**words: str) -> None:
    """Words that must be among a few. Raises InputError."""
    for name, word in words.items():
        if word not in get_args(_WORDS[name]):
            raise InputError(f"{name} must be one of {', '.join(get_args(_WORDS[name]))}, not {word!r}")


def check_numbers(**numbers: int | None) -> None:
    """Numbers that must be at least 1; None is for a default. Raises InputError."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")


def check_place(rank: int, world: int, seed: int, epoch: int) -> None:
    """Raises InputError."""
    if not 0 <= rank < world:
        raise InputError(f"rank must be from 0 to {world - 1} for a world of {world}, not {rank}")
    if not 0 <= seed < 2**64 or not 0 <= epoch < 2**32:
        raise InputError(f"seed must be from 0 to 2^64 - 1 and epoch from 0 to 2^32 - 1, not {seed} and {epoch}")


def check_state(state: Any, mine: dict[str, Any], shards: ShardSet) -> None:
    """Whether a loader of these shards, whose own state is `mine`, can go on from a state. Raises InputError."""
    wanted = {"epoch": int, "position": int, "seed": int, "digest": str}
    if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in wanted.items()):
        raise InputError(f"this is no state of a loader: {', '.join(wanted)} are wanted, three integers and a string; give what state_dict() gave")
    samples = len(shards)
    if not 0 <= state["position"] <= samples or not 0 <= state["epoch"] < 2**32:
        raise InputError(f"the state says epoch {state['epoch']}, position {state['position']}, but an epoch has positions 0 to {samples}")
    if state["digest"] != mine["digest"]:
        raise InputError(f"{shards.folder} is another shard set than the one this run was trained on; give the folder it was started with")
    if state["seed"] != mine["seed"]:
        raise InputError(f"the run was started with seed {state['seed']}, not {mine['seed']}; keep the seed to go on in the same order")
    if state.get("order", "global") != mine["order"]:
        raise InputError(f"the run was started with order {state.get('order', 'global')}, not {mine['order']}; keep it, or start anew")


def check_shape(shards: ShardSet, a: Augmentation) -> None:
    """Raises InputError for pictures that are not square where they are to be used as they are, and for a scale that is none."""
    if a.scale is None:
        if shards.manifest.settings.shape != "square":
            raise InputError(
                f"{shards.folder} has whole pictures, of any aspect, which must be brought to a scale: give data.scale, such as [256, 512], "
                "and data.mean_window: channel; or make shards with --resize square"
            )
        return
    if len(a.scale) != 2 or any(type(side) is not int for side in a.scale) or not 1 <= a.scale[0] <= a.scale[1] <= MAX_SCALE:
        raise InputError(f"scale must be two whole numbers of pixels, the least first, {MAX_SCALE:,} at most, not {list(a.scale)}")
    if a.scale[0] < a.crop:
        raise InputError(f"a {a.crop} crop does not fit pictures of scale {a.scale[0]}; use a scale from {a.crop} on, or a smaller input")
    if a.mean_window != "channel":
        raise InputError(f"with a scale there is no mean image to subtract; use mean_window: channel, the mean colour, not {a.mean_window}")


def check_scale(shards: ShardSet, a: Augmentation, decoder: DecoderName, cache: CacheSettings | None) -> None:
    """As check_shape, and what a loader cannot do with a scale. Raises InputError."""
    check_shape(shards, a)
    if a.scale is None:
        return
    if decoder == "turbojpeg":
        raise InputError("decoder turbojpeg cannot resize, which a scale needs; use decoder: dali")
    if cache is not None and cache.where != "none":
        raise InputError("a cache keeps pictures of one size, and with a scale they are of any; use cache: none")


def check_settings(shards: ShardSet, batch: int, crop: int, size: int, views: Views, world: int, out: Out) -> None:
    """Sizes that must fit each other. Raises InputError."""
    if crop > size:
        raise InputError(f"a {crop} crop does not fit the {size} pixels of {shards.folder}; use a smaller input or shards of a larger --size")
    if batch < world:
        raise InputError(f"batch {batch} is smaller than the {world} ranks that share it; use a batch of at least {world} or fewer devices")
    if views == "train" and batch % world:
        raise InputError(f"batch {batch} does not divide over {world} ranks; the nearest that does is {max(1, round(batch / world)) * world}")
    if views == "train" and batch > len(shards):
        raise InputError(f"batch {batch} is larger than the {len(shards)} samples of {shards.folder} ({shards.split}); use a smaller batch")
    if views == "ten" and out == "uint8":
        raise InputError('the ten views come finished, out="float32"; use views="centre" for uint8')
