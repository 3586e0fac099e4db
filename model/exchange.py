"""What crosses between ranks in a step: swaps of two columns, plain or while a layer computes, and parts gathered."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

Layer = nn.Conv2d | nn.Linear


def plain(layer: Layer, x: torch.Tensor, index: int, group: dist.ProcessGroup) -> torch.Tensor:
    """A layer that reads both columns: first the exchange, then the layer.

    x: column `index`'s maps (n, c, h, w) or features (n, c); the layer, a convolution of stride 1 or a linear one, reads 2 c
    of them. The gradient that comes back for x is the sum of what both columns ask of it.
    """
    out: torch.Tensor = layer(_Exchange.apply(x, index, group))
    return out


def overlapped(layer: Layer, x: torch.Tensor, index: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The same as plain(), computing on what is here while the other column's part is on its way.

    Forward the part that reads this column's own maps; backward the gradients of the weights and of its own maps, for what
    the other column asks of its maps is computed and sent first.
    """
    assert layer.bias is not None, "all layers of the net have biases"
    kind, tensors = x.device.type, [x, layer.weight, layer.bias]
    if torch.is_autocast_enabled(kind):
        tensors = [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]
    with torch.autocast(kind, enabled=False):
        out: torch.Tensor = _Overlapped.apply(*tensors, layer.padding if isinstance(layer, nn.Conv2d) else None, index, group)
    return out


def gather_parts(x: torch.Tensor, total: int, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Parts as torch.chunk cuts them, rank by rank along `dim`, -> the whole of `total`, on every rank; not differentiable."""
    most = -(-total // group.size())
    x = _filled(x, most, dim).contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim).narrow(dim, 0, total)


def gather_outputs(x: torch.Tensor, own: slice, total: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Each rank's part (n, own) of the last layer's outputs -> all of them, (n, total).

    All ranks then compute the same loss from the same numbers, so each takes back its own part of that one gradient.
    """
    out: torch.Tensor = _GatherOutputs.apply(x, own, total, group)
    return out


def gather_features(x: torch.Tensor, own: slice, total: int, group: dist.ProcessGroup) -> torch.Tensor:
    """Each rank's part (n, own) of a layer's outputs -> all, (n, total), of which each rank then computes other things.

    The gradient that comes back is the sum of what all ranks ask of this part.
    """
    out: torch.Tensor = _GatherFeatures.apply(x, own, total, group)
    return out


def gather_pictures(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Each rank's pictures (n, features) -> those of the whole batch (ranks n, features), in rank order.

    The gradient that comes back is what all ranks ask of these pictures, times the number of ranks: a data-parallel wrapping
    divides the parameters' gradients by it, which is right for a mean loss of each rank's pictures but not for one of all.
    """
    out: torch.Tensor = _GatherPictures.apply(x, group)
    return out


def _start_swap(x: torch.Tensor, index: int, group: dist.ProcessGroup) -> tuple[torch.Tensor, Any]:
    """Begin to send x to the other column; its tensor of the same shape, to be read when the work has been waited for."""
    sent = x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x.contiguous()  # maps travel, and arrive, channels last
    received = torch.empty_like(sent)
    sizes = [0, len(sent)] if index == 0 else [len(sent), 0]  # nothing to itself
    work = dist.all_to_all_single(received, sent, sizes, sizes, group=group, async_op=True)
    return received.permute(0, 3, 1, 2) if x.dim() == 4 else received, work


def _swap(x: torch.Tensor, index: int, group: dist.ProcessGroup) -> torch.Tensor:
    received, work = _start_swap(x, index, group)
    work.wait()
    return received


def _in_order(mine: torch.Tensor, other: torch.Tensor, index: int) -> torch.Tensor:
    return torch.cat((mine, other) if index == 0 else (other, mine), dim=1)


def _filled(x: torch.Tensor, most: int, dim: int) -> torch.Tensor:
    """Zeros after x along `dim` up to `most`: collectives take equal parts."""
    lacking = most - x.shape[dim]
    if not lacking:
        return x
    shape = [*x.shape]
    shape[dim] = lacking
    return torch.cat((x, x.new_zeros(shape)), dim)


def _sum_for_me(parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """parts (ranks, ...): the i-th for rank i -> the sum of what all ranks had for this one, in float32 at least.

    Not reduce_scatter, which gloo does by an all-reduce of the whole: twice the bytes.
    """
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received.sum(0, dtype=torch.promote_types(parts.dtype, torch.float32))


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.index, ctx.group = index, group
        return _in_order(x, _swap(x, index, group), index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        parts = gradients[0].chunk(2, dim=1)
        return parts[ctx.index] + _swap(parts[1 - ctx.index], ctx.index, ctx.group), None, None


class _Overlapped(torch.autograd.Function):
    """Two halves of a layer, on this column's input and on the other's: of the weights (out, 2 c, ...) the halves of dimension 1."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, padding: Any, index: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        other, work = _start_swap(x, index, group)
        halves = weight.chunk(2, dim=1)
        out = F.linear(x, halves[index], bias) if padding is None else F.conv2d(x, halves[index], bias, padding=padding)
        work.wait()
        if padding is None:
            out.addmm_(other, halves[1 - index].t())
        else:
            out += F.conv2d(other, halves[1 - index], padding=padding)
        ctx.save_for_backward(x, other, weight)
        ctx.padding, ctx.index, ctx.group = padding, index, group
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x, other, weight), g, padding, index = ctx.saved_tensors, gradients[0], ctx.padding, ctx.index
        halves, weight_gradient = weight.chunk(2, dim=1), torch.empty_like(weight)
        places = weight_gradient.chunk(2, dim=1)
        asked, work = _start_swap(_input_gradient(g, other, halves[1 - index], padding), index, ctx.group)
        mine = _input_gradient(g, x, halves[index], padding)
        _weight_gradient(places[index], g, x, padding)
        _weight_gradient(places[1 - index], g, other, padding)
        bias_gradient = g.sum((0, *range(2, g.dim())))
        work.wait()
        return mine + asked, weight_gradient, bias_gradient, None, None, None


def _input_gradient(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, padding: Any) -> torch.Tensor:
    return g @ weight if padding is None else _convolution_backward(g, x, weight, padding, [True, False, False])[0]


def _weight_gradient(place: torch.Tensor, g: torch.Tensor, x: torch.Tensor, padding: Any) -> None:
    """Write the gradient of half of the weights to its place."""
    if padding is None:
        torch.mm(g.t(), x, out=place)
    else:
        place.copy_(_convolution_backward(g, x, place, padding, [False, True, False])[1])  # of place only the shape is read


def _convolution_backward(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, padding: Any, wanted: list[bool]) -> Any:
    """(input, weight, bias) gradients of a convolution of stride 1."""
    return torch.ops.aten.convolution_backward(g, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted)


class _GatherOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, own: slice, total: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.own = own
        return gather_parts(x, total, 1, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0][:, ctx.own].contiguous(), None, None, None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, own: slice, total: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.own, ctx.group = own, group
        return gather_parts(x, total, 1, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g, ranks = gradients[0], ctx.group.size()
        most = -(-g.shape[1] // ranks)
        parts = _filled(g, most * ranks, 1).view(len(g), ranks, most).transpose(0, 1)
        return _sum_for_me(parts, ctx.group)[:, : ctx.own.stop - ctx.own.start].to(g.dtype), None, None, None


class _GatherPictures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return gather_parts(x, len(x) * group.size(), 0, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        g, ranks = gradients[0], ctx.group.size()
        asked = _sum_for_me(g.contiguous().view(ranks, len(g) // ranks, -1), ctx.group)
        return (asked * ranks).to(g.dtype), None
