"""What Figure 1 comes to: epochs to the target of each net, and their ratio beside the paper's."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.figure1_net import BATCH, MOMENTUM, Activation, Curve, epochs_to
from model.figure1_plot import NAMES
from model.figure1_store import Plan
from model.record import machine, versions
from pipeline import atomic_file

PAPER = 6.0  # times, section 3.1 and Figure 1


@dataclass(frozen=True)
class Result:
    """trials: of each activation, a curve a rate; curves: one a seed, in the plan's order; name: of the pictures."""

    plan: Plan
    trials: dict[Activation, list[Curve]]
    curves: dict[Activation, list[Curve]]
    name: str

    def reached(self, activation: Activation) -> list[float | None]:
        """Epochs to the target by seed; None where it was not reached."""
        return [epochs_to(curve.errors, self.plan.target) for curve in self.curves[activation]]

    def ratio(self) -> tuple[float | None, bool]:
        """How many times tanh's epochs are ReLU's, means over the seeds, and whether that is a lower bound, as tanh did not always get there.

        None where ReLU did not always, or tanh diverged.
        """
        relu, tanh = self.reached("relu"), self.reached("tanh")
        if None in relu or any(curve.diverged for curve in self.curves["tanh"]):
            return None, False
        at_least = [curve.epochs if epochs is None else epochs for epochs, curve in zip(tanh, self.curves["tanh"], strict=True)]
        return sum(at_least) / max(sum(epochs for epochs in relu if epochs is not None), 1e-9), None in tanh


def summary(result: Result) -> list[str]:
    """A line for each net, and one for both."""
    return [*(_line(result, activation) for activation in result.curves), _ratio_line(result)]


def _line(result: Result, activation: Activation) -> str:
    curves, target, found = result.curves[activation], result.plan.target, result.reached(activation)
    each = [f"{epochs:.2f}" if epochs is not None else _not_reached(curve) for epochs, curve in zip(found, curves, strict=True)]
    numbers = [epochs for epochs in found if epochs is not None]
    mean = f"{statistics.mean(numbers):.2f} epochs to {target:g} %" if len(numbers) == len(found) else f"{target:g} % not always reached"
    by_seed = f" (by seed: {', '.join(each)})" if len(each) > 1 or not numbers else ""
    seconds = statistics.mean(second for curve in curves for second in curve.train_seconds)
    return f"{NAMES[activation]}, rate {curves[0].rate:g}: {mean}{by_seed}, {seconds:.1f} s of training an epoch"


def _not_reached(curve: Curve) -> str:
    return "diverged" if curve.diverged else f"{curve.errors[-1]:.1f} % after {curve.epochs}"


def _ratio_line(result: Result) -> str:
    ratio, bound = result.ratio()
    if ratio is None:
        return f"no ratio: {result.plan.target:g} % was not reached; more --epochs, or other --rates. The paper says {PAPER:g} times"
    return f"tanh takes {'more than ' if bound else ''}{ratio:.1f} times the epochs of ReLU; the paper says {PAPER:g} times"


def write_result(folder: Path, result: Result) -> None:
    """figure1.json: everything that the figure is drawn from. Raises OSError."""
    ratio, bound = result.ratio()
    content: dict[str, Any] = {
        "pictures": result.name,
        "plan": asdict(result.plan),
        "batch": BATCH,
        "momentum": MOMENTUM,
        "rates": {activation: curves[0].rate for activation, curves in result.curves.items()},
        "trial_errors_percent": {name: {f"{one.rate:g}": result.plan.trial_error(one) for one in some} for name, some in result.trials.items()},
        "epochs_to_target": {activation: result.reached(activation) for activation in result.curves},
        "ratio": ratio,
        "ratio_is_lower_bound": bound,
        "paper_ratio": PAPER,
        "curves": [asdict(curve) for curves in result.curves.values() for curve in curves],
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
    }
    with atomic_file(folder / "figure1.json", "w") as file:
        json.dump(content, file, indent=1)
