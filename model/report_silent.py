"""The part of a run's report on units that never fire."""

from __future__ import annotations

import re
from statistics import fmean

from model.activations import PICTURES
from model.charts import Line, chart
from model.design import Design
from model.page import note, section, table
from model.run_lines import RunLines, Values

KEY = re.compile(r"silent_percent_(\w+)_column(\d)")  # of metrics.jsonl
TITLE = "Units that never fire"
ABOUT = (
    f"Share of a convolution's maps, or of a fully connected layer's units, that are 0 on all of the pictures looked at: at most {PICTURES}"
    " of a step's batch, so that those which fire seldom are among them. A look is taken after the first step and at the end of each epoch."
)


def silent(run: RunLines) -> str:
    """Table of the first look and the newest by layer and column, and a chart of all."""
    if isinstance(run.recipe.model, Design) and run.recipe.model.activation == "tanh":
        return section(TITLE, note("Does not apply: this net's units give tanh, which is 0 at a single point only; units of ReLU fall silent."))
    if not run.looks:
        return section(TITLE, note("Not looked at: it stopped before its first look, or an older program trained it."))
    looks = [(line["step"], _shares(line)) for line in run.looks]
    layers, columns = (list(dict.fromkeys(key[part] for _, shares in looks for key in shares)) for part in (0, 1))
    shown = looks[:1] if len(looks) == 1 else [looks[0], looks[-1]]
    head = [f"step {step:,}{', column ' + ' / '.join(columns) if len(columns) > 1 else ''}" for step, _ in shown]
    rows = [(layer, *(_percent([shares.get((layer, column)) for column in columns]) for _, shares in shown)) for layer in layers]
    both = f"<div class='pair'>{table(('', *head), rows, range(1, 1 + len(head)))}{_curve(run, layers, looks)}</div>"
    return section(TITLE, note(ABOUT), both)


def _shares(line: Values) -> dict[tuple[str, str], float]:
    """Percent by layer and column."""
    return {(found[1], found[2]): float(value) for key, value in line.items() if (found := KEY.fullmatch(key))}


def _percent(shares: list[float | None]) -> str:
    return " / ".join("–" if share is None else f"{share:.1f}" for share in shares) + " %"


def _curve(run: RunLines, layers: list[str], looks: list[tuple[int, dict[tuple[str, str], float]]]) -> str:
    epochs, lines = [run.epoch(step) for step, _ in looks], []
    for number, layer in enumerate(layers):
        values = [[share for (its, _), share in shares.items() if its == layer] for _, shares in looks]
        lines.append(Line(layer, epochs, [fmean(each) if each else None for each in values], number))
    return chart("Mean of the columns", "percent of a layer", lines)
