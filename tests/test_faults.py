"""Faults while it trains, on real processes: ranks killed at any moment and hung, disks full, ports taken."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import ROOT, one_line, run_command
from training import TINY, alive, end_after, environment_of, losses, metrics, newest, start, train, wait_for_step, weights

SOAK = "SOAK" in os.environ
KILLS, EPOCHS = (30, 60) if SOAK else (3, 6)
KINDS = ("checkpoint", "evaluation", "start", "step", "epoch")


def ranks_of(process: subprocess.Popen[str]) -> dict[int, str]:
    """Process number of each rank that lives, by rank."""
    found = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in children.read_text().split() if children.exists() else []:
        try:
            words = environment_of(pid).split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        rank = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
        if rank and alive(pid):
            found[rank[0]] = pid
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


def other_ranks(process: subprocess.Popen[str], before: dict[int, str]) -> dict[int, str]:
    """Two ranks that are not those from before, when they live, or none when the launcher has ended."""
    deadline = time.time() + 120
    while process.poll() is None:
        now = ranks_of(process)
        if len(now) == 2 and not set(now.values()) & set(before.values()):
            return now
        assert time.time() < deadline, "no new ranks were started"
        time.sleep(0.01)
    return {}


def lines_of(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []  # what comes after the last is being written


def come_to(kind: str, run: Path, process: subprocess.Popen[str], draw: random.Random) -> None:
    """Wait for a moment of this kind in the life of ranks that has just begun, or for the end of the run."""
    if kind == "start":
        time.sleep(draw.uniform(0, 3))
        return
    path, over = run / "metrics.jsonl", lambda: process.poll() is not None
    before = os.stat(path).st_mtime_ns if path.exists() else 0
    wait_until(lambda: (path.exists() and os.stat(path).st_mtime_ns != before) or over(), "the new life's opening of the metrics")
    here = len(lines_of(run))
    wait_until(lambda: len(lines_of(run)) > here or over(), "a first step")
    if kind == "step":
        time.sleep(draw.uniform(0, 0.2))
    elif kind == "checkpoint":
        wait_until(lambda: any((run / "checkpoints").glob(".step-*.partial")) or over(), kind)
    elif kind == "evaluation":
        wait_until(lambda: json.loads(lines_of(run)[-1])["step"] % 6 == 0 or over(), kind)
    elif kind == "epoch":
        wait_until(lambda: "val_images" in lines_of(run)[-1] or over(), kind)


def test_ranks_killed_at_any_moment_land_on_the_same_weights(made_shards: Path, tmp_path: Path) -> None:
    """SIGKILL of a random rank at seeded moments; the launcher starts all again; weights and curve are bit for bit an undisturbed run's."""
    words = ["--columns", 2, "--save-every", 2, "--set", f"train.epochs={EPOCHS}"]
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    calm = train(made_shards, undisturbed, *words)
    assert calm.returncode == 0, calm.stderr
    draw, killed = random.Random(5), list[tuple[str, int]]()
    life = dict[int, str]()
    with open(tmp_path / "said.txt", "w+") as log:
        process = start(made_shards, run, *words, "--restarts", 6, log=log)
        try:
            for number in range(KILLS):
                life, kind, victim = other_ranks(process, life), KINDS[number % len(KINDS)], draw.randrange(2)
                come_to(kind, run, process, draw)
                assert process.poll() is None, f"the run was over after {killed}"
                os.kill(int(life[victim]), signal.SIGKILL)
                killed.append((kind, victim))
            process.wait(timeout=400)
        finally:
            process.kill()
        log.seek(0)
        said = log.read()
    assert process.returncode == 0, said
    assert len(re.findall("was ended by SIGKILL; all ranks are started again", said)) == KILLS, said
    assert losses(run) == losses(undisturbed)
    assert len([line for line in metrics(run) if "val_images" in line]) == EPOCHS
    for name, value in weights(run).items():
        assert torch.equal(value, weights(undisturbed)[name]), name


def test_a_rank_that_dies_ends_the_run_with_its_name(made_shards: Path, tmp_path: Path) -> None:
    process = start(made_shards, tmp_path / "run", "--columns", 2)
    wait_for_step(tmp_path / "run", 2)
    ranks = ranks_of(process)
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    one_line(subprocess.CompletedProcess([], process.returncode, "", err), "rank 1 was ended by SIGKILL", "--resume")
    assert not any(alive(pid) for pid in ranks.values())


def test_a_rank_that_hangs_ends_the_run_with_its_name(made_shards: Path, tmp_path: Path) -> None:
    with open(tmp_path / "said.txt", "w+") as log:
        process = start(made_shards, tmp_path / "run", "--columns", 2, "--timeout", 0.1, log=log)
        wait_for_step(tmp_path / "run", 2)
        ranks = ranks_of(process)
        os.kill(int(ranks[1]), signal.SIGSTOP)
        wait_until(lambda: "has not moved" in (tmp_path / "said.txt").read_text(), "the name of the rank")
        os.kill(int(ranks[1]), signal.SIGKILL)  # as torch's launcher does, half a minute later
        assert process.wait(timeout=60) == 71
        log.seek(0)
        said = log.read()
    told = f"rank 1 does not answer (process {ranks[1]}"
    one_line(subprocess.CompletedProcess([], 71, "", said), "has not moved for 6 s", told, "--resume")
    assert not any(alive(pid) for pid in ranks.values())


LIMIT = (
    "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY)); sys.argv = sys.argv[1:]; "
    "runpy.run_module('model.train', run_name='__main__')"
)


def test_full_disk_while_saving(made_shards: Path, tmp_path: Path) -> None:
    """A file-size limit below a checkpoint's: training goes on, a warning each time, and at the end one line and no half-written checkpoint."""
    words = ["--shards", made_shards, "--run", tmp_path / "run", *TINY, "--set", "train.epochs=2", "--save-every", 3]
    result = run_command("-c", LIMIT.format(size=20000), "model.train", *words)
    one_line(result, "File too large", "free space")
    assert result.stdout.count("could not be saved (File too large in") == 5  # at steps 3, 6, after validation, 9, 12; what ends it comes after that
    assert sorted(losses(tmp_path / "run")) == list(range(1, 13))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_the_last_good_checkpoint_outlives_a_full_disk(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    end_after(newest(copy), 3)
    there = newest(copy)
    result = run_command("-c", LIMIT.format(size=20000), "model.train", "--shards", made_shards, "--run", copy, "--resume", "--threads", 1)
    one_line(result, "File too large", "free space")
    assert newest(copy) == there
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["best", "latest", "step-00000006", "step-00000012"]
    weights(copy)


def test_a_port_that_is_taken(made_shards: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        words = ["-m", "model.train", "--shards", str(made_shards), "--run", str(tmp_path / "run"), *map(str, TINY)]
        result = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env={**os.environ, **place}, capture_output=True, text=True, timeout=120, check=False
        )
    one_line(result, "port", place["MASTER_PORT"], "MASTER_PORT")


def test_no_tensorboard(made_shards: Path, tmp_path: Path) -> None:
    without = "import runpy, sys; sys.modules['tensorboard'] = None; sys.argv = sys.argv[1:]; runpy.run_module('model.train', run_name='__main__')"
    result = run_command("-c", without, "model.train", "--shards", made_shards, "--run", tmp_path / "run", *TINY, "--set", "train.epochs=1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("TensorBoard is not installed") == 1
    assert len(losses(tmp_path / "run")) == 6
