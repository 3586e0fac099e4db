"""Where the time of a step goes, as a Chrome trace: chrome://tracing and Perfetto open it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STAGES = ("waiting for data", "forward", "backward", "optimiser")
WARM_UP = 5  # steps that are not looked at
COLLECTIVES = ("gloo:", "nccl:")


class Timeline:
    """Looks at `steps` steps, the sixth and those after it, and writes RUN/profile/rank-K.json; with 0 steps it does nothing."""

    def __init__(self, folder: Path, rank: int, steps: int, device: torch.device) -> None:
        self.path, self._steps, self._seen = folder / "profile" / f"rank-{rank}.json", steps, 0
        self._gpu = device.type == "cuda"
        self._profile: Any = None
        self.lines: list[str] = []  # what was found, when it has been

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """One of STAGES, of the present step."""
        return nullcontext() if self._profile is None else record_function(name)

    def step(self) -> None:
        """A step has ended."""
        if not self._steps:
            return
        self._seen += 1
        if self._seen == WARM_UP:
            self._profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._gpu else [])])
            self._profile.__enter__()
        elif self._seen == WARM_UP + self._steps:
            self.end()

    def end(self) -> None:
        """Write what there is, also of fewer steps than were asked for."""
        if self._profile is None:
            return
        done, self._profile = self._profile, None
        done.__exit__(None, None, None)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(self.path))
        steps, self._steps = self._seen - WARM_UP, 0
        self.lines = _lines(json.loads(self.path.read_text("utf-8"))["traceEvents"], steps, self.path)


def _lines(events: list[dict[str, Any]], steps: int, path: Path) -> list[str]:
    """Milliseconds a step of each stage, on this rank."""
    spans = [event for event in events if event.get("ph") == "X"]
    ours = [event for event in spans if event["name"] in STAGES and event.get("cat") == "user_annotation"]
    if not ours:
        return [f"profile: no step was seen; trace: {path}"]
    whole = max(one["ts"] + one["dur"] for one in ours) - min(one["ts"] for one in ours)
    lines = [f"profile: {steps} steps of {whole / steps / 1000:.1f} ms; trace: {path}, {path.stat().st_size / 1e6:.1f} MB"]
    found = [(name, sum(one["dur"] for one in ours if one["name"] == name)) for name in STAGES]
    found.append(("exchange, beside and within these", _covered([one for one in spans if one["name"].startswith(COLLECTIVES)])))
    return lines + [f"  {name:<36}{time / steps / 1000:>10.2f} ms{100 * time / whole:>8.1f} %" for name, time in found]


def _covered(spans: list[dict[str, Any]]) -> float:
    """Microseconds in which at least one of the spans goes on."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda one: float(one["ts"])):
        start, end = max(span["ts"], until), span["ts"] + span["dur"]
        total, until = total + max(0.0, end - start), max(until, end)
    return total
