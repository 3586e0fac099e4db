"""The paper's stochastic gradient descent (section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class PaperSGD(Optimizer):
    """v <- momentum v - weight_decay rate w - rate g;  w <- w + v.

    The rate is inside the velocity, so a lower rate does not at once shrink what was gathered under the higher one, as it
    does in torch.optim.SGD. Parameter groups may set rate, momentum and weight_decay. Gradients must not be sparse.
    """

    def __init__(self, params: Iterable[Any], rate: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0005) -> None:
        for name, value in (("rate", rate), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, it is {value}")
        super().__init__(params, {"rate": rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            velocities = [self.velocity(p) for p in params]
            gradients = [p.grad for p in params]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, params, alpha=-group["weight_decay"] * group["rate"])
            torch._foreach_add_(velocities, gradients, alpha=-group["rate"])
            torch._foreach_add_(params, velocities)
        return loss

    def velocity(self, parameter: torch.Tensor) -> torch.Tensor:
        """The velocity of a parameter; zero before its first step."""
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["velocity"]
