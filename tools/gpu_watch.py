"""How busy a GPU is and what it draws, looked at ten times a second in a thread beside the work.

    with GpuWatch(uuid_of(device)) as watch:
        ...
    load = watch.between(began, ended)  # times of time.perf_counter(); None on a machine without a GPU

By NVML where `pynvml` can be imported, else by `nvidia-smi`. "Busy" is NVML's utilization.gpu: the share of the driver's last sampling period
in which at least one kernel was running. It says nothing of how much of the GPU those kernels used: one block on one of 132 multiprocessors
counts as 100 %. Power is the board's, averaged by the driver over about a second, so that figures of shorter stretches lag.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, NamedTuple

import torch

PERIOD = 0.1  # seconds between looks

Read = Callable[[], "tuple[float | None, float | None]"]  # percent busy, watts; None for what the GPU does not tell


class Sample(NamedTuple):
    """at: of time.perf_counter(); busy: percent; power: W; None where the GPU does not tell."""

    at: float
    busy: float | None
    power: float | None


@dataclass(frozen=True)
class Load:
    """Means over a stretch of time: percent of it with a kernel running, W; samples: how many looks these are of."""

    busy: float | None
    power: float | None
    samples: int


def uuid_of(device: torch.device) -> str | None:
    """The name by which NVML and nvidia-smi know a device of torch's, whatever CUDA_VISIBLE_DEVICES says; None for the CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def smi_command(uuid: str) -> list[str]:
    fields = ["--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits"]
    return ["nvidia-smi", f"--id={uuid}", *fields, "-lms", str(round(1000 * PERIOD))]


class GpuWatch:
    """Looks at a GPU while it is entered; uuid None: there is none, and nothing is looked at."""

    def __init__(self, uuid: str | None, command: list[str] | None = None) -> None:
        """command: prints a line of "percent, watts" a look, instead of NVML and nvidia-smi."""
        self._uuid, self._command = uuid, command
        self.samples: list[Sample] = []
        self._stop, self._thread = threading.Event(), None
        self._process: subprocess.Popen[str] | None = None

    _thread: threading.Thread | None

    def __enter__(self) -> GpuWatch:
        if self._uuid is None and self._command is None:
            return self
        read = _by_nvml(self._uuid) if self._uuid and self._command is None else None
        if read is not None:
            self._begin(lambda: self._look(read))
            return self
        with suppress(OSError):  # no nvidia-smi either
            command = self._command or smi_command(str(self._uuid))
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert self._process.stdout is not None, "it was started with a pipe"
            lines = self._process.stdout
            self._begin(lambda: self._listen(lines))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _begin(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, daemon=True, name="gpu-watch")
        self._thread.start()

    def _look(self, read: Read) -> None:
        while not self._stop.wait(PERIOD):
            busy, power = read()
            self.samples.append(Sample(time.perf_counter(), busy, power))

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            self.samples.append(Sample(time.perf_counter(), *parsed(line)))

    def between(self, began: float, ended: float) -> Load | None:
        """Of the looks in that time; None where there were none."""
        seen = [sample for sample in list(self.samples) if began <= sample.at <= ended]
        if not seen:
            return None
        return Load(_mean([sample.busy for sample in seen]), _mean([sample.power for sample in seen]), len(seen))


def parsed(line: str) -> tuple[float | None, float | None]:
    """ "87, 512.30" -> (87, 512.3); what is no number, such as [N/A], is None."""
    values: list[float | None] = []
    for part in line.split(","):
        try:
            values.append(float(part))
        except ValueError:
            values.append(None)
    busy, power = [*values, None, None][:2]
    return busy, power


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None


def _by_nvml(uuid: str) -> Read | None:
    """Reads one GPU; None without pynvml, or where it cannot be started here."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None

    def one(question: Callable[[Any], float]) -> float | None:
        try:
            return question(gpu)
        except pynvml.NVMLError:
            return None

    def read() -> tuple[float | None, float | None]:
        power = one(pynvml.nvmlDeviceGetPowerUsage)  # mW
        return one(lambda handle: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)), None if power is None else power / 1000

    return read
