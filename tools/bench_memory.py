"""Memory of a process that loads for many epochs: it must not grow.

    python tools/bench_memory.py [--shards DIR] [--epochs 50] [--out docs/benchmarks/memory.json]

A fresh process for each kind of loader; resident memory is read from the system after every epoch. Writes a JSON and, beside it, a plot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pipeline import CacheSettings, ImageLoader
from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_where import where

KINDS: dict[str, dict[str, Any]] = {
    "DALI, float32": {},
    "TurboJPEG, float32": {"decoder": "turbojpeg"},
    "DALI, windowed order": {"order": "windowed", "window": 2},
    "cache in main memory": {"cache": CacheSettings("host")},
}


def resident_mb() -> float:
    """Resident memory of this process without pages of files, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1000


def run_one(shards: Path, kind: str, epochs: int, batch: int) -> None:
    """Print resident MB after each epoch, a line each."""
    loader = ImageLoader(shards, "train", batch=batch, **KINDS[kind])
    for _ in range(epochs):
        for _ in loader:
            pass
        print(f"{resident_mb():.1f}", flush=True)


def plot(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(8, 4))
    axes = figure.add_subplot()
    for row in result["rows"]:
        axes.plot(range(1, len(row["resident_mb"]) + 1), row["resident_mb"], label=row["kind"])
    axes.set(xlabel="epoch", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title(
        f"A loading process over {result['settings']['epochs']} epochs of {result['settings']['samples']:,} pictures", loc="left", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=130, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Memory over many epochs.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards, with colour statistics")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/memory.json"), help="JSON to write; the plot lies beside it")
    parser.add_argument("--kind", choices=tuple(KINDS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    with one_line_errors():
        if given.kind:
            run_one(given.shards, given.kind, given.epochs, given.batch)
            return 0
        samples = len(ImageLoader(given.shards, "train", batch=given.batch).shards)
        rows = []
        for kind in KINDS:
            command = [sys.executable, "-m", "tools.bench_memory", "--kind", kind, "--shards", str(given.shards.resolve())]
            command += ["--epochs", str(given.epochs), "--batch", str(given.batch)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise InputError(f"{kind}: its process ended with code {done.returncode}; what it said is above")
            values = [float(line) for line in done.stdout.split()]
            rows.append({"kind": kind, "resident_mb": values, "growth_mb_after_epoch_5": round(values[-1] - values[min(4, len(values) - 1)], 1)})
            print(f"{kind:<24} {values[0]:8.1f} MB after epoch 1, {values[-1]:8.1f} after {len(values)}", flush=True)
        result = {**where(torch.device("cpu")), "settings": {"epochs": given.epochs, "batch": given.batch, "samples": samples}, "rows": rows}
        with atomic_file(given.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
        plot(result, given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
