"""The results of tools/experiments.py as Markdown tables. Errors in percent, of several trainings the mean and the standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def spread(values: list[float], sign: str = "") -> str:
    """Mean, and the standard deviation (n - 1) of several. sign: "+" for differences."""
    return f"{statistics.mean(values):{sign}.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def worse_by(row: Result, whole: Result) -> list[list[float]]:
    """Points of top-1 and of top-5 by which each seed is worse than the whole net of the same seed."""
    return [[one - other for one, other in zip(row[top], whole[top], strict=True)] for top in ("top1", "top5")]


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """Words to the left, figures to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def ablations(result: Result) -> str:
    whole, *others = result["rows"]
    rows = [[whole["what"], spread(whole["top1"]), spread(whole["top5"]), "", "", "", f"{sum(whole['sent']):,}"]]
    for one in others:
        paper = " / ".join("-" if value is None else f"{value:+.1f}" for value in one["paper"]) if one["source"] else ""
        differences = [spread(some, "+") for some in worse_by(one, whole)]
        rows.append([one["what"], spread(one["top1"]), spread(one["top5"]), *differences, paper, f"{sum(one['sent']):,}"])
    return markdown(["", "top-1 %", "top-5 %", "worse by, top-1", "top-5", "the paper", "columns send, bytes a picture"], rows)


def errors(result: Result) -> str:
    rows = [[one["what"], str(len(one["top1"])), spread(one["top1"]), spread(one["top5"])] for one in result["rows"]]
    return markdown(["", "n", "top-1 %", "top-5 %"], rows)


def epochs(result: Result) -> str:
    target, rows = result["plan"]["target"], []
    for activation, found in result["epochs_to_target"].items():
        each = ["not reached" if one is None else f"{one:.2f}" for one in found]
        rows.append([activation, f"{result['rates'][activation]:g}", ", ".join(each)])
    ratio = "none" if result["ratio"] is None else f"{'more than ' if result['ratio_is_lower_bound'] else ''}{result['ratio']:.1f}"
    rows.append(["tanh's over ReLU's", "", f"{ratio} (the paper, on CIFAR-10: {result['paper_ratio']:g})"])
    return markdown([result["pictures"], "rate", f"epochs to {target:g} % training error, by seed"], rows)


def colour(result: Result) -> str:
    rows = []
    for run in result["runs"]:
        means = ["-" if column["mean"] is None else f"{column['mean']:.3f} of {column['kernels']}" for column in run["now"]["columns"]]
        found = ["-" if run["now"][key] is None else f"{run['now'][key]:{form}}" for key, form in (("difference", "+.3f"), ("p", ".2g"))]
        rows.append([f"seed {run['seed']}", *means, *found, "yes" if run["clear"] else "no"])
    return markdown(["colour content of conv1", "column 0", "column 1", "difference", "p", f"p < {result['clear_below_p']}"], rows)


def neighbours(result: Result) -> str:
    k, rows = result["k"], []
    for one in result["methods"]:
        shares = ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("recall", "same_class")]
        rows.append([one["method"], *shares, f"{one['bytes_a_picture']:,}", f"{one['queries_a_second']:,.0f}"])
    return markdown([f"{result['queries']:,} queries, {result['pictures']:,} pictures", f"recall@{k}", "same class", "bytes", "queries/s"], rows)


TABLES: dict[str, Callable[[Result], str]] = {
    "ablate": ablations,
    "ensemble": errors,
    "finetune": errors,
    "vgg": errors,
    "figure1": epochs,
    "specialise": colour,
    "retrieve": neighbours,
}


def tables(content: dict[str, Any]) -> str:
    """Of all parts that there are, in their order, with the seconds that their commands took."""
    found = []
    for name, one in content["parts"].items():
        found.append(f"## {name}: {one['what']} ({one['seconds']:,.0f} s)\n\n{TABLES[name](one['result'])}")
    return "\n\n".join(found)
