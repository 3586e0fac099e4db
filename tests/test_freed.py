from __future__ import annotations

import sys

from conftest import run_command

# A fresh process: 200 MB in pieces of 64 kB, every second of them freed, so that the heap is holes up to its end.
PROGRAM = """
import ctypes, pathlib, sys
from pipeline import freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

memory = freed.FreedMemory()
pieces = [libc.malloc(1 << 16) for _ in range(3200)]
for piece in pieces:
    ctypes.memset(piece, 1, 1 << 16)
for piece in pieces[::2]:
    libc.free(piece)
full = resident()
memory.hand_back()
before = resident()
freed.EVERY = 0
memory.hand_back()
print(full - before, before - resident())
"""


def test_freed_memory_goes_back_to_the_system_and_not_before_its_time() -> None:
    assert sys.platform == "linux"
    result = run_command("-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    too_early, in_time = map(int, result.stdout.split())
    assert too_early < 10e6
    assert in_time > 60e6  # bytes
