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
    float32 parameters take one pass over memory, others, or all with fused=False, four. halves: bfloat16 copies of
    parameters; where there is one, the gradient is the copy's, and the copy gets the new weight too.
    """

    def __init__(self, params: Iterable[Any], rate: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0005, fused: bool = True) -> None:
        for name, value in (("rate", rate), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, it is {value}")
        super().__init__(params, {"rate": rate, "momentum": momentum, "weight_decay": weight_decay})
        self.fused, self.halves = fused, dict[torch.Tensor, torch.Tensor]()
        self._rates: dict[int, tuple[float, torch.Tensor]] = {}  # by group: the rate, and where a GPU reads it

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.set_rates()
        for number, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if self.gradient(p) is not None]
            if params:
                self._update(number, group, params)
        return loss

    def set_rates(self) -> None:
        """Bring the groups' rates to the GPU that reads them there, also from within a CUDA graph; without waiting for it."""
        for number, group in enumerate(self.param_groups):
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
                continue
            rate, there = self._rates.get(number, (None, None))
            if there is None or rate != group["rate"]:
                there = torch.zeros((), device=device) if there is None else there
                self._rates[number] = group["rate"], there.fill_(group["rate"])

    def _update(self, number: int, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        momentum, decay = group["momentum"], group["weight_decay"]
        form = self._form(params[0])
        if form == "triton":
            import model.sgd_kernel as on_gpu

            for p in params:
                on_gpu.update(p, self.velocity(p), self.gradient(p), self.halves.get(p), self._rates[number][1], momentum, decay)
            return
        velocities, gradients = [self.velocity(p) for p in params], [self.gradient(p).to(p.dtype) for p in params]
        if form == "numba":
            import model.sgd_cpu as on_cpu

            on_cpu.update(params, velocities, gradients, group["rate"], momentum, decay)
        else:
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, params, alpha=-decay * group["rate"])
            torch._foreach_add_(velocities, gradients, alpha=-group["rate"])
            torch._foreach_add_(params, velocities)
        for p in params:
            if p in self.halves:
                self.halves[p].copy_(p)

    def _form(self, parameter: torch.Tensor) -> str:
        if not self.fused or parameter.dtype != torch.float32:
            return "plain"
        return "numba" if parameter.device.type == "cpu" else "triton" if has_triton() else "plain"

    def gradient(self, parameter: torch.Tensor) -> Any:
        """A parameter's gradient, or its copy's; None where it has none."""
        return self.halves.get(parameter, parameter).grad

    def velocity(self, parameter: torch.Tensor) -> torch.Tensor:
        """The velocity of a parameter; zero before its first step."""
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["velocity"]


def has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
