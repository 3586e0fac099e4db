"""The processes in which the rows of the conversion benchmark run; what they are told and answer stands in tools/peer_conversions.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from tools.bench_peers import NotInstalled

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers-shards" / "bin" / "python"
INSTALL = "make peers-shards"
# One thread each, whatever a library would take by itself; and no look for a newer albumentations on the network.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


class Worker:
    """One process, started; `wait_until_ready`, then `ask`, then `close`. versions: of its libraries."""

    def __init__(self, rows: list[str], peer: bool, pictures: Path, count: int | None, log: Path) -> None:
        """rows: of one module, tools.peer_conversions or our own; log: file for what the process says on stderr."""
        self.rows, self._log = rows, log
        self.versions: dict[str, str] = {}
        python = PYTHON if peer and PYTHON.exists() else sys.executable
        command = [str(python), "-m", "tools.peer_conversions" if peer else "tools.bench_shards_own", "--rows", *rows]
        command += ["--pictures", str(pictures.resolve()), *(["--count", str(count)] if count else [])]
        with open(log, "w") as said:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
            )

    def wait_until_ready(self) -> None:
        """Until it has converted every picture once. Raises NotInstalled, InputError."""
        ready = self.answer()
        if "missing" in ready:
            raise NotInstalled(f"row {self.rows[0]} is not measured: {ready['missing']}; install the peers with: {INSTALL}")
        self.versions = ready["versions"]

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None, "it was started with a pipe"
        with suppress(BrokenPipeError):  # it has ended; its answer says why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line of the process. Raises InputError when it ended instead."""
        assert self._process.stdout is not None, "it was started with a pipe"
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()] or ["it said nothing"]
        code = self._process.wait()
        raise InputError(f"row {self.rows[0]}: its process ended with code {code}: {said[-1].strip()}; free memory, or leave it out with --rows")

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def ask(workers: list[Worker], line: str) -> list[dict[str, Any]]:
    """Tell all of them the same at the same time, and wait for all answers. Raises InputError."""
    for worker in workers:
        worker.tell(line)
    return [worker.answer() for worker in workers]
