"""The time line of steps, on two real ranks: rows, nesting, and that its figures add up."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import on_ranks

from model.alexnet import AlexNet
from model.columns import Columns
from model.design import Design
from model.hybrid import parallel
from model.layout import Layout
from model.net import MaskDraw
from model.sgd import PaperSGD
from model.spans import ROWS, STAGES, Span, covered, read_spans, summary
from model.step import PlainStep
from model.timeline import WARM_UP, Timeline
from pipeline import InputError

DESIGN = Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=67)
STEPS, CPU = 3, torch.device("cpu")


def steps(timeline: Timeline, layout: Layout, count: int) -> torch.Tensor:
    """Steps as the training loop makes them, with its word to the other ranks in each; conv1's weights after them."""
    net = AlexNet(5, DESIGN, layout.columns)
    model, optimiser, word = parallel(net, layout), PaperSGD(net.parameters()), torch.zeros(1)
    for step in range(count):
        with timeline.stage("waiting for data"):
            images, labels = torch.randn(4, 3, 67, 67, generator=torch.Generator().manual_seed(step)), torch.arange(4)
        work = dist.all_reduce(word, async_op=True) if dist.is_initialized() else None
        PlainStep(model, optimiser)(images, labels, MaskDraw(0, step, 4 * layout.data_count), timeline.stage)
        if work is not None:
            work.wait()
        timeline.step()
    timeline.end()
    return net.conv1.weight.detach()


def pair_and_replicas(rank: int, folder: str) -> tuple[list[str], list[str], bool]:
    """Two columns, then two whole nets: what is said of each; whether weights are the same bits without the profiler."""
    everyone, said, same = dist.group.WORLD, [], True
    for name, layout in {
        "pair": Layout(rank, 2, 2, columns=Columns(rank, everyone)),
        "replicas": Layout(rank, 2, 2, data_index=rank, data_count=2, data_group=everyone),
    }.items():
        timeline = Timeline(Path(folder) / name, rank, STEPS, CPU)
        seen = steps(timeline, layout, WARM_UP + STEPS + 1)
        said.append(timeline.lines)
        same &= torch.equal(seen, steps(Timeline(Path(folder), rank, 0, CPU), layout, WARM_UP + STEPS + 1))
    return said[0], said[1], same


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("traced")
    return folder, on_ranks(pair_and_replicas, 2, folder, str(folder))


def read(path: Path, rank: int) -> dict[str, list[tuple[float, float]]]:
    """(begin, end) of what is in each row of a trace, in order; all of it one process, the rank."""
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {rank}
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == [f"rank {rank}"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert sorted(names) == [event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"]
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            rows[names[event["tid"]]].append((event["ts"], event["ts"] + event["dur"]))
    return rows


def within(inner: list[tuple[float, float]], outer: list[tuple[float, float]]) -> bool:
    return all(any(a <= begin + 0.01 and end <= b + 0.01 for a, b in outer) for begin, end in inner)  # times are rounded to 0.001


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["pair", "replicas"])
def test_a_trace_has_its_rows_and_they_nest(traced: tuple[Path, list[Any]], name: str, rank: int) -> None:
    rows = read(traced[0] / name / "profile" / f"rank-{rank}.json", rank)
    assert list(rows) == list(ROWS)
    assert len(rows["step"]) == STEPS
    for stage in STAGES:
        assert len(rows[stage]) == STEPS
        assert within(rows[stage], rows["step"])
    everything = sorted(span for stage in STAGES for span in rows[stage])
    assert all(end <= begin + 0.01 for (_, end), (begin, _) in pairwise(everything))  # one after the other
    operators = rows["operators"]
    assert within(operators, rows["step"])
    assert within(rows["all-reduce"], rows["backward"])
    assert within([span for span in rows["exchange"] if span[0] < rows["forward"][0][1]], rows["forward"])
    counts = {row: len(rows[row]) for row in ("exchange", "all-reduce", "other messages")}
    # of a pair: conv3, fc6, fc7, fc8 forward and backward, and the logits; of replicas: one bucket of gradients
    assert counts == {"exchange": 9 * STEPS if name == "pair" else 0, "all-reduce": 0 if name == "pair" else STEPS, "other messages": STEPS}


def test_what_is_said_adds_up(traced: tuple[Path, list[Any]]) -> None:
    for lines in traced[1][0][:2]:
        assert lines[0].startswith(f"profile of rank 0: {STEPS} steps, ")
        assert str(traced[0]) in lines[0]
        percent = {line[2:22].strip(): float(line.split("%")[0].split()[-1]) for line in lines[1:]}
        assert list(percent)[:5] == [*STAGES, "the rest"]
        assert sum(list(percent.values())[:5]) == pytest.approx(100, abs=0.5)  # each is rounded to 0.1
        assert percent[list(percent)[5]] <= percent["forward"] + percent["backward"]
    assert [list(lines)[6][2:12].strip() for lines in traced[1][0][:2]] == ["exchange", "all-reduce"]


def test_training_is_the_same_bits_with_it(traced: tuple[Path, list[Any]]) -> None:
    assert [same for _, _, same in traced[1]] == [True, True]


def test_it_ends_early_where_it_must(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, 0, 100, CPU)
    steps(timeline, Layout(), WARM_UP + 2)
    assert timeline.lines[0].startswith("profile of rank 0: 2 steps, ")
    assert len(read(timeline.path, 0)["step"]) == 2
    timeline = Timeline(tmp_path / "none", 0, 100, CPU)
    steps(timeline, Layout(), WARM_UP)
    assert "no trace is written" in timeline.lines[0]
    assert not timeline.path.exists()
    timeline = Timeline(tmp_path / "none", 0, 100, CPU)
    steps(timeline, Layout(), WARM_UP - 1)
    assert timeline.lines == []


def test_without_steps_it_costs_nothing(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, 0, 0, CPU)
    steps(timeline, Layout(), WARM_UP + 1)
    assert timeline.lines == []
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_it_from_being_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("in the way")
    timeline = Timeline(tmp_path, 0, 1, CPU)
    steps(timeline, Layout(), WARM_UP + 1)
    assert timeline.lines == [f"warning: {timeline.path} could not be written (File exists)"]
    with pytest.raises(InputError, match="--profile -3"):
        Timeline(tmp_path, 0, -3, CPU)


def event(name: str, begin: float, end: float, thread: int, cat: str) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": begin, "dur": end - begin, "tid": thread, "cat": cat}


def test_what_a_gpu_did_is_put_into_rows() -> None:
    """As torch's profiler writes it where there is NCCL: its kernels are the messages, gloo's word is begun before the forward pass."""
    notes = [event(name, begin, end, 1, "user_annotation") for name, begin, end in (("step", 0, 100), ("forward", 10, 40), ("backward", 40, 90))]
    work = [
        event("ampere_sgemm_32x32", 12, 20, 7, "kernel"),
        event("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 18, 30, 20, "kernel"),
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 60, 80, 24, "kernel"),
        event("Memcpy HtoD (Pinned -> Device)", 2, 4, 7, "gpu_memcpy"),
        event("nccl:all_reduce", 50, 51, 1, "user_annotation"),  # its launch only
        event("c10d::allreduce_", 8, 9, 1, "cpu_op"),
        event("gloo:all_reduce", 11, 13, 5, "user_annotation"),
        event("aten::conv2d", 11, 15, 1, "cpu_op"),
        event("aten::convolution", 12, 14, 1, "cpu_op"),
        event("aten::mm", 150, 160, 1, "cpu_op"),
    ]
    spans = read_spans(notes + work, 1)
    rows = {row: [(one.begin, one.end) for one in spans if one.row == row] for row in {one.row for one in spans}}
    assert rows == {
        "step": [(0, 100)],
        "forward": [(10, 40)],
        "backward": [(40, 90)],
        "exchange": [(18, 30)],
        "all-reduce": [(60, 80)],
        "other messages": [(11, 13)],
        "kernels, stream 7": [(2, 4), (12, 20)],
        "operators": [(11, 15)],
    }
    lines = summary(spans)
    assert lines[0] == "1 step, 0.1 ms a step"
    assert "12.0 %, within these; 0.01 ms" in lines[-2]  # 10 of the 12 microseconds nothing else ran
    assert "20.0 %, within these; 0.02 ms" in lines[-1]


def test_covered_counts_no_time_twice() -> None:
    def spans(*times: tuple[float, float]) -> list[Span]:
        return [Span("exchange", "", begin, end) for begin, end in times]

    assert covered([]) == 0
    assert covered(spans((5, 6), (1, 4), (2, 3))) == 4
    assert covered(spans((1, 4), (3, 7), (7, 8))) == 7
