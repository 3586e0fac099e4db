"""What torch's profiler has seen of some steps, put into rows: the step, its stages, what goes between ranks, operators, kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STEP = "step"
STAGES = ("waiting for data", "forward", "backward", "optimiser")
EXCHANGE, ALL_REDUCE = "exchange", "all-reduce"  # of activations and their gradients; of the parameters' gradients
OTHER = "other messages"  # begun outside forward and backward: losses to be logged, a signal to stop
OPERATORS, KERNELS = "operators", "kernels"
ROWS = (STEP, *STAGES, EXCHANGE, ALL_REDUCE, OTHER, OPERATORS)  # and a row for each stream of a GPU


@dataclass(frozen=True)
class Span:
    """Something that went on from `begin` to `end`, microseconds."""

    row: str
    name: str
    begin: float
    end: float


def read_spans(events: list[dict[str, Any]], steps: int) -> list[Span]:
    """The first so many steps among the events of a Chrome trace of torch's, and what lies in them, by time."""
    events = sorted((event for event in events if event.get("ph") == "X"), key=lambda event: float(event["ts"]))
    ours = [event for event in events if event.get("cat") == "user_annotation"]
    whole = [_span(STEP, event) for event in ours if event["name"] == STEP][:steps]
    stages = [_span(event["name"], event) for event in ours if event["name"] in STAGES]
    found = stages + _messages(events, stages) + _operators(events) + _kernels(events, stages)
    return sorted(whole + [one for one in found if whole[0].begin <= one.begin < whole[-1].end], key=lambda one: (one.begin, -one.end))


def _span(row: str, event: dict[str, Any]) -> Span:
    return Span(row, event["name"], event["ts"], event["ts"] + event["dur"])


def _messages(events: list[dict[str, Any]], stages: list[Span]) -> list[Span]:
    """What gloo's threads did, each from where it begins there until all is here."""
    calls = [event for event in events if event["name"].startswith("c10d::")]
    found = []
    for event in (event for event in events if event["name"].startswith("gloo:")):
        kind = event["name"].removeprefix("gloo:").replace("_", "")
        call = next((one for one in calls if one["ts"] <= event["ts"] and one["name"][6:].replace("_", "").startswith(kind)), None)
        if call is not None:
            calls.remove(call)
        found.append(_message(kind, event, (call or event)["ts"], stages))
    return found


def _message(kind: str, event: dict[str, Any], called: float, stages: list[Span]) -> Span:
    """kind: such as allreduce. The stage is that of the call, for a thread begins later, and may note the end when training has gone on."""
    stage = next((one for one in stages if one.row in ("forward", "backward") and one.begin <= called < one.end), None)
    if stage is None:
        return _span(OTHER, event)
    begin = event["ts"]
    end = max(begin, min(begin + event["dur"], stage.end))  # each stage waits for its messages
    return Span(ALL_REDUCE if "allreduce" in kind else EXCHANGE, event["name"], begin, end)


def _operators(events: list[dict[str, Any]]) -> list[Span]:
    """The outermost operators, but those in which gloo's threads put together what came."""
    threads = {event["tid"] for event in events if event["name"].startswith("gloo:")}
    found, until = [], dict[Any, float]()
    for event in events:
        thread, begin = event["tid"], event["ts"]
        if event.get("cat") == "cpu_op" and event["name"].startswith("aten::") and thread not in threads and begin >= until.get(thread, 0.0):
            until[thread] = begin + event["dur"]
            found.append(_span(OPERATORS, event))
    return found


def _kernels(events: list[dict[str, Any]], stages: list[Span]) -> list[Span]:
    """What ran on a GPU; NCCL's kernels are messages, which last from where they wait for the other ranks until all is here."""
    found = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name = event["name"].lower()
            found.append(_message(name, event, event["ts"], stages) if "nccl" in name else _span(f"{KERNELS}, stream {event['tid']}", event))
    return found


def covered(spans: list[Span]) -> float:
    """Microseconds in which at least one of the spans goes on."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda one: one.begin):
        total, until = total + max(0.0, span.end - max(span.begin, until)), max(until, span.end)
    return total


def summary(spans: list[Span]) -> list[str]:
    """How long a step was, then a line for each stage, the rest, and what went between ranks meanwhile."""
    steps = [one for one in spans if one.row == STEP]
    whole, count = covered(steps), len(steps)
    times = {stage: covered([one for one in spans if one.row == stage]) for stage in STAGES}
    computing = [one for one in spans if one.row.startswith(KERNELS)] or [one for one in spans if one.row == OPERATORS]
    lines = [f"{count} step{'s' * (count > 1)}, {whole / count / 1000:.1f} ms a step"]
    for name, time in {**times, "the rest": whole - sum(times.values())}.items():
        lines.append(f"  {name:<20}{time / count / 1000:>10.2f} ms{100 * time / whole:>7.1f} %")
    for row in (EXCHANGE, ALL_REDUCE):
        under_way = [one for one in spans if one.row == row]
        time, alone = covered(under_way), covered(under_way + computing) - covered(computing)
        if under_way:
            words = f", within these; {alone / count / 1000:.2f} ms of it with nothing computed here"
            lines.append(f"  {row:<20}{time / count / 1000:>10.2f} ms{100 * time / whole:>7.1f} %{words}")
    return lines


def chrome_trace(spans: list[Span], rank: int, base: int) -> dict[str, Any]:
    """As the viewers read it; base: nanoseconds, of the epoch, at which the spans' time begins, the same for all ranks of a machine.

    Two ranks' traces laid together are one trace: their traceEvents, one list after the other.
    """
    rows = [*ROWS, *sorted({one.row for one in spans} - set(ROWS))]
    events: list[dict[str, Any]] = [_name("process_name", rank, 0, name=f"rank {rank}"), _name("process_sort_index", rank, 0, sort_index=rank)]
    for place, row in enumerate(rows):
        events += [_name("thread_name", rank, place, name=row), _name("thread_sort_index", rank, place, sort_index=place)]
    for one in spans:
        time = {"ts": round(one.begin, 3), "dur": round(one.end - one.begin, 3)}
        events.append({"ph": "X", "name": one.name, "pid": rank, "tid": rows.index(one.row), **time})
    return {"traceEvents": events, "displayTimeUnit": "ms", "baseTimeNanoseconds": base}


def _name(kind: str, rank: int, row: int, **value: object) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": row, "args": value}
