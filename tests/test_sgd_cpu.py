"""The paper's SGD in one pass on the CPU: the rule as it reads, and PyTorch's operations one after the other, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import sgd_cpu

RATE, MOMENTUM, DECAY = 0.013, 0.9, 0.0005
SHAPES = [(), (0,), (3,), (96, 3, 11, 11), (17, 33), (2, sgd_cpu.PIECE // 2 + 37)]
Triple = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


def drawn(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def triples() -> Triple:
    return drawn(0), drawn(1), drawn(2)


def foreach(weights: list[torch.Tensor], velocities: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    torch._foreach_mul_(velocities, MOMENTUM)
    torch._foreach_add_(velocities, weights, alpha=-DECAY * RATE)
    torch._foreach_add_(velocities, gradients, alpha=-RATE)
    torch._foreach_add_(weights, velocities)


def assert_same(ours: Triple, theirs: Triple) -> None:
    for our, their in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        assert torch.equal(our, their)


def test_is_the_rule_in_float64() -> None:
    w, v, g = (tensors[3].double().numpy() for tensors in triples())
    weights, velocities, gradients = triples()
    for _ in range(3):
        sgd_cpu.update(weights, velocities, gradients, RATE, MOMENTUM, DECAY)
        v = MOMENTUM * v - DECAY * RATE * w - RATE * g
        w = w + v
    np.testing.assert_allclose(velocities[3].numpy(), v, rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights[3].numpy(), w, rtol=0, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_is_four_passes_bit_for_bit(threads: int) -> None:
    ours, theirs, before = triples(), triples(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            sgd_cpu.update(*ours, RATE, MOMENTUM, DECAY)
            foreach(*theirs)
    finally:
        torch.set_num_threads(before)
    assert_same(ours, theirs)


def test_any_strides() -> None:
    """Channels last, transposed, with holes; gradients and velocities that lie otherwise than their weights."""

    def lying_anyhow() -> Triple:
        weights, velocities, gradients = triples()
        shape = weights[3].shape
        weights[3], velocities[3] = (x.contiguous(memory_format=torch.channels_last) for x in (weights[3], velocities[3]))
        weights[4], velocities[4] = weights[4].t(), velocities[4].t()
        gradients[4] = gradients[4].t().contiguous()
        weights[5] = weights[5][:, ::2]
        velocities[5], gradients[5] = velocities[5][:, ::2].contiguous(), gradients[5][:, ::2]
        weights.append(torch.ones(shape).contiguous(memory_format=torch.channels_last))
        velocities.append(torch.linspace(-1, 1, weights[-1].numel()).view(shape))
        gradients.append(torch.tensor(0.5).expand(shape))
        return weights, velocities, gradients

    ours, theirs = lying_anyhow(), lying_anyhow()
    gradients = [gradient.clone() for gradient in ours[2]]
    strides = [x.stride() for x in ours[0] + ours[1]]
    sgd_cpu.update(*ours, RATE, MOMENTUM, DECAY)
    foreach(*theirs)
    assert_same(ours, theirs)
    assert [x.stride() for x in ours[0] + ours[1]] == strides
    assert all(torch.equal(gradient, kept) for gradient, kept in zip(ours[2], gradients, strict=True))


def test_nan_and_infinity_pass() -> None:
    ours, theirs = triples(), triples()
    for triple in (ours, theirs):
        for tensors, value in zip(triple, (torch.nan, torch.inf, -torch.inf), strict=True):
            tensors[4][0, :5] = value
            tensors[3][1] = value
    sgd_cpu.update(*ours, RATE, MOMENTUM, DECAY)
    foreach(*theirs)
    for our, their in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=0, equal_nan=True)


def test_a_graph_of_the_old_weights_is_refused() -> None:
    """As after any other change in place: its backward pass would give the gradient of neither."""
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    sgd_cpu.update([weight], [torch.zeros(3)], [torch.ones(3)], RATE, MOMENTUM, DECAY)
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
