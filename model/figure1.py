"""The paper's Figure 1: a four-layer convolutional net reaches 25 % training error in six times fewer epochs with ReLU than with tanh.

python -m model.figure1 --cifar FOLDER [--out runs/figure1]       CIFAR-10, its python or binary archive, or what it unpacks to
python -m model.figure1 --shards shards/ [--out runs/figure1]     pictures of shards, at 32 x 32, where there is no CIFAR-10

The net and what the paper leaves open of it: model/figure1_net.py. For each of the two, every rate of --rates is tried for as many epochs, and
the one with the lowest training error then is taken. Writes into --out: trials/ and curves/ with a file for each training, figure1.json and
figure1.png. Trainings that are there are not repeated.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import get_args

import torch

from model.deterministic import set_deterministic
from model.figure1_data import of_cifar, of_shards
from model.figure1_net import ACTIVATIONS, Activation, Curve, Start, TrainingSet
from model.figure1_plot import NAMES, draw_figure
from model.figure1_result import Result, summary, write_result
from model.figure1_store import Plan, Store
from model.layout import choose
from model.memory import keep_freed_memory
from model.retrieve_sheet import write_png
from pipeline import InputError, one_line_errors

RATES = "0.0005,0.001,0.002,0.005,0.01,0.02,0.05,0.1"


def _read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's Figure 1: training error against epochs, ReLU and tanh.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--cifar", type=Path, metavar="FOLDER", help="with CIFAR-10's python or binary archive, or what it unpacks to")
    source.add_argument("--shards", metavar="FOLDER", help="made by make_shards; its training pictures are made 32 x 32")
    parser.add_argument("--out", type=Path, default=Path("runs/figure1"), help="folder of what is written (default: runs/figure1)")
    parser.add_argument("--epochs", type=int, default=60, help="most of a training; it ends at the target (default: 60)")
    parser.add_argument("--target", type=float, default=25.0, help="training error to reach, percent (default: 25)")
    parser.add_argument("--start", choices=get_args(Start), default="small", help="weights as in 2012, or by fan-in as today (default: small)")
    parser.add_argument("--seeds", default="0,1,2", help="of the trainings, with commas between (default: 0,1,2)")
    parser.add_argument("--rates", default=RATES, help=f"that are tried for each activation (default: {RATES})")
    parser.add_argument("--trial-epochs", type=int, default=4, help="of each rate that is tried, with the first seed (default: 4)")
    parser.add_argument("--pictures", type=int, default=50_000, help="to train on, at most; evenly spread (default: 50000)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(arguments)


def _plan(given: argparse.Namespace) -> Plan:
    """Raises InputError."""
    for name, least in (("epochs", 1), ("trial_epochs", 1), ("pictures", 1)):
        if getattr(given, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, it is {getattr(given, name)}")
    if not 0 < given.target < 100:
        raise InputError(f"--target must be a percentage between 0 and 100, not {given.target:g}")
    seeds = given.seeds.split(",")
    if not all(seed.isdecimal() and len(seed) < 10 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds must be different whole numbers of at most 9 digits with commas between, not {given.seeds!r}")
    return Plan([int(seed) for seed in seeds], _rates(given.rates), given.trial_epochs, given.epochs, given.target, given.start)


def _rates(text: str) -> list[float]:
    try:
        rates = sorted(float(part) for part in text.split(","))
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
        raise InputError(f"--rates must be different numbers above 0 with commas between, not {text!r}")
    return rates


def _chosen_rate(activation: Activation, trials: list[Curve], plan: Plan) -> float:
    """That of the lowest training error at the end of the trials; where they are equal, the lower rate. Says what was tried."""
    errors = {trial.rate: plan.trial_error(trial) for trial in trials}
    print(f"{NAMES[activation]}, {plan.trial_epochs} epochs of each rate:", ", ".join(f"{rate:g}: {error:.1f} %" for rate, error in errors.items()))
    if all(trial.diverged for trial in trials):
        raise InputError(f"with {NAMES[activation]} every rate diverged; give lower ones by --rates")
    best = min(errors, key=lambda rate: (errors[rate], rate))
    edge = f"; it is the {'lowest' if best == plan.rates[0] else 'highest'} of --rates, so one beyond it may be better"
    print(f"{NAMES[activation]}: rate {best:g}{edge if len(errors) > 1 and best in (plan.rates[0], plan.rates[-1]) else ''}", flush=True)
    return best


def _figure1(given: argparse.Namespace) -> Result:
    plan = _plan(given)
    device = torch.device(choose(1, 1, given.device, 1)[2])
    small = of_cifar(given.cifar, given.pictures) if given.cifar else of_shards(given.shards, given.pictures)
    (given.out / "trials").mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is told before the first training
    set_deterministic(True, device)
    keep_freed_memory(device)
    name = f"{len(small.labels):,} pictures of {small.classes} classes"
    print(f"{small.name}: {name}; {device.type}, {torch.get_num_threads()} threads, float32", flush=True)
    store = Store(given.out, small, TrainingSet(small.pictures, small.labels, device, plan.start))
    trials, curves = dict[Activation, list[Curve]](), dict[Activation, list[Curve]]()
    for activation in ACTIVATIONS:
        trials[activation] = [store.trial(activation, rate, plan) for rate in plan.rates]
    rates = {activation: _chosen_rate(activation, trials[activation], plan) for activation in ACTIVATIONS}
    for seed in plan.seeds:  # both nets of a seed before the next, so that an early end leaves a pair
        for activation in ACTIVATIONS:
            curves.setdefault(activation, []).append(store.curve(activation, rates[activation], seed, plan))
    return Result(plan, trials, curves, f"{small.name}: {name}")


def main(arguments: list[str] | None = None) -> int:
    given = _read_arguments(arguments)
    with one_line_errors():
        result = _figure1(given)
        write_result(given.out, result)
        words = summary(result)
        write_png(
            draw_figure(result.curves, result.plan.target, f"Figure 1 on {result.name}, {result.plan.start} start", words[-1]),
            given.out / "figure1.png",
        )
        print("\n".join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
