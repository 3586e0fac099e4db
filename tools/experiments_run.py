"""The commands of tools/experiments.py run one after the other, each once."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic import atomic_file
from pipeline.errors import InputError
from tools.experiments_read import read_json
from tools.experiments_steps import Plan, Step, said

ROOT = Path(__file__).resolve().parents[1]
GRACE = 30  # seconds for a command that is stopped: a training saves first


class Done:
    """The steps that are done, in OUT/steps.json: command, seconds of all attempts, and whether it has ended well."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._path = plan, plan.out / "steps.json"
        self._steps: dict[str, Any] = read_json(self._path) if self._path.exists() else {}

    def has(self, step: Step) -> bool:
        known = self._steps.get(step.name, {})
        return bool(known.get("done") and known["command"] == shown(self._plan, step) and step.makes.exists())

    def add(self, step: Step, seconds: float, done: bool) -> None:
        command, known = shown(self._plan, step), self._steps.get(step.name, {})
        before = known["seconds"] if known.get("command") == command and not known["done"] else 0.0
        self._steps[step.name] = {"command": command, "seconds": round(before + seconds, 1), "done": done}
        with atomic_file(self._path, "w") as file:
            json.dump(self._steps, file, indent=1)

    def of(self, steps: list[Step]) -> list[dict[str, Any]]:
        return [{key: self._steps[step.name][key] for key in ("command", "seconds")} for step in steps]


def shown(plan: Plan, step: Step) -> str:
    """A step's command as it is written down, without this machine's folders."""
    return shlex.join(["python", *step.words]).replace(str(plan.out), "OUT")


def run_step(plan: Plan, step: Step, done: Done) -> None:
    """Raises InputError where it fails, with the last line of what it said."""
    if done.has(step):
        return
    file = said(plan, step.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"  {step.name:<32} ...", end="", flush=True)
    began, code = time.perf_counter(), 1
    try:
        code = run(list(step.words), file)
    finally:
        done.add(step, time.perf_counter() - began, code == 0)
    if code:
        print(flush=True)
        last = (file.read_text("utf-8", errors="replace").splitlines() or ["nothing"])[-1]
        raise InputError(f"the command {step.name} ended with exit code {code}, and said last: {last.removeprefix('error: ')}")
    print(f" {time.perf_counter() - began:.1f} s", flush=True)


def run(words: list[str], file: Path) -> int:
    """`python WORDS` to its end, with all that it says in a file. Stopped by Ctrl-C or SIGTERM it is stopped, too, and all that it started."""
    with open(file, "w") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, preexec_fn=_end_with_parent
        )
    try:
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        raise


def _end_with_parent() -> None:
    """In the command, before it begins: killed by SIGKILL this program cannot stop it, and begun again it would run the same one beside it."""
    with suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
