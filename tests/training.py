"""Small trainings on the toy shards, as the tests of training run and read them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from conftest import ROOT, one_line, run_command

from model import checkpoint
from model.train import main

TINY = [
    *("--recipe", "small", "--threads", 1),
    *("--set", "model.maps=[4, 8, 8, 8, 8]", "--set", "model.hidden=[16, 16]", "--set", "model.input=99"),
    *("--set", "train.batch=8", "--set", "train.log_every=1", "--set", "train.drop_epochs=[1]", "--set", "train.rate=0.001"),
]


def train(shards: Path | str, run: Path, *more: object, epochs: int = 2, recipe: bool = True) -> subprocess.CompletedProcess[str]:
    """A whole training. On one device it runs in this process, which spares seconds of imports; on more as a user starts it."""
    settings = [*TINY, "--set", f"train.epochs={epochs}"] if recipe else ["--threads", 1]
    words = [str(word) for word in ("--shards", shards, "--run", run, *settings, *more)]
    if {"--columns", "--devices"} & set(words):
        return run_command("-m", "model.train", *words)
    return here(main, words)


def here(function: Callable[[list[str]], int], words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command's main() in this process: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = function(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def refused(shards: Path | str, run: Path, *more: object, recipe: bool = True) -> str:
    """The one line with which a training that cannot begin is refused, also of one on several devices."""
    settings = TINY if recipe else ["--threads", 1]
    result = here(main, [str(word) for word in ("--shards", shards, "--run", run, *settings, *more)])
    assert result.returncode == 2
    return one_line(result)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Loss by step; each step stands there once."""
    lines = [line for line in metrics(run) if "loss_nats" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss_nats"] for line in lines}


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(newest(run))["model"]
    return found


def newest(run: Path) -> Path:
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return found


def change_state(path: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edit state.json of a checkpoint, its own digest made right again; what it is now."""
    state = checkpoint.load_state(path)
    files = state.pop("files")
    change(state)
    checkpoint.write_state(path, state, files)
    return state


def end_after(path: Path, epochs: int) -> dict[str, Any]:
    """Let a run that was started with many epochs, so that a signal would find it at work, end after these."""
    return change_state(path, lambda state: state["recipe"]["train"].update(epochs=epochs))


def start(shards: Path, run: Path, *more: object, log: IO[str] | None = None) -> subprocess.Popen[str]:
    """A training of 400 epochs, if `more` does not say otherwise, in the background."""
    command = ["-m", "model.train", "--shards", shards, "--run", run, *TINY, "--set", "train.epochs=400", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE, text=True
    )


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.time() + 120
    while time.time() < deadline:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not come to step {step}")


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment_of(pid: str) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()
