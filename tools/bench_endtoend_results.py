"""What tools/bench_endtoend.py has measured, as rows, minutes of a whole training, goals and table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tools.bench_endtoend_clock import Counted, Losses
from tools.gpu_watch import Load

EPOCHS, TRAIN_IMAGES, VAL_IMAGES = 90, 1_281_167, 50_000  # of ImageNet and the paper


@dataclass(frozen=True)
class Goal:
    """Of the best batch, or of one; unit: "images/s", at least, or "minutes" of 90 epochs, at most. wait: percent of the time for data, below."""

    name: str
    rows: tuple[str, ...]
    unit: str
    goal: float
    stretch: float | None = None
    wait: float | None = None
    batch: int | None = None


CACHED = ("ours-cached", "ours-cached-yuv")
STEPS = ("ours-resident", "fast-bfloat16")  # here, and in tools/bench_step.py
GOALS = (
    Goal("step, batch 128", STEPS, "images/s", 60_000, 80_000, batch=128),
    Goal("step, batch 1024", STEPS, "images/s", 85_000, 100_000, batch=1024),
    Goal("end to end, decoding", ("ours-decode",), "images/s", 40_000, 60_000, wait=5),
    Goal("end to end, cached", CACHED, "images/s", 80_000),
    Goal("90 epochs, decoding", ("ours-decode",), "minutes", 50),
    Goal("90 epochs, cached", CACHED, "minutes", 25),
)


@dataclass(frozen=True)
class Three:
    """The three figures of a row: loader alone, model alone on a batch that lies on the device, both. None: not of this row."""

    loader: Counted | None
    model: Counted
    both: Counted | None

    @property
    def main(self) -> Counted:
        return self.both or self.model


def summary(key: str, what: str, batch: int, three: Three, load: Load | None, losses: Losses, roof: float | None) -> dict[str, Any]:
    """A row as it stands in the JSON. roof: images a second. lost_to_data_percent: what the loader costs, both against the model alone."""
    main = three.main
    lost = max(0.0, 100 * (1 - main.rate / three.model.rate))
    return {
        "row": key,
        "whose": {"ours": "ours", "dali": "plain DALI"}.get(key.split("-")[0], "plain PyTorch"),
        "batch": batch,
        "images_per_s": round(main.rate, 1),
        "loader_alone_images_per_s": round(three.loader.rate, 1) if three.loader else None,
        "model_alone_images_per_s": round(three.model.rate, 1),
        "data_wait_percent": round(three.both.wait_percent, 2) if three.both else 0.0,
        "lost_to_data_percent": round(lost, 2),
        "of_roof_percent": round(100 * main.rate / roof, 1) if roof else None,
        "gpu_busy_percent": load.busy if load else None,
        "power_w": load.power if load else None,
        "images": main.images,
        "steps": main.steps,
        "seconds": round(main.seconds, 3),
        "first_loss_nats": losses.first,
        "last_loss_nats": losses.last,
        "what": what,
    }


def minutes(first: float, later: float, validation: float) -> float:
    """Of EPOCHS epochs with a validation after each, at rates in images a second: of the first epoch, of those after it, of validating."""
    return (TRAIN_IMAGES * (1 / first + (EPOCHS - 1) / later) + EPOCHS * VAL_IMAGES / validation) / 60


def projections(rows: list[dict[str, Any]], validation: dict[int, float]) -> list[dict[str, Any]]:
    """Minutes of a training by each of our rows that loads. A cached one decodes in its first epoch. validation: images a second by batch."""
    found = []
    for row in rows:
        decoding = next((other for other in rows if other["row"] == "ours-decode" and other["batch"] == row["batch"]), None)
        if row["row"] not in ("ours-decode", *CACHED) or decoding is None or row["batch"] not in validation:
            continue
        rate = validation[row["batch"]]
        whole = minutes(decoding["images_per_s"], row["images_per_s"], rate)
        found.append({"row": row["row"], "batch": row["batch"], "validation_images_per_s": round(rate, 1), "minutes_of_90_epochs": round(whole, 1)})
    return found


def reached(rows: list[dict[str, Any]], projected: list[dict[str, Any]], goals: Iterable[Goal] = GOALS) -> list[dict[str, Any]]:
    """The best of what was measured for each goal; goals of rows that were not measured are left out."""
    found = []
    for goal in goals:
        source, name = (projected, "minutes_of_90_epochs") if goal.unit == "minutes" else (rows, "images_per_s")
        of_goal = [row for row in source if row["row"] in goal.rows and goal.batch in (None, row["batch"])]
        if not of_goal:
            continue
        best = min(of_goal, key=lambda row: row[name] if goal.unit == "minutes" else -row[name])
        about = {"goal": goal.name, "unit": goal.unit, "least" if goal.unit == "images/s" else "most": goal.goal, "stretch": goal.stretch}
        wait = {"data_wait_below_percent": goal.wait, "data_wait_percent": best["data_wait_percent"]} if goal.wait is not None else {}
        found.append({**about, "row": best["row"], "batch": best["batch"], "reached": best[name], **wait})
    return found


def table(result: dict[str, Any]) -> str:
    """A line a row by batch, then projections, then goals."""
    lines = list[str]()
    for batch in sorted({row["batch"] for row in result["rows"]}):
        lines.append(
            f"{f'batch {batch}':<24}{'images/s':>10}{'loader':>10}{'model':>10}{'waiting %':>11}{'lost %':>8}{'roof %':>8}{'busy %':>8}{'W':>7}"
        )
        lines += [_line(row) for row in result["rows"] if row["batch"] == batch]
    return "\n".join([*lines, *map(_projection_line, result["projections"]), *map(goal_line, result["goals"])])


def _line(row: dict[str, Any]) -> str:
    rates = "".join(figure(row[name], 10) for name in ("images_per_s", "loader_alone_images_per_s", "model_alone_images_per_s"))
    shares = figure(row["data_wait_percent"], 11, 1) + figure(row["lost_to_data_percent"], 8, 1) + figure(row["of_roof_percent"], 8, 1)
    return f"  {row['row']:<22}{rates}{shares}{figure(row['gpu_busy_percent'], 8)}{figure(row['power_w'], 7)}"


def figure(value: float | None, width: int, digits: int = 0) -> str:
    """Right-justified; "-" for what is not known here."""
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"


def _projection_line(found: dict[str, Any]) -> str:
    where = f"{found['row']}, batch {found['batch']}"
    return (
        f"90 epochs of ImageNet by {where:<32}{found['minutes_of_90_epochs']:>12,.1f} minutes, validated at {found['validation_images_per_s']:,.0f}/s"
    )


def goal_line(found: dict[str, Any]) -> str:
    wanted = f"at least {found['least']:,.0f}" if "least" in found else f"below {found['most']:,.0f}"
    stretch = f" ({found['stretch']:,.0f})" if found["stretch"] else ""
    wait = f", waiting {found['data_wait_percent']:.1f} % (below {found['data_wait_below_percent']:g})" if "data_wait_percent" in found else ""
    where = f"{found['row']}, batch {found['batch']}"
    return f"goal {found['goal']:<24}{wanted + stretch + ' ' + found['unit']:<36}{found['reached']:>10,.1f}  by {where}{wait}"
