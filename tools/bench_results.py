"""What tools/bench_loader.py has measured, as rows, ratios with their goals, CSV and table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from tools.bench_kinds import Section

Measure = Callable[[int], tuple[int, float, float]]  # batches -> images, wall seconds, CPU-seconds
Rate = Literal["images_per_s", "images_per_cpu_s"]
RATES: tuple[Rate, ...] = ("images_per_s", "images_per_cpu_s")


@dataclass
class Row:
    """One line of the result. threads: None where they do not matter; note: where the work is not the same; window_error: of a peer,
    mean difference of its pixels from Pillow's in grey levels; images: counted over all rounds."""

    key: str
    section: Section
    what: str
    batch: int
    threads: int | None
    measure: Measure
    times: int = 1
    note: str = ""
    window_error: float | None = None
    images: int = 0
    rates: dict[Rate, list[float]] = field(default_factory=lambda: {rate: [] for rate in RATES})

    @property
    def whose(self) -> str:
        """ "ours", "plain DALI" or "peer"."""
        return {"ours": "ours", "dali": "plain DALI"}.get(self.key.split("-")[0], "peer")

    def run(self, batches: int) -> None:
        """A round: measure it and keep the rates."""
        images, wall, cpu = self.measure(batches)
        self.images += images
        self.rates["images_per_s"].append(images / wall)
        self.rates["images_per_cpu_s"].append(images / cpu)

    def summary(self) -> dict[str, Any]:
        rates: dict[str, Any] = {name: _spread(values) for name, values in self.rates.items()}
        about = {"row": self.key, "whose": self.whose, "section": self.section, "batch": self.batch, "threads": self.threads}
        return {**about, "images": self.images, **rates, "window_error": self.window_error, "what": self.what, "note": self.note}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


@dataclass(frozen=True)
class Goal:
    """`row` is to be `goal` times `of`; without `of`, `goal` images a second."""

    row: str
    of: str | None
    goal: float


def _goals(ours: str) -> tuple[Goal, ...]:
    """Of one of our two decoders."""
    return (
        Goal(f"{ours}-uint8", "dali-decode", 0.95),
        Goal(f"{ours}-uint8", "ffcv-jpeg", 2.2),
        Goal(f"{ours}-uint8", "webdataset", 8),
        Goal(f"{ours}-float32", "dali-float32-b", 1.4),
        Goal(f"{ours}-float32", "dali-float32-a", 1.9),
        Goal(f"{ours}-float32", f"{ours}-uint8", 0.9),
    )


GOALS = (
    *_goals("ours"),
    *_goals("ours-turbojpeg"),
    Goal("ours-cached-uint8", "ours-uint8", 10),
    Goal("ours-cached-float32", "ours-float32", 10),
    Goal("ours-cached-yuv-uint8", "ours-uint8", 10),
    Goal("ours-cached-yuv-float32", "ours-float32", 10),
    Goal("ours-feed-dali", None, 60_000),
)
GPU_GOALS = (Goal("ours-float32", None, 45_000), Goal("ours-cached-float32", None, 100_000))


def ratios(rows: list[dict[str, Any]], goals: tuple[Goal, ...]) -> list[dict[str, Any]]:
    """Of medians, wall and CPU, in each setting that has both rows; rows: summaries."""
    found = []
    for goal in goals:
        for row in (row for row in rows if row["row"] == goal.row):
            setting = (row["batch"], row["threads"])
            others = [other for other in rows if other["row"] == goal.of and (other["batch"], other["threads"]) == setting]
            if goal.of and not others:
                continue
            reached: dict[str, float] = {rate: round(row[rate]["median"] / (others[0][rate]["median"] if goal.of else 1), 3) for rate in RATES}
            found.append({"row": goal.row, "of": goal.of, "batch": setting[0], "threads": setting[1], "goal": goal.goal, **reached})
    return found


def csv_text(rows: list[dict[str, Any]]) -> str:
    """One line a row; rates as median, min, max."""
    out = io.StringIO()
    lines = [_flat(row) for row in rows]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat.update((f"{name}_{part}", number) for part, number in value.items())
        else:
            flat[name] = value
    return flat


def table(result: dict[str, Any]) -> str:
    """Rows of each setting by section, then pixels where they were compared, then ratios."""
    lines = list[str]()
    for batch, threads in sorted({_setting(row) for row in result["rows"]}):
        rows = [row for row in result["rows"] if _setting(row) == (batch, threads)]
        name = f"batch {batch}, threads {threads}" if threads else f"batch {batch}, one thread"
        lines.append(f"{name:<36}{'images/s':>10}{'min':>9}{'max':>9}{'images/CPU-s':>14}{'min':>9}{'max':>9}")
        for section in dict.fromkeys(row["section"] for row in rows):
            lines += [f"  {section}", *(_line(row) for row in rows if row["section"] == section)]
    return "\n".join([*lines, *map(_pixel_line, result.get("pixels_under_load", [])), *_ratio_lines(result["ratios"])])


def _setting(row: dict[str, Any]) -> tuple[int, int]:
    return row["batch"], row["threads"] or 0


def _line(row: dict[str, Any]) -> str:
    wall, cpu = (row[rate] for rate in RATES)
    rates = f"{wall['median']:>10,.0f}{wall['min']:>9,.0f}{wall['max']:>9,.0f}{cpu['median']:>14,.0f}{cpu['min']:>9,.0f}{cpu['max']:>9,.0f}"
    return f"    {row['row']:<32}{rates}"


def _pixel_line(found: dict[str, Any]) -> str:
    cpu, rest = found["from_the_cpu"], found["from_itself_at_rest"]
    return (
        f"decoded under load, hw_decoder_load {found['hw_decoder_load']:g}: of {found['pixels']:,} pixels {cpu['differ']:,} differ from the CPU's "
        f"(by {cpu['largest']} at most), {rest['differ']:,} from its own at rest (by {rest['largest']})"
    )


def _ratio_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'of medians':<52}{'batch':>6}{'threads':>9}{'wall':>9}{'CPU':>9}{'goal':>9}"] if found else []
    for ratio in found:
        name = f"{ratio['row']} / {ratio['of']}" if ratio["of"] else f"{ratio['row']}, images a second"
        digits = 2 if ratio["of"] else 0
        reached = "".join(f"{ratio[rate]:>9,.{digits}f}" for rate in RATES)
        lines.append(f"{name:<52}{ratio['batch']:>6}{ratio['threads'] or '-':>9}{reached}{ratio['goal']:>9,g}")
    return lines
