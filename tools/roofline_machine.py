"""Peak and bandwidth of a machine: the H200's as they are counted on, any other's measured."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

SMALLEST, LARGEST = 256, 8192  # sides of the matrices multiplied
LONG = 0.05  # seconds: a product that takes so long has reached its peak
TRIES = 0.3  # seconds for the tries of one size
COPIED = {"cpu": 1 << 27, "cuda": 1 << 30}  # bytes: past any cache


@dataclass(frozen=True)
class Machine:
    """flops: floating-point operations a second of matrix products; bandwidth: bytes a second, read and written together."""

    name: str
    flops: float
    bandwidth: float


H200 = Machine("NVIDIA H200", 790e12, 4.3e12)  # bfloat16; docs/speed.md: what can be reached of the data sheet's 989 and 4.8


def measured_machine(device: torch.device, kind: torch.dtype = torch.bfloat16) -> Machine:
    """What torch.mm in this type and a copy reach here, in about two seconds: `torch.get_num_threads()` threads on a CPU."""
    return Machine(_name(device), _peak(device, kind), _bandwidth(device))


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def _peak(device: torch.device, kind: torch.dtype) -> float:
    """The best over sizes, larger ones until they take long: a CPU without the instructions for a type would take minutes."""
    best, side = 0.0, SMALLEST
    while True:
        a, b, out = (torch.randn(side, side, device=device).to(kind) for _ in range(3))
        seconds = _best(lambda: torch.mm(a, b, out=out), device)  # noqa: B023
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONG or side == LARGEST:
            return best
        side *= 2


def _bandwidth(device: torch.device) -> float:
    source, target = (torch.ones(COPIED[device.type] // 4, device=device) for _ in range(2))
    return 2 * COPIED[device.type] / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of some runs, the first not counted."""
    work()
    _wait(device)
    end, best = time.perf_counter() + TRIES, float("inf")
    while time.perf_counter() < end or best == float("inf"):
        began = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
