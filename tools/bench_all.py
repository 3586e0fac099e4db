"""All that is measured on a GPU, in one command and under nine minutes: the step, the loader, and both together; one table last.

    python -m tools.bench_all --pictures TAR_OR_FOLDER [--bench bench] [--device cuda] [--samples 40000] [--only step,loader,endtoend] [--out-dir DIR]

Shards are made first, unless BENCH/shards is there: the pictures repeated under other ids and in 1,000 classes, so that the net has its last
layer. Then tools/bench_step.py, tools/bench_loader.py and tools/bench_endtoend.py run one after the other, each in a process of its own with a
limit of its own (LIMITS). What fails or takes too long is named in one line, the others go on, and the exit code is 1. Each writes its JSON
into --out-dir ($OUT where that is set, else docs/benchmarks); the table is read from these. Run it from the project's root.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError, one_line_errors
from tools.bench_data import bench_data
from tools.bench_endtoend_results import GOALS, Goal, figure, goal_line, reached

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 1000
LIMITS = {"shards": 50, "step": 170, "loader": 90, "endtoend": 210}  # seconds; under nine minutes together
GRACE = 4  # seconds for a program that is stopped
LAST_ROW = 160  # seconds after which tools/bench_endtoend.py begins no more rows, so that its limit leaves the last ones time
STEPS = ("fast-bfloat16", "fast-float32", "eager-float32", "eager-tf32", "eager-bfloat16", "compiled-bfloat16")  # all that fits in the limit
SECTIONS = ("uint8 from JPEG", "float32 from JPEG", "from decoded pictures")  # of the loader's rows, those of the table


@dataclass(frozen=True)
class Part:
    """One of the programs: a command, the seconds it may take, and the JSON that it writes, if any."""

    name: str
    command: list[str]
    limit: float
    out: Path | None = None


def parts(device: str, shards: Path, out_dir: Path, work: Path) -> list[Part]:
    """The three programs. On a CPU with less of everything: to see that they run, and for students."""
    gpu = device == "cuda"
    step = ["--batch", "128,256,512,1024", "--rounds", "1", "--seconds", "1", "--limit", str(LIMITS["step"] - 40), "--rows", ",".join(STEPS)]
    loader = ["--batch", "256", "--threads", "8,16", "--rounds", "2", "--images", "16384", "--hw-loads", "0,0.5,1"]
    if not gpu:
        step = ["--batch", "32", "--rounds", "1", "--seconds", "2", "--rows", "eager-float32,fast-float32"]
        loader = ["--batch", "128", "--threads", "1", "--rounds", "1", "--images", "512", "--peers", "none"]
    both = ["--limit", str(LAST_ROW), "--seconds", "2"]
    more: dict[str, list[Any]] = {"step": step, "loader": ["--shards", shards, "--work", work, *loader], "endtoend": ["--shards", shards, *both]}
    made = []
    for name, arguments in more.items():
        out = out_dir / f"{name}.json"
        words = ["-m", f"tools.bench_{name}", "--device", device, "--out", out, *arguments]
        made.append(Part(name, [sys.executable, *map(str, words)], LIMITS[name], out))
    return made


def making(pictures: Path, bench: Path, samples: int) -> Part:
    """The program that makes the shards; fewer pictures than classes are repeated to as many first. Raises InputError."""
    source, stage = pictures, bench.with_name(f"{bench.name}-pictures")
    try:
        bench_data(pictures, stage, CLASSES, 1)
        source = stage / "train" / "class_000"
    except InputError:  # stage is there from before, or there are enough of them; of anything else the program itself will say it
        source = stage / "train" / "class_000" if stage.exists() else pictures
    words = ["-m", "tools.bench_data", "--pictures", source, "--out", bench, "--samples", samples, "--classes", CLASSES]
    return Part("shards", [sys.executable, *map(str, words)], LIMITS["shards"])


def run(part: Part) -> str | None:
    """Run it to its end or its limit; what went wrong, in one line. What it says goes where ours goes."""
    if part.out is not None:
        part.out.unlink(missing_ok=True)  # an older result is not to stand for this one
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(part.command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        code = process.wait(part.limit)
    except subprocess.TimeoutExpired:
        return f"{part.name}: ended at its limit of {part.limit:g} s; what it had written by then stands"
    finally:
        _end(process)
    return f"{part.name}: exit code {code}; the reason stands above" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, if it still runs, and whatever it has left running: they are a session of their own. It has a moment to tidy up."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Line:
    """A row of the table: images a second by batch; the others of its greatest batch, None where not known."""

    key: str
    rates: dict[int, float] = field(default_factory=dict)
    roof: float | None = None
    busy: float | None = None
    wait: float | None = None
    power: float | None = None

    def add(self, row: dict[str, Any]) -> None:
        batch = row["batch"]
        self.rates[batch] = rate_of(row)
        if batch == max(self.rates):
            self.roof = 100 * row["roof_share"] if "roof_share" in row else row.get("of_roof_percent")
            self.busy, self.power = row.get("gpu_busy_percent", row.get("busy_percent")), row.get("power_w")
            self.wait = row.get("data_wait_percent")


def rate_of(row: dict[str, Any]) -> float:
    """Images a second: a number, or the median of rounds."""
    rate = row["images_per_s"]
    return float(rate["median"] if isinstance(rate, dict) else rate)


def lines_of(result: dict[str, Any]) -> list[Line]:
    """Rows of one result that were measured; of the loader's those of SECTIONS."""
    found: dict[str, Line] = {}
    for row in measured(result):
        if row.get("section", SECTIONS[0]) not in SECTIONS:
            continue
        key = f"{name_of(row)}, {row['threads']} threads" if row.get("threads") else name_of(row)
        found.setdefault(key, Line(key)).add(row)
    return list(found.values())


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result.get("rows", []) if "images_per_s" in row]


def name_of(row: dict[str, Any]) -> str:
    name: str = row["row"] if "row" in row else row["key"]  # tools/bench_step.py's
    return name


TITLES = {"step": "step on resident data", "loader": "loader alone", "endtoend": "end to end"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Of all results, then the goals."""
    batches = sorted({row["batch"] for result in results.values() for row in measured(result)})
    rates = "".join(f"{batch:>10}" for batch in batches)
    lines = [f"{'images/s at batch':<40}{rates}{'roof %':>9}{'busy %':>8}{'waiting %':>11}{'W':>7}   (the last four at the greatest batch)"]
    for name, result in results.items():
        lines += [f"  {TITLES[name]}", *(_text(line, batches) for line in lines_of(result))]
    lines += [_projection(found) for found in results.get("endtoend", {}).get("projections", [])]
    return "\n".join([*lines, *goal_lines(results)])


def _text(line: Line, batches: list[int]) -> str:
    rates = "".join(figure(line.rates.get(batch), 10) for batch in batches)
    return f"    {line.key:<36}{rates}{figure(line.roof, 9)}{figure(line.busy, 8)}{figure(line.wait, 11, 1)}{figure(line.power, 7)}"


def _projection(found: dict[str, Any]) -> str:
    where = f"{found['row']}, batch {found['batch']}"
    return f"90 epochs of ImageNet by {where:<32}{found['minutes_of_90_epochs']:>12,.1f} minutes"


def goal_lines(results: dict[str, dict[str, Any]], goals: tuple[Goal, ...] = GOALS) -> list[str]:
    """Each goal with the best that was measured for it."""
    rows = [{**row, "row": name_of(row), "images_per_s": rate_of(row)} for name in ("step", "endtoend") for row in measured(results.get(name, {}))]
    found = {one["goal"]: one for one in reached(rows, results.get("endtoend", {}).get("projections", []), goals)}
    return [goal_line(found[goal.name]) if goal.name in found else f"goal {goal.name:<24}not measured" for goal in goals]


def _plan(given: argparse.Namespace) -> list[Part]:
    """Raises InputError for what cannot be used, before anything is run."""
    names = given.only.split(",")
    unknown = [name for name in names if name not in TITLES]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"--only must be different ones of {', '.join(TITLES)} with commas between, not {given.only!r}")
    if given.samples < CLASSES:
        raise InputError(f"--samples must be at least the {CLASSES} classes, not {given.samples}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    bench = given.bench.resolve()  # the programs run in the root
    shards = bench / "shards"
    first = []
    if not (shards / "pca.json").exists():
        if given.pictures is None:
            raise InputError(f"{shards} has no shards with statistics: give --pictures, a tar or folder of real JPEGs, to make them from")
        first = [making(given.pictures.resolve(), bench, given.samples)]
    given.out_dir.mkdir(parents=True, exist_ok=True)
    three = parts(given.device, shards, given.out_dir.resolve(), bench / "peers")
    return [*first, *(part for part in three if part.name in names)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Step, loader and both, measured.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="tar or folder of real JPEGs; a few hundred will do, 256x256 are enough")
    parser.add_argument("--bench", type=Path, default=Path("bench"), help="folder whose shards/ is measured on, made where it is not there")
    parser.add_argument("--samples", type=int, default=40_000, help="in the shards that are made: 1 GB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", default=",".join(TITLES), help="which programs to run, with commas between")
    parser.add_argument("--out-dir", type=Path, default=Path(os.environ.get("OUT") or "docs/benchmarks"), help="folder of the JSONs")
    given = parser.parse_args(arguments)
    with one_line_errors():
        return _run_all(_plan(given))
    raise AssertionError("unreachable: one_line_errors exits")


def _run_all(planned: list[Part]) -> int:
    failures, results = list[str](), dict[str, dict[str, Any]]()
    for part in planned:
        print(f"--- {part.name}, at most {part.limit:g} s", flush=True)
        failure = run(part)
        if failure is not None:
            failures.append(failure)
        if part.out is not None and part.out.exists():
            results[part.name] = json.loads(part.out.read_text())
        elif failure is not None and part.name == "shards":
            break  # there is nothing to measure on
    if results:
        print(table(results), flush=True)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
