"""Where the time of a step goes, as a Chrome trace: chrome://tracing and Perfetto open it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from model.spans import STEP, Span, chrome_trace, read_spans, summary
from pipeline import InputError, atomic_file

WARM_UP = 5  # steps that are not looked at


class Timeline:
    """Looks at `steps` steps, the sixth and those after it, and writes RUN/profile/rank-K.json; with 0 steps it does nothing.

    The trace has one process, this rank, with a row for the whole step, for each of STAGES, for what goes between the ranks,
    for the operators and, on a GPU, for its kernels: about 25 kB a step. On a GPU the end of each stage waits for it, so that
    what a stage began lies in it; steps take longer for that.
    """

    def __init__(self, folder: Path, rank: int, steps: int, device: torch.device) -> None:
        if steps < 0:
            raise InputError(f"--profile {steps} is no number of steps; give one of at least 1, or leave it out")
        self.path, self._rank, self._steps, self._seen = folder / "profile" / f"rank-{rank}.json", rank, steps, 0
        self._device, self._profile, self._step = device, None, None
        self.lines: list[str] = []  # what was found, when it has been

    _profile: Any
    _step: Any

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """One of STAGES, of the present step."""
        return nullcontext() if self._profile is None else self._seen_stage(name)

    @contextmanager
    def _seen_stage(self, name: str) -> Iterator[None]:
        with record_function(name):
            yield
            self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def step(self) -> None:
        """A step has ended."""
        if not self._steps:
            return
        self._seen += 1
        if self._seen == WARM_UP:
            self._begin()
        elif self._seen == WARM_UP + self._steps:
            self.end()
        elif self._profile is not None:
            self._step.__exit__(None, None, None)
            self._step = record_function(STEP).__enter__()

    def _begin(self) -> None:
        self._wait()
        gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._profile.start()
        self._step = record_function(STEP).__enter__()

    def end(self) -> None:
        """Write what there is, also of fewer steps than were asked for."""
        if self._profile is None:
            return
        self._step.__exit__(None, None, None)
        done, self._profile = self._profile, None
        steps, self._steps = self._seen - WARM_UP, 0
        done.stop()
        if steps == 0:
            self.lines = ["profile: the epoch ended before a step could be looked at, so no trace is written"]
            return
        try:
            self._write(*_read(done, steps))
        except OSError as error:  # a time line is not worth a run
            self.lines = [f"warning: {self.path} could not be written ({error.strerror})"]

    def _write(self, spans: list[Span], base: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path, "w") as file:
            json.dump(chrome_trace(spans, self._rank, base), file, separators=(",", ":"))
        first, *others = summary(spans)
        self.lines = [f"profile of rank {self._rank}: {first}; trace: {self.path}, {self.path.stat().st_size / 1e6:.2f} MB", *others]


def _read(done: Any, steps: int) -> tuple[list[Span], int]:
    """What was seen, and the nanoseconds of the epoch at which its time begins. torch's own trace is ten times as long, and its rows are threads."""
    with tempfile.TemporaryDirectory() as place:
        raw = Path(place) / "trace.json"
        done.export_chrome_trace(str(raw))
        content = json.loads(raw.read_text("utf-8"))
    return read_spans(content["traceEvents"], steps), content["baseTimeNanoseconds"]
