"""The command line of model.evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.views import VIEWS


def _scales(words: str) -> tuple[int, ...]:
    if not all(word.isdecimal() for word in words.split(",")):
        raise argparse.ArgumentTypeError(f"{words!r} is not whole numbers of pixels with commas, such as 256,384,512")
    scales = tuple(map(int, words.split(",")))
    if len(set(scales)) < len(scales):
        raise argparse.ArgumentTypeError(f"{words!r} names a scale twice, which would count it twice")
    return scales


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Top-1 and top-5 error of a checkpoint, or of several and of their average.")
    what = "of runs: runs/RUN/checkpoints/best, latest, or a step's; of several the softmax outputs are averaged too"
    parser.add_argument("--checkpoint", type=Path, required=True, nargs="+", metavar="CHECKPOINT", help=what)
    parser.add_argument("--shards", default="shards", help="folder made by make_shards (default: shards/)")
    views = "centre view, or the paper's ten (default: 10); of VGG nets also whole pictures: 50 crops a scale, dense, or both averaged"
    parser.add_argument("--views", choices=VIEWS, default="10", help=views)
    scales = "of 50, dense and both: shorter sides of the whole pictures, averaged, such as 256,384,512 (default: the scale of validation)"
    parser.add_argument("--scales", type=_scales, default=(), metavar="Q,Q,...", help=scales)
    parser.add_argument("--split", choices=("val", "test"), default="val", help="test: the paper's figures of ILSVRC2010 (default: val)")
    parser.add_argument("--batch", type=int, help="pictures at a time over all devices (default: by the recipe)")
    parser.add_argument("--devices", type=int, default=1, help="number of devices, one process each, which share the pictures (default: 1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--on-bad-sample", choices=("stop", "skip"), default="stop", help="a picture that cannot be used is not counted by skip")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    parser.add_argument("--local-gb", type=float, help="of a URL: most of that folder to use, 10^9 bytes (default: half of what is free)")
    return parser.parse_args(arguments)
