"""All measurements in one command: its programs, their limits, and the one table; and what is seen of a GPU meanwhile."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import one_line, run_here

from pipeline.shards import ShardSet
from tools import bench_all
from tools.bench_endtoend_results import GOALS, Goal
from tools.bench_step_rows import rows
from tools.gpu_watch import GpuWatch, Load, parsed, uuid_of

CPU = torch.device("cpu")


def part(code: str, limit: float = 60, out: Path | None = None) -> bench_all.Part:
    return bench_all.Part("endtoend", [sys.executable, "-c", code], limit, out)


def test_a_program_that_fails_or_takes_too_long_is_one_line(tmp_path: Path) -> None:
    assert bench_all.run(part("import tools.bench_data")) is None
    assert bench_all.run(part("raise SystemExit(3)")) == "endtoend: exit code 3; the reason stands above"
    child = tmp_path / "child"
    code = f"import os, subprocess, time; open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '100']).pid)); time.sleep(100)"
    assert bench_all.run(part(code, 2)) == "endtoend: ended at its limit of 2 s; what it had written by then stands"
    pid = int(child.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}/stat").exists() or Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("what the program had started is still running")


def test_the_others_go_on_after_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, old = tmp_path / "step.json", tmp_path / "loader.json"
    old.write_text("of an older run")
    row = {"key": "fast-bfloat16", "batch": 128, "images_per_s": 70_200.0, "roof_share": 0.6}
    writes = f"import json; json.dump({{'rows': [{row}]}}, open({str(out)!r}, 'w'))"
    planned = [
        bench_all.Part("loader", [sys.executable, "-c", "raise SystemExit(1)"], 60, old),
        bench_all.Part("step", [sys.executable, "-c", writes], 60, out),
    ]
    assert bench_all._run_all(planned) == 1
    printed, said = capfd.readouterr()
    assert said == "failed: loader: exit code 1; the reason stands above\n"
    assert "fast-bfloat16                           70,200       60" in printed, "60 % of the roof"
    assert "goal step, batch 128" in printed
    assert not old.exists(), "no older result stands for this one"


def test_the_table_of_all() -> None:
    more = {"busy_percent": 99, "power_w": 640}
    step = [
        {"key": "fast-bfloat16", "batch": batch, "images_per_s": 60_000.0 + batch, "roof_share": 0.5 - batch / 1e4, **more} for batch in (1024, 128)
    ]
    step.append({"key": "eager-float32", "batch": 1024, "error": "the device's memory is too small"})
    about = {"row": "ours-float32", "threads": 16, "batch": 256, "images_per_s": {"median": 45_000.0, "min": 1, "max": 9e9}}
    loader = [{**about, "section": section} for section in ("float32 from JPEG", "feeding")]
    both = {"row": "ours-decode", "batch": 1024, "images_per_s": 41_000.0, "of_roof_percent": 26.1}
    both |= {"gpu_busy_percent": 80, "power_w": 500, "data_wait_percent": 4.5}
    results: dict[str, dict[str, Any]] = {"step": {"rows": step}, "loader": {"rows": loader}, "endtoend": {"rows": [both], "projections": []}}
    lines = bench_all.table(results).splitlines()
    assert lines[0].split()[:6] == ["images/s", "at", "batch", "128", "256", "1024"]
    assert lines[2].split() == ["fast-bfloat16", "60,128", "-", "61,024", "40", "99", "-", "640"], "the last four of batch 1024"
    assert lines[4].split() == ["ours-float32,", "16", "threads", "-", "45,000", "-", "-", "-", "-", "-"]
    assert lines[6].split() == ["ours-decode", "-", "-", "41,000", "26", "80", "4.5", "500"]
    assert len(lines) == 7 + len(GOALS)
    assert bench_all.goal_lines(results)[1].split()[:7] == ["goal", "step,", "batch", "1024", "at", "least", "85,000"]
    assert "61,024.0  by fast-bfloat16, batch 1024" in bench_all.goal_lines(results)[1]
    assert bench_all.goal_lines(results, (Goal("x", ("none",), "images/s", 1),)) == ["goal x                       not measured"]


def test_the_programs_limits_are_under_nine_minutes(tmp_path: Path) -> None:
    planned = bench_all.parts("cuda", tmp_path / "shards", tmp_path, tmp_path / "work")
    assert [one.name for one in planned] == list(bench_all.TITLES)
    assert sum(bench_all.LIMITS.values()) + len(bench_all.LIMITS) * bench_all.GRACE < 9 * 60, "seconds"
    assert bench_all.LIMITS["endtoend"] > bench_all.LAST_ROW
    assert set(bench_all.STEPS) <= {row.key for row in rows(torch.device("cuda"))}
    for one in planned:
        assert one.command[1:3] == ["-m", f"tools.bench_{one.name}"]
        assert one.command[one.command.index("--out") + 1] == str(tmp_path / f"{one.name}.json")


def test_too_few_pictures_for_the_classes_are_repeated(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_all, "CLASSES", 60)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shards = ShardSet(made_shards, "train")
    for sample in range(len(shards)):
        (pictures / f"{sample}.jpg").write_bytes(shards.read(sample)[0].tobytes())
    made = bench_all.making(pictures, tmp_path / "bench", 60)
    source = Path(made.command[made.command.index("--pictures") + 1])
    assert len(list(source.iterdir())) == 60
    assert {path.read_bytes() for path in source.iterdir()} == {path.read_bytes() for path in pictures.iterdir()}
    enough = bench_all.making(source, tmp_path / "other", 60)
    assert len(list(Path(enough.command[enough.command.index("--pictures") + 1]).iterdir())) == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "all"), "--only must be different ones of step, loader, endtoend"),
        (("--samples", "999"), "--samples must be at least the 1000 classes"),
        (("--device", "cuda"), "--device cuda, but torch sees no GPU"),
        ((), "has no shards with statistics: give --pictures"),
    ],
)
def test_a_wrong_argument_of_all_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    place = ["--device", "cpu", "--bench", tmp_path / "bench", "--out-dir", tmp_path / "out"]
    one_line(run_here(bench_all.main, *place, *arguments), words)
    assert os.listdir(tmp_path) == []


# --- what the GPU does


def test_without_a_gpu_nothing_is_known_of_it() -> None:
    assert uuid_of(CPU) is None
    with GpuWatch(uuid_of(CPU)) as watch:
        began = time.perf_counter()
    assert watch.between(began, time.perf_counter()) is None


def test_a_gpu_is_watched_while_the_work_goes_on() -> None:
    script = "import time\nfor n in range(1000):\n    print(f'{50 + n % 2 * 20}, 300.5', flush=True)\n    time.sleep(0.005)"
    with GpuWatch("GPU-x", [sys.executable, "-c", script]) as watch:
        while len(watch.samples) < 20:
            time.sleep(0.005)
    first, last = watch.samples[0].at, watch.samples[19].at
    assert watch.between(first, last) == Load(60.0, 300.5, 20)
    assert watch.between(last + 1000, last + 2000) is None


def test_a_watch_that_cannot_be_started_knows_nothing(tmp_path: Path) -> None:
    with GpuWatch("GPU-x", [str(tmp_path / "no-such-program")]) as watch:
        assert watch.between(0, math.inf) is None


def test_what_a_gpu_does_not_tell() -> None:
    assert parsed("87, 512.30\n") == (87, 512.3)
    assert parsed("[N/A], 99.5") == (None, 99.5)
    assert parsed("Unable to determine the device handle") == (None, None)
