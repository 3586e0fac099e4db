"""sgd's rule in one pass over memory on the CPU, in Numba: 20 bytes a parameter, where four steps over all of them move 44."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from model.lrn_pool_cpu import on_threads

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # weights, velocities, gradients, (count,) float32

PIECE = 2**18  # parameters that a thread takes at once


@torch.no_grad()
def update(
    weights: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    rate: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v <- momentum v - weight_decay rate w - rate g;  w <- w + v, in place, for float32 tensors on the CPU.

    Where the processor multiplies and adds in one rounding (x86 since AVX2, ARM), the results are those of sgd's _foreach operations, bit
    for bit. A weight with holes in its memory, or whose velocity lies otherwise than itself, is taken in four steps.
    """
    settings, pieces = (np.float32(momentum), np.float32(-weight_decay * rate), np.float32(-rate)), list[Triple]()
    for w, v, g in zip(weights, velocities, gradients, strict=True):
        if _is_dense(w) and w.stride() == v.stride():
            pieces += _pieces(w.detach(), v.detach(), g if g.stride() == w.stride() else torch.empty_like(w).copy_(g))
        else:
            v.mul_(momentum).add_(w, alpha=-weight_decay * rate).add_(g, alpha=-rate)
            w.add_(v)
    on_threads(lambda piece: _update(*piece, *settings), pieces)
    torch.autograd.graph.increment_version([*weights, *velocities])  # who kept the old ones for a backward pass is told so


def _is_dense(x: torch.Tensor) -> bool:
    """Whether its values fill a stretch of memory, in any order of dimensions."""
    return _in_memory_order(x).is_contiguous()


def _in_memory_order(x: torch.Tensor) -> torch.Tensor:
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def _pieces(*triple: torch.Tensor) -> list[Triple]:
    """triple: weight, velocity and gradient, dense and alike."""
    w, v, g = (_in_memory_order(tensor).view(-1).numpy() for tensor in triple)
    return [(w[at : at + PIECE], v[at : at + PIECE], g[at : at + PIECE]) for at in range(0, len(w), PIECE)]


@intrinsic
def _multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@njit(nogil=True, error_model="numpy", cache=True)
def _update(w: np.ndarray, v: np.ndarray, g: np.ndarray, momentum: np.float32, decay: np.float32, step: np.float32) -> None:
    """decay, step: what weights and gradients are multiplied by, both with their sign."""
    for i in range(len(w)):
        velocity = _multiply_add(g[i], step, _multiply_add(w[i], decay, momentum * v[i]))
        v[i] = velocity
        w[i] = w[i] + velocity
