"""Ctrl-C and SIGTERM: finish the step, save, exit; all ranks after the same step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class Stopped(Exception):
    """All ranks have agreed to end here; `number` is the signal that asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopRequest:
    """Remembers a signal. begin() and agreed() bracket a step: the ranks tell each other while they compute."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._signal = 0
        self._word = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def noted(self) -> int:
        """The signal that this rank has received; 0 for none."""
        return self._signal

    def begin(self) -> None:
        self._word.fill_(self._signal)
        if self._group is not None:
            self._work = dist.all_reduce(self._word, dist.ReduceOp.MAX, self._group, async_op=True)

    def agreed(self) -> int:
        """The signal that any rank had received when the step began, the same answer on every rank; 0 for none."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return int(self._word)

    def now(self) -> int:
        """begin() and agreed() in one, where there is nothing to do meanwhile."""
        self.begin()
        return self.agreed()
