"""The command line of model.train."""

from __future__ import annotations

import argparse
from pathlib import Path


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0 on")
    return int(word)


def _minutes(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of minutes above 0")
    return value


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train AlexNet, or a VGG net, on shards.", allow_abbrev=False)
    parser.add_argument("--shards", default="shards", help="folder made by make_shards, or its URL: s3://, gs://, http(s):// (default: shards/)")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    parser.add_argument("--local-gb", type=float, help="of a URL: most of that folder to use, 10^9 bytes (default: half of what is free)")
    parser.add_argument(
        "--on-bad-sample", choices=("stop", "skip"), default="stop", help="stop with its name (default), or train on the next picture instead"
    )
    parser.add_argument("--verify", action="store_true", help="compare all shards with their sums first; a fault ends the run, also with skip")
    parser.add_argument("--recipe", help="alexnet (the paper, default), alexnet-2012 (the authors' program), vgg, small, or a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe, such as train.rate=0.02")
    parser.add_argument(
        "--columns",
        type=int,
        choices=(1, 2),
        help="devices that share one net: 2 puts a column on each (default: 2 where there are two GPUs, but for nets of one)",
    )
    parser.add_argument("--devices", type=int, help="number of devices, one process each (default: all GPUs; 1 on the CPU)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="decoding threads a process (default: its share of the cores)")
    parser.add_argument("--prefetch", type=int, default=2, help="batches decoded ahead (default: 2)")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/RECIPE-DATE-TIME; with --resume the newest in runs/)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on from the run's last checkpoint; auto: or begin, where it has none yet",
    )
    parser.add_argument("--init-from", type=Path, help="begin with these weights: a checkpoint, .safetensors, .pth or .onnx")
    parser.add_argument("--new-last-layer", action="store_true", help="with --init-from: all but its last layer, for other classes (fine-tuning)")
    parser.add_argument("--hybrid", action="store_true", help="convolutions data-parallel, fully connected layers split over all devices (2014)")
    parser.add_argument(
        "--save-every", type=_count, default=500, metavar="STEPS", help="steps between checkpoints; 0: at each epoch's end only (default: 500)"
    )
    parser.add_argument("--restarts", type=_count, metavar="N", help="start again after a fault, N times without progress (default: 0)")
    parser.add_argument(
        "--timeout", type=_minutes, default=10.0, metavar="MINUTES", help="a rank that stands still so long ends the job (default: 10)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run: layout, memory, exchanges, time by twenty measured steps; keep nothing"
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="STEPS", help="write a time line of so many steps to RUN/profile/, a Chrome trace a rank"
    )
    return parser.parse_args(arguments)
