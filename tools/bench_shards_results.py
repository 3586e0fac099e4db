"""What tools/bench_shards.py has measured, as rows, ratios with their goals, hours for ImageNet, and table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

PICTURES = 1_281_167 + 50_000  # of ILSVRC2012, training and validation
CORES = (2, 16)
FORM = "256 x 256, quality 90, 4:2:0"


@dataclass
class Measured:
    """One row with one number of processes: what each process answered in each round."""

    row: str
    processes: int
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)

    def per_core(self) -> list[float]:
        """Pictures a second and process: rates of processes that ran at the same time, summed, by their number."""
        return [sum(answer["pictures"] / answer["seconds"] for answer in answers) / len(answers) for answers in self.rounds]

    def per_cpu_second(self) -> list[float]:
        return [sum(a["pictures"] for a in answers) / sum(a["cpu_seconds"] for a in answers) for answers in self.rounds]

    def inside(self) -> dict[str, float]:
        """Microseconds a picture of each part of the work that is clocked by itself: medians over the rounds."""
        names = self.rounds[0][0]["inside"]
        return {name: round(median(1e6 * a["inside"][name] / a["pictures"] for answers in self.rounds for a in answers), 1) for name in names}

    def share(self, part: str) -> float:
        """Of a part of the work, in what the rest of it takes."""
        shares = [a["inside"][part] / (a["seconds"] - a["inside"][part]) for answers in self.rounds for a in answers]
        return round(median(shares), 4)

    def summary(self) -> dict[str, Any]:
        failed = max(answer["failed"] for answers in self.rounds for answer in answers)
        rates = {"per_core": _spread(self.per_core()), "per_cpu_s": _spread(self.per_cpu_second())}
        return {"row": self.row, "processes": self.processes, **rates, "failed": failed, "inside_us": self.inside()}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


@dataclass(frozen=True)
class Goal:
    """value: of `row` beside `of`, which is what `reached` says; least: below it the goal is missed, hoped: what would be good."""

    what: str
    reached: float
    least: float | None = None
    hoped: float | None = None
    most: float | None = None

    def summary(self) -> dict[str, Any]:
        met = (self.least is None or self.reached >= self.least) and (self.most is None or self.reached <= self.most)
        judged = self.least is not None or self.most is not None
        bounds = {"least": self.least, "hoped": self.hoped, "most": self.most}
        return {"what": self.what, "reached": round(self.reached, 4), **bounds, "met": met if judged else None}


def goals(rows: list[dict[str, Any]], measured: list[Measured]) -> list[dict[str, Any]]:
    """Ratios of medians and differences of means, of the rows that there are."""
    found = list[Goal]()
    for processes in sorted({row["processes"] for row in rows}):
        at = {row["row"]: row for row in rows if row["processes"] == processes}
        found += _rates(at, f"{processes} process{'es' if processes > 1 else ''}")
    at = {row["row"]: row for row in rows}
    found += _pictures(at)
    shares = [(m.share("sums"), m.processes) for m in measured if m.row == "ours-sums"]
    found += [Goal(f"the sums, of what ours takes without them, {n} process{'es' if n > 1 else ''}", share, most=0.03) for share, n in shares]
    return [goal.summary() for goal in found]


def _rates(at: dict[str, dict[str, Any]], when: str) -> list[Goal]:
    def ratio(rate: str, of: str) -> float:
        return at["ours"][rate]["median"] / at[of][rate]["median"]

    found = list[Goal]()
    if "ours" not in at:
        return found
    if "img2dataset" in at:
        found.append(Goal(f"ours / img2dataset, pictures a second and core, {when}", ratio("per_core", "img2dataset"), 1.6, 2.0))
        found.append(Goal(f"ours / img2dataset, pictures a CPU-second, {when}", ratio("per_cpu_s", "img2dataset"), 1.6, 2.0))
    others = [name for name, row in at.items() if row["whose"] == "peer"]
    if others:
        fastest = max(others, key=lambda name: at[name]["per_core"]["median"])
        found.append(Goal(f"ours / fastest peer ({fastest}), pictures a second and core, {when}", ratio("per_core", fastest)))
    if "limit" in at:
        found.append(Goal(f"ours / limit, pictures a second and core, {when}", ratio("per_core", "limit")))
    return found


def _pictures(at: dict[str, dict[str, Any]]) -> list[Goal]:
    def difference(one: str, other: str, name: str) -> float:
        return at[one][name] - at[other][name]

    def has(*names: str) -> bool:
        return all(name in at and at[name]["psnr_db"] is not None for name in names)

    found = list[Goal]()
    if has("ours", "img2dataset"):
        found.append(Goal("ours - img2dataset, PSNR in dB", difference("ours", "img2dataset", "psnr_db"), 0.0))
        found.append(Goal("ours - img2dataset, SSIM", difference("ours", "img2dataset", "ssim"), 0.0))
    for other in ("ours-444", "ours-q80"):
        if has("ours", other):
            found.append(Goal(f"{other} - ours, PSNR in dB", difference(other, "ours", "psnr_db")))
            found.append(Goal(f"{other} / ours, bytes", at[other]["bytes"] / at["ours"]["bytes"]))
    return found


def linearity(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rate per core with the most processes, in that with the fewest: 1 is linear."""
    counts = sorted({row["processes"] for row in rows})
    rate = {(row["row"], row["processes"]): row["per_core"]["median"] for row in rows}
    if len(counts) < 2:
        return []
    return [
        {"row": name, "from": counts[0], "to": counts[-1], "kept": round(rate[name, counts[-1]] / rate[name, counts[0]], 3)}
        for name in dict.fromkeys(row["row"] for row in rows)
    ]


def hours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For all of ILSVRC2012 on so many cores, computed from the rate per core with the most processes measured."""
    most = max(row["processes"] for row in rows)
    rates = {row["row"]: row["per_core"]["median"] for row in rows if row["processes"] == most}
    return [{"row": name, "cores": {str(cores): round(PICTURES / rate / cores / 3600, 2) for cores in CORES}} for name, rate in rates.items()]


def table(result: dict[str, Any]) -> str:
    """Rows by number of processes, then what was not measured, goals, linearity and hours."""
    rows = result["rows"]
    lines = list[str]()
    for processes in sorted({row["processes"] for row in rows}):
        name = f"{processes} process{'es' if processes > 1 else ''}"
        lines.append(f"{name:<14}{'pictures/s/core':>16}{'min':>7}{'max':>7}{'per CPU-s':>11}{'PSNR dB':>9}{'SSIM':>8}{'bytes':>8}{'failed':>8}")
        lines += [_line(row) for row in rows if row["processes"] == processes]
    lines += [f"  {row['row']}: {row['other_form']}, where {FORM} was asked" for row in _once(rows) if row["other_form"]]
    lines += [f"  {row['row']}: {row['failed']} failed, the first because of {row['reason']}" for row in _once(rows) if row["failed"]]
    lines += [
        f"  {row['row']}, {row['processes']} process{'es' if row['processes'] > 1 else ''}: of it "
        + ", ".join(f"{part} {us:,.0f} us a picture" for part, us in row["inside_us"].items())
        for row in rows
        if row["inside_us"]
    ]
    lines += [f"  {message}" for message in result["left_out"].values()]
    return "\n".join([*lines, *map(_goal_line, result["goals"]), *_linear_lines(result["linearity"]), *_hour_lines(result["hours"])])


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["row"]: row for row in rows}.values())


def _line(row: dict[str, Any]) -> str:
    def shown(name: str, form: Callable[[Any], str]) -> str:
        return "-" if row[name] is None else form(row[name])

    core = row["per_core"]
    rates = f"{core['median']:>16,.0f}{core['min']:>7,.0f}{core['max']:>7,.0f}{row['per_cpu_s']['median']:>11,.0f}"
    picture = f"{shown('psnr_db', '{:.2f}'.format):>9}{shown('ssim', '{:.4f}'.format):>8}{shown('bytes', '{:,}'.format):>8}"
    return f"  {row['row']:<12}{rates}{picture}{row['failed']:>8}"


def _goal_line(goal: dict[str, Any]) -> str:
    bounds = [f"{name} {goal[key]:g}" for name, key in (("at least", "least"), ("hoped for", "hoped"), ("at most", "most")) if goal[key] is not None]
    judged = "" if goal["met"] is None else f"  {'met' if goal['met'] else 'MISSED'} ({', '.join(bounds)})"
    return f"{goal['what']:<78}{goal['reached']:>9.3f}{judged}"


def _linear_lines(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    kept = ", ".join(f"{line['row']} {line['kept']:.2f}" for line in found)
    return [f"rate per core kept from {found[0]['from']} to {found[0]['to']} processes (1 is linear): {kept}"]


def _hour_lines(found: list[dict[str, Any]]) -> list[str]:
    head = f"{'hours, computed for ' + format(PICTURES, ',') + ' pictures':<46}" + "".join(f"{f'{cores} cores':>12}" for cores in CORES)
    return [head, *(f"  {line['row']:<44}" + "".join(f"{line['cores'][str(cores)]:>12.2f}" for cores in CORES) for line in found)]
