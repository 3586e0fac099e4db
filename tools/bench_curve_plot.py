"""The picture of a result of tools/bench_curve.py: loss curves of both forms, and by how much the same seed's differ.

    python tools/bench_curve_plot.py [--result docs/benchmarks/curve.json] [--out docs/benchmarks/curve.png]

Above: running means of the loss, the band of the plain seeds' mean and standard deviations behind them. Below: fast minus plain with the
same seed, beside plain minus plain of every two seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors

SIZE, DPI = (10.0, 7.5), 140  # inches, pixels an inch
GREY, BAND, BLUE, INK, LINE = "#8b929c", "#e3e6ea", "#2b6cb0", "#22262b", "#e6e8eb"


def draw(result: dict[str, Any]) -> Figure:
    """Losses above, differences below, over the last step of each running mean."""
    settings, judgement = result["settings"], result["judgement"]
    plain, fast = (np.array([one["smooth"] for one in result["curves"] if one["form"] == form]) for form in ("plain", "fast"))
    steps = np.arange(settings["running_mean_steps"], settings["steps"] + 1)
    figure = Figure(figsize=SIZE, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    _band(above, steps, result["band"], settings["band_deviations"])
    _curves(above, steps, plain, GREY, f"plain, {len(plain)} seeds")
    _curves(above, steps, fast, BLUE, f"fast, {len(fast)} seeds")
    above.axhline(judgement["chance_nats"], color=INK, linewidth=0.8, linestyle=":", label=f"guessing, {judgement['chance_nats']:.2f}")
    _differences(below, steps, plain, fast)
    _style(above, f"Loss of training, running mean of {settings['running_mean_steps']} steps", "nats")
    _style(below, "Differences of the same running means", "nats")
    below.set_xlabel("step", color=INK)
    figure.suptitle(_about(result), x=0.01, ha="left", fontsize=9, color=INK)
    return figure


def _band(axes: Axes, steps: np.ndarray, band: dict[str, list[float]], deviations: float) -> None:
    mean, around = np.array(band["mean"]), deviations * np.array(band["deviation"])
    axes.fill_between(steps, mean - around, mean + around, color=BAND, linewidth=0, label=f"plain: mean and {deviations:g} standard deviations")


def _differences(axes: Axes, steps: np.ndarray, plain: np.ndarray, fast: np.ndarray) -> None:
    between = np.stack([plain[one] - plain[other] for one, other in combinations(range(len(plain)), 2)])
    _curves(axes, steps, between, GREY, "plain minus plain, every two seeds")
    _curves(axes, steps, fast - plain, BLUE, "fast minus plain, same seed")
    axes.axhline(0, color=INK, linewidth=0.8)


def _curves(axes: Axes, steps: np.ndarray, curves: np.ndarray, colour: str, label: str) -> None:
    for number, curve in enumerate(curves):
        axes.plot(steps, curve, color=colour, linewidth=1.0, marker="." if len(steps) == 1 else "", label="" if number else label)


def _style(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _about(result: dict[str, Any]) -> str:
    settings, machine, pictures = result["settings"], result["machine"], result["pictures"]
    what = f"{pictures['train']:,} pictures of {pictures['classes']} classes, recipe {settings['recipe']}, batch {settings['batch']}"
    return f"Plain and fast form of the same training. {what}; {machine['gpu'] or machine['cpu']}; {result['date'][:10]}"


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw it into `path`, a PNG, whole or not at all."""
    with atomic_file(path) as file:
        draw(result).savefig(file, format="png", dpi=DPI)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plot loss curves.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--result", type=Path, default=Path("docs/benchmarks/curve.json"), help="JSON of tools/bench_curve.py")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/curve.png"), help="PNG to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        try:
            result = json.loads(given.result.read_text())
            draw(result)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{given.result} is no result of tools/bench_curve.py ({what}); run: python tools/bench_curve.py") from None
        write_plot(result, given.out)
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
