"""Rows of RGB pixels, copied or mirrored at the speed of memory: what the kernels that cut pictures are made of (Numba)."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _forget_stale_kernels() -> None:
    """Numba keeps compiled kernels on disk, and watches only the file of each; those of other files have the rows of this one in them."""
    folder = Path(__file__).parent / "__pycache__"
    stamp, digest = folder / "rows.sha256", hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    with suppress(OSError):  # a folder that cannot be written to holds no kernels either
        if not stamp.exists() or stamp.read_text() != digest:
            for kernel in folder.glob("*.nb[ci]"):
                kernel.unlink(missing_ok=True)
            stamp.write_text(digest)


_forget_stale_kernels()

PIXELS = 16  # mirrored at once: 48 bytes, one shuffle of the processor


@intrinsic
def _mirror_pixels(typing_context: Any, out: Any, to: Any, source: Any, at: Any) -> Any:
    """out[to : to + 48] = the 16 pixels of source[at : at + 48], last one first.

    LLVM does not see a shuffle in a loop that goes backwards by threes, and moves byte by byte, four times as slow.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), 3 * PIXELS)

        def place(kind: Any, array: Any, index: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        loaded = builder.load(place(signature.args[2], arguments[2], arguments[3]))
        loaded.align = 1
        order = [3 * (PIXELS - 1 - byte // 3) + byte % 3 for byte in range(3 * PIXELS)]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 3 * PIXELS), order)
        mirrored = builder.shuffle_vector(loaded, ir.Constant(vector, ir.Undefined), mask)
        builder.store(mirrored, place(signature.args[0], arguments[0], arguments[1])).align = 1
        return context.get_dummy_value()

    return types.void(out, types.intp, source, types.intp), generate


@njit(nogil=True, error_model="numpy")
def copy_row(out: np.ndarray, source: np.ndarray) -> None:
    """out[:] = source. Both (3 n,) uint8, contiguous."""
    for k in range(out.size):
        out[k] = source[k]


@njit(nogil=True, error_model="numpy")
def mirror_row(out: np.ndarray, source: np.ndarray) -> None:
    """out = source with its n pixels in reverse order. Both (3 n,) uint8, contiguous, and not the same memory."""
    count, done = out.size // 3, 0
    while done + PIXELS <= count:
        _mirror_pixels(out, 3 * done, source, 3 * (count - done - PIXELS))
        done += PIXELS
    while done < count:
        for channel in range(3):
            out[3 * done + channel] = source[3 * (count - 1 - done) + channel]
        done += 1
