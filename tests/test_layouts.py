"""Every layout gives the curve of one device: two columns, pairs, data-parallel, hybrid; with spare ranks and odd class counts too."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import on_ranks
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.alexnet import AlexNet
from model.columns import Columns
from model.design import Design, Lrn
from model.hybrid import Hybrid, parallel
from model.layout import Layout, choose, join, suited, take_place
from model.net import MaskDraw, gather_parameter, own_part, placements, whole_net, whole_state
from model.sgd import PaperSGD
from model.step import PlainStep
from model.traffic import traffic
from pipeline import InputError

DESIGN = Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=67, init_std=(0.02, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), lrn=Lrn(alpha=0.01))
STEPS, CPU = 20, torch.device("cpu")
COUNTED = 96  # pictures of a step whose bytes are counted: enough to see them beside gloo's headers

CLASSES = 5  # odd: parts of 3 and 2; 2, 2 and 1; 2, 2, 1 and none


@dataclass(frozen=True)
class Case:
    """A layout of some of four ranks: what is asked for, the ranks that can work then, and what it is called."""

    columns: int
    batch: int
    hybrid: bool
    working: int
    says: str


HYBRID = "hybrid: convolutions data-parallel, each fully connected layer split over"
CASES = {
    "a pair": Case(2, 6, False, 2, "2 x cpu, one column a device, 1 replica; 2 spare ranks wait"),
    "two pairs": Case(2, 12, False, 4, "4 x cpu, one column a device, 2 replicas"),
    "data": Case(1, 6, False, 3, "3 x cpu, the whole net on each device, 3 replicas; 1 spare rank waits"),
    "hybrid of three": Case(1, 6, True, 3, f"3 x cpu, {HYBRID} 3; 1 spare rank waits"),
    "hybrid of four": Case(1, 12, True, 4, f"4 x cpu, {HYBRID} 4"),
}


def pictures(step: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(batch, 3, 67, 67, dtype=torch.float64, generator=generator) * 20, torch.randint(0, CLASSES, (batch,), generator=generator)


def curve(net: AlexNet, layout: Layout, batch: int, steps: int = STEPS) -> tuple[list[float], dict[str, torch.Tensor], Sent]:
    """Losses of the whole batch, by the training's own step; the whole net's gradients of the first; what this rank sent in the last."""
    model, optimiser, losses, gradients, sent = parallel(net, layout), PaperSGD(net.parameters(), rate=0.01), [], {}, Sent()
    rows = batch // layout.data_count
    own = slice(rows * layout.data_index, rows * (layout.data_index + 1))
    for step in range(steps):
        images, labels = pictures(step, batch)
        masks = MaskDraw(seed=4, step=step, batch=batch, first_row=own.start)
        with sent if step == steps - 1 else nullcontext():
            loss = PlainStep(model, optimiser)(images[own].to(net.conv1.weight.dtype), layout.whole_batch_labels(labels[own]), masks)
        if step == 0:
            gradients = {name: gather_parameter(net, name, p.grad) for name, p in net.named_parameters() if p.grad is not None}
        if layout.data_group is not None:
            dist.all_reduce(loss, group=layout.data_group)
        losses.append(loss.item() / layout.data_count)
    return losses, gradients, sent


class Sent(TorchDispatchMode):
    """Sees every collective on its way to gloo, and what the process's sockets have sent."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []  # kind and bytes
        self.wire = 0

    def __enter__(self) -> Any:
        self.wire -= socket_bytes()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.wire += socket_bytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls.append((func._opname, self.payload(func._opname, args)))
        return func(*args, **(kwargs or {}))

    def payload(self, kind: str, args: Any) -> int:
        """Bytes for other ranks, as the textbooks count them."""
        if kind == "allgather_":
            (outputs,), (mine,) = args[:2]
            return (len(outputs) - 1) * mine.nbytes
        if kind == "alltoall_base_":
            given, ranks, parts = args[1], dist.ProcessGroup.unbox(args[2]), args[4]
            kept = given[0].nbytes * parts[ranks.rank()] if parts else given.nbytes // ranks.size()
            return int(given.nbytes - kept)
        assert kind == "allreduce_", f"{kind} is not counted"
        size = dist.ProcessGroup.unbox(args[1]).size()
        return int(2 * (size - 1) * sum(tensor.nbytes for tensor in args[0]) // size)


def socket_bytes() -> int:
    """Bytes sent so far on all TCP connections of this process, by the kernel's count."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family == socket.AF_INET and copy.type == socket.SOCK_STREAM:
                    total += struct.unpack_from("Q", copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)[0]  # tcpi_bytes_sent
    return total


def made(layout: Layout, dtype: torch.dtype) -> AlexNet:
    return AlexNet(CLASSES, DESIGN, layout.columns, seed=3).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def whole_from_mesh(net: AlexNet, layout: Layout, name: str) -> torch.Tensor:
    """The whole parameter as torch's own tensors over a mesh put it together."""
    assert layout.mesh is not None
    whole = AlexNet(net.num_classes, DESIGN).get_parameter(name)
    part = net.get_parameter(name).detach().contiguous()
    spread = DTensor.from_local(part, layout.mesh, placements(net, name), run_check=False, shape=whole.shape, stride=whole.stride())
    return spread.full_tensor()


def check_state(net: AlexNet, layout: Layout) -> dict[str, torch.Tensor]:
    """The whole state, after looking whether all ways to it agree."""
    state = whole_state(net)
    for name, parameter in net.named_parameters():
        assert torch.equal(own_part(net, name, state[name]), parameter), name
        if layout.mesh is not None:
            assert torch.equal(whole_from_mesh(net, layout, name), state[name]), name
    again = whole_net(net)
    assert again.columns.alone
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    return state


def in_layouts(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        working, columns = suited(4, case.columns, "cpu", case.batch, case.hybrid)
        assert working == case.working
        layout = take_place(working, columns, CPU, 4, case.hybrid)
        assert layout.spare == (rank >= working)
        if layout.spare:
            continue
        net = made(layout, torch.float64)
        start = {key: value.clone() for key, value in check_state(net, layout).items()}
        losses, gradients, _ = curve(net, layout, case.batch)
        single, _, _ = curve(made(layout, torch.float32), layout, case.batch)
        _, _, sent = curve(made(layout, torch.float32), layout, COUNTED, steps=3)  # in the second the wrapping sorts its buckets
        result = {"losses": losses, "gradients": gradients, "start": start, "end": check_state(net, layout), "float32": single}
        found[name] = {**result, "says": layout.describe(), "calls": sent.calls, "wire": sent.wire}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four ranks found in each layout that it worked in."""
    return on_ranks(in_layouts, 4, tmp_path_factory.mktemp("layouts"))


@cache
def one_device(batch: int) -> tuple[list[float], dict[str, Any]]:
    """Losses, and the states that the layouts' are to equal."""
    net = made(Layout(), torch.float64)
    start = {key: value.clone() for key, value in net.state_dict().items()}
    losses, gradients, _ = curve(net, Layout(), batch)
    return losses, {"start": start, "gradients": gradients, "end": net.state_dict()}


def in_parts(batch: int, parts: int, seed: int = 4) -> list[float]:
    """One device in float32, which sums gradients over `parts` parts of each batch: another order of the same sums."""
    net, losses = made(Layout(), torch.float32), []
    optimiser, rows = PaperSGD(net.parameters(), rate=0.01), batch // parts
    for step in range(STEPS):
        images, labels = pictures(step, batch)
        optimiser.zero_grad()
        total = 0.0
        for first in range(0, batch, rows):
            own = slice(first, first + rows)
            loss = torch.nn.functional.cross_entropy(net(images[own].float(), MaskDraw(seed, step, batch, first)), labels[own]) / parts
            loss.backward()
            total += loss.item()
        optimiser.step()
        losses.append(total)
    return losses


def furthest(losses: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(losses, others, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_layout_gives_the_curve_of_one_device(found: list[dict[str, Any]], name: str) -> None:
    """float64, dropout on: losses to 1e-6 over 20 steps, gradients and weights relative to their size."""
    case, (losses, states) = CASES[name], one_device(CASES[name].batch)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
    ranks = [one[name] for one in found if name in one]
    assert len(ranks) == case.working
    for one in ranks:
        assert one["says"] == case.says
        assert furthest(one["losses"], losses) < 1e-6
        assert len(one["gradients"]) == 16
        for kind, expected in states.items():
            for key, value in expected.items():
                torch.testing.assert_close(one[kind][key], value, rtol=1e-6, atol=1e-12, msg=f"{kind} of {key}")


@pytest.mark.parametrize("batch", [6, 12])
def test_in_float32_layouts_differ_as_orders_of_summation_do(found: list[dict[str, Any]], batch: int) -> None:
    losses, _ = one_device(batch)
    spread = max(furthest(losses, in_parts(batch, parts)) for parts in (1, 2, 3, 6))
    assert furthest(losses, in_parts(batch, 1, seed=5)) > 100 * spread, "the spread would hide other dropout masks"
    for name, case in CASES.items():
        for one in found[: case.working] if case.batch == batch else []:
            assert furthest(one[name]["float32"], losses) < 3 * spread, name


@pytest.mark.parametrize("name", CASES)
def test_bytes_sent_are_those_of_the_table(found: list[dict[str, Any]], name: str) -> None:
    """Counted where torch hands them to gloo, call by call, and by the kernel, which counts gloo's headers as well."""
    case, one = CASES[name], found[0][name]
    rows = traffic(DESIGN, CLASSES, COUNTED, case.columns, case.working // case.columns, case.hybrid)
    layers = [row for row in rows if row.layer != "gradients"]
    expected = [row.forward for row in layers] + [row.backward for row in reversed(layers) if row.backward]
    assert [size for kind, size in one["calls"] if kind != "allreduce_"] == expected
    reduced = sum(size for kind, size in one["calls"] if kind == "allreduce_")
    assert reduced == sum(row.backward for row in rows if row.layer == "gradients")
    total = sum(size for _, size in one["calls"])
    assert total <= one["wire"] < 1.2 * total


class Group:
    """Only the size of one."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


@pytest.mark.parametrize(("total", "ranks"), [(1000, 3), (7, 2), (5, 4), (4096, 8), (9, 8)])
def test_parts_of_the_hybrid_are_those_of_torch_chunk(total: int, ranks: int) -> None:
    group: Any = Group(ranks)
    cut = [torch.arange(total)[Hybrid(rank, group).rows("fc8", total)] for rank in range(ranks)]
    expected = torch.arange(total).chunk(ranks)
    assert all(torch.equal(a, b) for a, b in zip(cut, expected, strict=False))
    assert sum(len(part) for part in cut) == total
    assert Hybrid(1, group).rows("conv3", total) == slice(0, total)
    assert Columns().rows("fc8", total) == slice(0, total)


@pytest.mark.parametrize(
    ("world", "columns", "device", "batch", "hybrid", "expected"),
    [
        (3, None, "cpu", 128, False, (2, 1)),
        (3, 2, "cpu", 128, False, (2, 2)),
        (3, None, "cpu", 129, False, (3, 1)),
        (4, None, "cuda", 128, False, (4, 2)),
        (3, None, "cuda", 128, False, (2, 2)),
        (3, None, "cuda", 129, False, (3, 1)),  # no even number divides it
        (1, None, "cuda", 128, False, (1, 1)),
        (6, None, "cuda", 128, True, (4, 1)),
        (1, 1, "cpu", 128, True, (1, 1)),
    ],
)
def test_the_most_ranks_that_suit_work(world: int, columns: int | None, device: str, batch: int, hybrid: bool, expected: tuple[int, int]) -> None:
    assert suited(world, columns, device, batch, hybrid) == expected


def test_what_no_layout_can_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in [
        ((3, 2, "cpu", 129, False), "--columns 2 needs an even number"),
        ((1, 2, "cuda", 128, False), "--columns 2 needs an even number"),
        ((4, 2, "cpu", 128, True), "--hybrid and --columns 2"),
    ]:
        with pytest.raises(InputError, match=words):
            suited(*arguments)
    assert choose(3, None, "cpu", 12, hybrid=True) == (3, 1, "cpu")
    assert choose(None, 2, "cpu", 12) == (2, 2, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # what torch says on a machine with one GPU
    for asked, hybrid, words in [
        ((None, 2, "cuda", 128), False, "--columns 2 shares the net between devices, and there is 1 GPU"),
        ((None, 2, "auto", 128), False, "--columns 2 shares the net between devices, and there is 1 GPU"),
        ((1, 2, "cpu", 128), False, "--columns 2 shares the net between devices, and there is 1 device"),
        ((None, None, "cpu", 128), True, "--hybrid shares the net between devices, and there is 1 device"),
        ((2, 2, "cpu", 128), True, "--hybrid and --columns 2"),
        ((3, None, "cpu", 128), True, "batch 128 does not divide over 3 ranks"),
    ]:
        with pytest.raises(InputError, match=words):
            choose(*asked, hybrid=hybrid)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="process 1 of this machine has no GPU of its own, torch sees 1"):
        join(None, "cuda", 128)
