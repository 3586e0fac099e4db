"""The whole road on a drawn look-alike: archives, shards, colour statistics, training on two ranks, ten views, pictures.

make demo        (or: python tools/demo.py [--folder demo/])
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipeline.errors import InputError, one_line_errors
from pipeline.manifest import read_manifest
from tools.run_files import read_metrics

ROOT = Path(__file__).resolve().parents[1]


def run_stage(title: str, *arguments: object) -> float:
    """Run `python ARGUMENTS` from the repository, showing the command and what it prints; the seconds it took."""
    words = [str(argument) for argument in arguments]
    print(f"\n== {title}\n$ python {' '.join(words)}", flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
    if code:
        raise InputError(f"the step '{title}' ended with exit code {code}; what it printed stands above")
    return time.perf_counter() - began


def walk_the_road(given: argparse.Namespace, folder: Path) -> list[tuple[str, float]]:
    """All steps in order: what each was and its seconds."""
    data, shards, run = folder / "data", folder / "shards", folder / "run"
    shutil.rmtree(run, ignore_errors=True)  # the run of an earlier demo
    sizes = ["--classes", given.classes, "--train", given.train, "--val", given.val, "--side", given.side]
    settings = [word for setting in given.set for word in ("--set", setting)]
    steps: list[tuple[str, list[object]]] = [
        ("drawing a look-alike of ILSVRC2012", ["tools/make_lookalike.py", "--out", data, *sizes]),
        ("shards", ["tools/make_shards.py", "--source", data, "--out", shards, "--shard-size", given.shard_size]),
        ("colour statistics", ["tools/compute_pca.py", "--shards", shards]),
        ("what the network is fed", ["tools/show_batch.py", "--shards", shards, "--out", folder / "augmented.png"]),
        ("training", ["-m", "model.train", "--shards", shards, "--recipe", "small", "--columns", 2, "--device", "cpu", "--run", run, *settings]),
        ("pictures of the run", ["tools/plot_run.py", "--run", run, "--shards", shards]),
    ]
    return [(title, run_stage(title, *command)) for title, command in steps]


def report(folder: Path, seconds: list[tuple[str, float]]) -> float:
    """Print the closing table; the top-1 error of the ten views, in percent."""
    lines = read_metrics(folder / "run")
    steps = [line for line in lines if "loss_nats" in line]
    manifest, _ = read_manifest(folder / "shards")
    chance = 100 * (1 - 1 / len(manifest.classes))
    top1, top5 = (lines[-1][f"val_ten_view_top{k}_error_percent"] for k in (1, 5))
    train, val = (manifest.splits[split].samples for split in ("train", "val"))
    speed = sum(line["images_per_second"] for line in steps) / len(steps)
    wait = sum(line["data_wait_percent"] for line in steps) / len(steps)
    print("\n== done")
    for title, value in seconds:
        print(f"  {title:<40} {value:6.1f} s")
    print(f"  {'all':<40} {sum(value for _, value in seconds):6.1f} s")
    print(f"\n  {'pictures':<40} {train:,} training, {val:,} validation, {len(manifest.classes)} classes")
    print(f"  {'layout':<40} two ranks on the CPU, one column each")
    print(f"  {'training speed':<40} {speed:.0f} images/s, {wait:.1f} % of the time waiting for data")
    print(f"  {'epochs, last loss':<40} {steps[-1]['epoch']}, {steps[-1]['loss_nats']:.3f} nats")
    print(f"  {'top-1 error, ten views':<40} {top1:.1f} %  (chance {chance:.0f} %)")
    print(f"  {'top-5 error, ten views':<40} {top5:.1f} %")
    print("\n  pictures to look at:")
    for path in (folder / "augmented.png", *(folder / "run" / f"{name}.png" for name in ("curves", "kernels", "predictions"))):
        print(f"    {path}")
    return float(top1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The whole road on a drawn look-alike of ImageNet, on two CPU ranks.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="folder for everything it makes (default: demo/)")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--train", type=int, default=160, help="training pictures a class (default: 160)")
    parser.add_argument("--val", type=int, default=20, help="validation pictures a class (default: 20)")
    parser.add_argument("--side", type=int, default=500, help="usual long side of the drawn pictures (default: 500)")
    parser.add_argument("--shard-size", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--at-most", type=float, default=25.0, help="top-1 error in percent that it must come to (default: 25)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        seconds = walk_the_road(given, given.folder)
        error = report(given.folder, seconds)
        if error >= given.at_most:
            raise InputError(f"the net did not learn: top-1 error {error:.1f} %, expected under {given.at_most:g} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
