"""Figure 1 as a picture: training error against epochs, ReLU solid, tanh dashed, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from model.figure1_net import Activation, Curve, epochs_to
from model.retrieve_sheet import GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE = "#2b6cb0"
NAMES: dict[Activation, str] = {"relu": "ReLU", "tanh": "tanh"}
FORMS: dict[Activation, tuple[str, str]] = {"relu": (BLUE, "-"), "tanh": (ORANGE, "--")}


def draw_figure(curves: Mapping[Activation, Sequence[Curve]], target: float, title: str, words: str) -> Figure:
    """A line a seed. title: over it; words: under the title, such as the ratio."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for activation, some in curves.items():
        _draw_curves(axes, activation, some, target)
    last = max(curve.epochs for some in curves.values() for curve in some)
    top = max(max(curve.errors) for some in curves.values() for curve in some)
    axes.set_xlim(0, 1.04 * last)
    axes.set_ylim(0, min(100.0, 1.06 * max(top, target)))
    axes.axhline(target, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(f"{target:g} %", (0, target), (5, 4), textcoords="offset points", fontsize=9, color=GREY)  # curves begin far above it
    _style(axes, title, words)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.legend(loc="upper right", fontsize=10, frameon=False, handlelength=3.2)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    return figure


def _draw_curves(axes: Axes, activation: Activation, curves: Sequence[Curve], target: float) -> None:
    """A ring where a curve crosses the target, and its epoch at the foot."""
    colour, form = FORMS[activation]
    for number, curve in enumerate(curves):
        label = f"{NAMES[activation]}, rate {curve.rate:g}" if number == 0 else None
        axes.plot(range(len(curve.errors)), curve.errors, form, color=colour, linewidth=2.2 if len(curves) == 1 else 1.4, alpha=0.9, label=label)
        reached = epochs_to(curve.errors, target)
        if reached is not None:
            axes.plot([reached], [target], "o", color=colour, markerfacecolor="white", markersize=6, zorder=5)
    found = [reached for curve in curves if (reached := epochs_to(curve.errors, target)) is not None]
    if len(found) == len(curves):
        mean = sum(found) / len(found)
        axes.plot([mean, mean], [0, target], color=colour, linewidth=0.9, linestyle=form, alpha=0.7)
        above = 5 + 15 * [*FORMS].index(activation)  # points; one over the other, as they may be near each other
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        place = {"textcoords": "offset points", "ha": "right", "fontsize": 10, "fontweight": "bold", "bbox": box}
        axes.annotate(f"{NAMES[activation]}: {mean:.1f} epochs", (mean, 0), (-5, above), color=colour, **place)  # type: ignore[arg-type]


def _style(axes: Axes, title: str, words: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=24)
    axes.text(0, 1.025, words, transform=axes.transAxes, fontsize=9.5, color=GREY)
    axes.set_xlabel("epochs", color=INK)
    axes.set_ylabel("training error, %", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)
