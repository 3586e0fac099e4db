"""Whether training learns with everything on as it does in the plain form: loss curves of a few hundred steps, several seeds of each.

    python tools/bench_curve.py --tiny tiny-20.tar [--steps 300] [--seeds 5] [--device cpu] [--out docs/benchmarks/curve.json]

Makes shards of the tar's training pictures, trains the small recipe on them in both forms with the same seeds, judges the fast curves
by the plain ones (see judge), and writes a JSON and, beside it, a plot. The exit code is 1 where the fast curves lie outside the plain
ones' spread, or where nothing was learned by which they could be told apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from pipeline.manifest import read_manifest
from tools.bench_curve_plot import write_plot
from tools.bench_where import where
from tools.run_files import read_metrics

ROOT = Path(__file__).resolve().parents[1]
# Of the small recipe, so that 300 steps learn something: larger weights in conv2, fc6 and fc7, less dropout; and its rate does not fall.
CHANGES = ("train.drop_epochs=[]", "train.log_every=1", "model.dropout=0.2", "model.init_std=[0.01, 0.03, 0.05, 0.06, 0.06, 0.03, 0.06, 0.03]")
BAND = 3.0  # standard deviations
AROUND = 5  # running means: places over which a standard deviation is taken, since five seeds alone come close together by chance
WITHIN = 0.99  # share of a fast curve's steps that must lie in the band
LEARNED = 0.95  # of chance's loss: where the plain curves must have come to


@dataclass(frozen=True)
class Form:
    """settings: KEY=VALUE of the recipe; environment: of the training's process."""

    settings: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


# cuDNN rounds float32 to TF32 unless it is told not to.
PLAIN = Form(("train.precision=float32", "train.step=plain"), {"NVIDIA_TF32_OVERRIDE": "0"})
FAST = Form(("train.precision=bfloat16", "train.step=fast"))
FORMS = {"plain": PLAIN, "fast": FAST}

Train = Callable[[list[str], Mapping[str, str], Path], int]  # arguments of model.train, its environment, file for what it says -> exit code


@dataclass(frozen=True)
class Plan:
    """What is asked for. smooth: steps of the running mean; changes: KEY=VALUE of both forms' recipes; at_once: runs at the same time."""

    shards: Path
    runs: Path
    device: str
    steps: int
    seeds: int
    batch: int
    smooth: int
    changes: list[str]
    at_once: int


def unpack(tar: Path, to: Path) -> int:
    """Write the pictures .../train/CLASS/PICTURE of `tar` to to/train/CLASS/PICTURE; how many there are. Raises InputError.

    Those of val/ are left out: only the loss of training is looked at, and validation would take as long again.
    """
    count = 0
    try:
        with tarfile.open(tar) as opened:
            for member in opened:
                *_, split, name, picture = ("", "", *PurePosixPath(member.name).parts)
                if split != "train" or not member.isfile() or ".." in (name, picture):
                    continue
                (to / split / name).mkdir(parents=True, exist_ok=True)
                file = opened.extractfile(member)
                assert file is not None, f"{member.name} is a file"
                (to / split / name / picture).write_bytes(file.read())
                count += 1
    except (tarfile.TarError, EOFError, FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"--tiny {tar} is no whole tar ({error}); give one that holds train/CLASS/PICTURE") from None
    return count


def make_shards(tar: Path, work: Path, batch: int) -> Path:
    """work/shards of the tar's training pictures, with colour statistics; those that are there already are kept. Raises InputError."""
    shards = work / "shards"
    with tempfile.TemporaryDirectory(dir=work) as source:
        count = unpack(tar, Path(source))
        if count < batch:
            raise InputError(
                f"--tiny {tar} has {count} pictures train/CLASS/PICTURE, fewer than a batch of {batch}; give another, or a smaller --batch"
            )
        for tool, arguments in (("make_shards", ["--source", source, "--out", str(shards)]), ("compute_pca", ["--shards", str(shards)])):
            code = subprocess.run([sys.executable, f"tools/{tool}.py", *arguments], cwd=ROOT, check=False).returncode
            if code:
                raise InputError(f"{tool} ended with exit code {code}; what it printed stands above")
    return shards


def train_process(words: list[str], environment: Mapping[str, str], said: Path) -> int:
    """model.train in a process of its own, as a user would start it."""
    with open(said, "w") as file:
        command = [sys.executable, "-m", "model.train", *words]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file, check=False).returncode


def losses_of(plan: Plan, name: str, seed: int, train: Train) -> list[float]:
    """Train a form of this name: the loss of each step, nats. Raises InputError where it ends early."""
    form, run = FORMS[name], plan.runs / f"{name}-{seed}"
    an_epoch = read_manifest(plan.shards)[0].splits["train"].samples // plan.batch
    settings = [*CHANGES, f"train.batch={plan.batch}", *plan.changes, *form.settings, f"train.epochs={-(-plan.steps // an_epoch)}"]
    words = ["--shards", str(plan.shards), "--recipe", "small", "--device", plan.device, "--devices", "1", "--run", str(run), "--save-every", "0"]
    words += [word for setting in (*settings, f"train.seed={seed}") for word in ("--set", setting)]
    said = run.with_suffix(".txt")
    code = train(words, form.environment, said)
    if code:
        last = (said.read_text(errors="replace").splitlines() or ["nothing"])[-1]
        raise InputError(f"the {name} training with seed {seed} ended with exit code {code}, and said last: {last.removeprefix('error: ')}")
    found = [line["loss_nats"] for line in read_metrics(run) if "loss_nats" in line][: plan.steps]
    print(f"{name:<5} seed {seed}: {len(found)} steps, loss {found[0]:.3f} to {np.mean(found[-plan.smooth :]):.3f} nats", flush=True)
    return found


def running_mean(losses: np.ndarray, width: int) -> np.ndarray:
    """(curves, steps) -> (curves, steps - width + 1): the mean of each `width` steps one after the other."""
    return np.lib.stride_tricks.sliding_window_view(losses, width, axis=1).mean(axis=2)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def spread(plain: np.ndarray, around: int) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, places) -> at each place the mean over seeds, and the root of their variance (n - 1) averaged over `around` places about it."""
    window = np.ones(min(around, plain.shape[1]))
    variance = np.convolve(plain.var(axis=0, ddof=1), window, "same") / np.convolve(np.ones(plain.shape[1]), window, "same")
    return plain.mean(axis=0), np.maximum(np.sqrt(variance), 1e-9)


def judge(plain: np.ndarray, fast: np.ndarray, chance: float, around: int) -> dict[str, Any]:
    """Whether fast curves lie among plain ones; both (seeds, places), running means of losses in nats, a row for the same seed in each.

    At each place the plain curves have a mean and a standard deviation over the seeds (see spread). The fast curves lie within it if
      - of each, a share of WITHIN of the places or more is at most BAND standard deviations from the mean, and
      - the root mean square, over places and seeds, of fast minus plain with the same seed is smaller than that of plain minus plain, over
        places and pairs of seeds: what the form changes is less than what the seed changes.
    The first alone would let pass a form that shifts all curves a little; the second is the sharper with the same seeds' pictures,
    weights and dropout. Where the plain curves end above LEARNED of `chance`, the loss of guessing, there is nothing to tell apart.
    """
    mean, deviation = spread(plain, around)
    away, pairs = (fast - mean) / deviation, fast - plain
    between = np.stack([plain[one] - plain[other] for one, other in combinations(range(len(plain)), 2)])
    shares = (np.abs(away) <= BAND).mean(axis=1)
    ends = {"plain": float(plain[:, -1].mean()), "fast": float(fast[:, -1].mean())}
    faults = [
        f"the fast curve of seed {seed} is in the band at {share:.1%} of its places only" for seed, share in enumerate(shares) if share < WITHIN
    ]
    if not rms(pairs) < rms(between):
        faults.append(f"fast and plain differ by {rms(pairs):.4f} nats with the same seed, plain ones by {rms(between):.4f} between seeds")
    if ends["plain"] > LEARNED * chance:
        faults.append(f"the plain curves end at {ends['plain']:.3f} nats, hardly below guessing ({chance:.3f}): too few steps to tell anything")
    rows = [
        {"seed": seed, "share_within": float(shares[seed]), "most_deviations": float(np.abs(away[seed]).max()), "paired_rms_nats": rms(pairs[seed])}
        for seed in range(len(fast))
    ]
    differences = {"paired_rms_nats": rms(pairs), "between_seeds_rms_nats": rms(between), "paired_mean_nats": float(pairs.mean())}
    return {"within": not faults, "faults": faults, "end_nats": ends, "chance_nats": chance, **differences, "seeds": rows}


def benchmark(plan: Plan, train: Train = train_process) -> dict[str, Any]:
    """The whole result, as it is written to the JSON. Raises InputError."""
    manifest, _ = read_manifest(plan.shards)
    tasks = [(form, seed) for form in FORMS for seed in range(plan.seeds)]
    found = _all_losses(plan, tasks, train)
    losses = np.array(found).reshape(len(FORMS), plan.seeds, plan.steps)
    smooth = np.stack([running_mean(of_form, plan.smooth) for of_form in losses])
    curves = [
        {"form": form, "seed": seed, "losses": one.tolist(), "smooth": even.round(5).tolist()}
        for (form, seed), one, even in zip(tasks, losses.reshape(len(tasks), -1), smooth.reshape(len(tasks), -1), strict=True)
    ]
    mean, deviation = spread(smooth[0], AROUND * plan.smooth)
    return {
        **where(torch.device("cuda:0" if plan.device == "cuda" else "cpu")),
        "settings": _settings(plan),
        "pictures": {"train": manifest.splits["train"].samples, "classes": len(manifest.classes)},
        "judgement": judge(smooth[0], smooth[1], math.log(len(manifest.classes)), AROUND * plan.smooth),
        "band": {"mean": mean.round(5).tolist(), "deviation": deviation.round(5).tolist()},
        "curves": curves,
    }


def _all_losses(plan: Plan, tasks: list[tuple[str, int]], train: Train) -> list[list[float]]:
    if plan.at_once == 1:
        return [losses_of(plan, form, seed, train) for form, seed in tasks]
    with ThreadPoolExecutor(plan.at_once) as pool:
        return list(pool.map(lambda task: losses_of(plan, task[0], task[1], train), tasks))


def _settings(plan: Plan) -> dict[str, Any]:
    forms = {name: {"settings": list(form.settings), "environment": dict(form.environment)} for name, form in FORMS.items()}
    asked = {"device": plan.device, "steps": plan.steps, "seeds": plan.seeds, "batch": plan.batch, "running_mean_steps": plan.smooth}
    limits = {"deviation_around_steps": AROUND * plan.smooth, "band_deviations": BAND, "share_within": WITHIN}
    return {**asked, **limits, "recipe": "small", "changes": [*CHANGES, *plan.changes], "forms": forms}


def table(result: dict[str, Any]) -> str:
    j, s = result["judgement"], result["settings"]
    lines = [f"running means of {s['running_mean_steps']} steps; the band is the plain seeds' mean and {BAND:g} standard deviations", ""]
    lines += [f"{'seed':>6} {'in the band':>12} {'farthest, deviations':>21} {'fast - plain, rms nats':>23}"]
    for row in j["seeds"]:
        lines.append(f"{row['seed']:>6} {row['share_within']:>12.1%} {row['most_deviations']:>21.2f} {row['paired_rms_nats']:>23.4f}")
    lines += ["", f"fast - plain with the same seed  {j['paired_rms_nats']:.4f} nats rms, {j['paired_mean_nats']:+.4f} in the mean"]
    lines += [f"plain - plain between seeds      {j['between_seeds_rms_nats']:.4f} nats rms"]
    lines += [
        f"at the end                       plain {j['end_nats']['plain']:.3f}, fast {j['end_nats']['fast']:.3f}, guessing {j['chance_nats']:.3f}"
    ]
    verdict = "the fast curves lie within the seed-to-seed spread of the plain ones" if j["within"] else "not shown: " + "; ".join(j["faults"])
    return "\n".join([*lines, verdict])


def write(result: dict[str, Any], out: Path) -> None:
    """JSON, a line for each list of numbers, and PNG, each whole or not at all."""
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(result, indent=1))
    with atomic_file(out, "w") as file:
        file.write(text + "\n")
    write_plot(result, out.with_suffix(".png"))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fast and plain loss curves.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tiny", type=Path, required=True, help="tar that holds train/CLASS/PICTURE, at any depth")
    parser.add_argument("--work", type=Path, help="folder that is kept: shards, which another call takes over, and runs (default: none is kept)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each form")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--smooth", type=int, default=20, help="steps of the running mean that is judged")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time, which changes no loss")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of both forms' recipe")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/curve.json"), help="JSON to write; PNG beside it")
    return parser.parse_args(arguments)


def _check(given: argparse.Namespace) -> None:
    """Raises InputError for what cannot be used, before anything is made."""
    for name, least in (("steps", 1), ("seeds", 2), ("batch", 1), ("smooth", 1), ("at_once", 1)):
        if getattr(given, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(given, name)}")
    if given.smooth > given.steps:
        raise InputError(f"--smooth {given.smooth} is more than the {given.steps} steps; give a smaller one")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    if given.out.suffix != ".json" or given.out.is_dir() or not given.out.absolute().parent.is_dir():
        raise InputError(f"--out {given.out} cannot be written: give the path of a .json file in a folder that exists")


def measure(given: argparse.Namespace, work: Path, train: Train) -> dict[str, Any]:
    """Shards, runs and judgement, in `work`. Raises InputError."""
    shards, runs = make_shards(given.tiny, work, given.batch), work / "curve-runs"
    shutil.rmtree(runs, ignore_errors=True)  # of an earlier call
    runs.mkdir()
    return benchmark(Plan(shards, runs, given.device, given.steps, given.seeds, given.batch, given.smooth, given.set, given.at_once), train)


def main(arguments: list[str] | None = None, train: Train = train_process) -> int:
    given = _arguments(arguments)
    with one_line_errors(), tempfile.TemporaryDirectory(prefix="bench-curve-") as temporary:
        _check(given)
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        result = measure(given, work, train)
        write(result, given.out)
        print(table(result))
        return 0 if result["judgement"]["within"] else 1


if __name__ == "__main__":
    sys.exit(main())
