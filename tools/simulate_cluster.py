"""How long make_shards would take on a cluster, simulated from what one core was measured to do; nothing is run.

    python tools/simulate_cluster.py [--machines 32] [--cores 16] [--storage 1.25 5 20] [--rate PICTURES_A_SECOND]

Shards go to cores as they come free, as `tools.workers` hands them out, and share the storage and their machine's network evenly. A worker that
dies loses its shard, which is made again. The parent, the one process that runs the job, first lists the source; each shard costs it some time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import InputError, one_line_errors

MEASURED = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "shards.json"
ROW = "ours-sums"  # of MEASURED: what make_shards does to a training picture, the sums for colour statistics included
NEVER = float("inf")
MOST_SHARDS = 10**6
REDONE = 20  # times as many as there are shards: it may never end


@dataclass(frozen=True)
class Plan:
    """A job and a cluster. Times in seconds, traffic in bytes and bytes a second.

    rate: pictures a second and core, with the picture in memory; latency: until the first byte of a picture is there; read, written: bytes
    a picture; storage: shared by all; network: of each machine; listing, handling: of the parent for a picture, before the first shard, and
    for a shard; deaths: of a worker, an hour; restart: until a dead worker is back.
    """

    pictures: int
    shard_size: int
    machines: int
    cores: int
    rate: float
    storage: float = NEVER
    network: float = NEVER
    read: float = 0.0
    written: float = 0.0
    latency: float = 0.0
    listing: float = 0.0
    handling: float = 0.0
    deaths: float = 0.0
    restart: float = 0.0
    seed: int = 0

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.shard_size)

    @property
    def traffic(self) -> float:
        """Bytes a picture, there and back."""
        return self.read + self.written

    @property
    def core_rate(self) -> float:
        """Pictures a second of a core that no other hinders."""
        return 1 / (1 / self.rate + self.latency)

    def bound(self) -> str:
        """The part that would need the most seconds for the shards if the others cost nothing."""
        alone = {
            "cores": self.pictures / (self.machines * self.cores * self.core_rate),
            "storage": self.pictures * self.traffic / self.storage,
            "network": self.pictures * self.traffic / (self.machines * self.network),
            "parent": self.shards * self.handling,
        }
        return max(alone, key=lambda part: alone[part])


@dataclass(frozen=True)
class Outcome:
    """listed, made: seconds, one after the other; bound: what keeps the second from being less; redone: shards that were begun again;
    idle: of all core-seconds, the share after the last shard was begun in which a core had none."""

    listed: float
    made: float
    bound: str
    redone: int
    idle: float


@dataclass
class _State:
    """Of each core, (n,): the pictures of its shard, 0 for none, and how many of them are left; when it dies next; from when on it is up."""

    size: np.ndarray
    left: np.ndarray
    dies: np.ndarray
    up: np.ndarray
    ready: deque[int]  # sizes of shards handed in and not begun
    waiting: deque[int]  # not handed in
    handled: deque[float] = field(default_factory=deque)  # when the parent is through with each finished shard
    now: float = 0.0
    redone: int = 0
    idle: float = 0.0


def simulate(plan: Plan) -> Outcome:
    """Deterministic: the same plan gives the same outcome. Raises InputError where workers die before they have made anything."""
    rng = np.random.default_rng(plan.seed)
    state = _begin(plan, rng)
    to_do = plan.shards
    while to_do:
        _hand_out(state)
        speed = _speeds(plan, state.size > 0)
        finish = np.full(len(speed), NEVER)
        np.divide(state.left, speed, out=finish, where=speed > 0)
        finish += state.now
        then = min(finish.min(), state.dies.min(), _next_up(state), state.handled[0] if state.handled else NEVER)
        state.idle += (state.size == 0).sum() * (then - state.now)
        state.left -= speed * (then - state.now)
        state.now = float(then)
        _finished(plan, state, finish <= then * (1 + 1e-12))
        _died(plan, state, rng)
        if state.redone > REDONE * plan.shards:
            raise InputError(f"{plan.deaths:g} deaths an hour leave hardly a worker to the end of a shard; give fewer, or a smaller --shard-size")
        while state.handled and state.handled[0] <= state.now:
            state.handled.popleft()
            to_do -= 1
            if state.waiting:
                state.ready.append(state.waiting.popleft())
    idle = state.idle / (state.now * plan.machines * plan.cores)
    return Outcome(plan.pictures * (plan.listing + plan.latency), state.now, plan.bound(), state.redone, idle)


def _begin(plan: Plan, rng: np.random.Generator) -> _State:
    cores = plan.machines * plan.cores
    sizes = deque([plan.shard_size] * (plan.shards - 1) + [plan.pictures - plan.shard_size * (plan.shards - 1)])
    ready = deque(sizes.popleft() for _ in range(min(cores + 1, len(sizes))))  # one more than there are cores, as in tools.workers
    dies = rng.exponential(3600 / plan.deaths, cores) if plan.deaths else np.full(cores, NEVER)
    return _State(np.zeros(cores), np.zeros(cores), dies, np.zeros(cores), ready, sizes)


def _hand_out(state: _State) -> None:
    for core in np.flatnonzero((state.size == 0) & (state.up <= state.now)):
        if not state.ready:
            return
        state.size[core] = state.left[core] = state.ready.popleft()
        state.idle = 0.0  # this was not the end yet


def _next_up(state: _State) -> float:
    coming = state.up[state.up > state.now]
    return float(coming.min()) if len(coming) else NEVER


def _finished(plan: Plan, state: _State, which: np.ndarray) -> None:
    for _ in range(int(which.sum())):  # the parent takes them one by one
        begin = max(state.now, state.handled[-1] if state.handled else 0.0)
        state.handled.append(begin + plan.handling)
    state.size[which] = state.left[which] = 0


def _died(plan: Plan, state: _State, rng: np.random.Generator) -> None:
    for core in np.flatnonzero(state.dies <= state.now):
        if state.size[core]:
            state.ready.appendleft(int(state.size[core]))
            state.redone += 1
        state.size[core] = state.left[core] = 0
        state.up[core] = state.now + plan.restart
        state.dies[core] = state.up[core] + rng.exponential(3600 / plan.deaths)


def _speeds(plan: Plan, busy: np.ndarray) -> np.ndarray:
    """Pictures a second of each core, (n,); busy: (n,) bool. Cores are numbered machine by machine."""
    if not plan.traffic:
        return np.where(busy, plan.core_rate, 0.0)
    on_machine = busy.reshape(plan.machines, plan.cores).sum(axis=1)
    share = shares(on_machine, plan.core_rate * plan.traffic, plan.network, plan.storage)
    return np.where(busy, np.minimum(np.repeat(share, plan.cores) / plan.traffic, plan.core_rate), 0.0)


def shares(on_machine: np.ndarray, demand: float, network: float, storage: float) -> np.ndarray:
    """Bytes a second for each shard on each machine, (machines,), divided max-min fairly.

    on_machine: (machines,) shards under way; demand: what each would take; network: of a machine; storage: of all together.
    """
    own = np.minimum(network / np.maximum(on_machine, 1), demand)
    if (own * on_machine).sum() <= storage:
        return own
    left, shards = storage, int(on_machine.sum())
    for machine in np.argsort(own, kind="stable"):  # who takes less than an even share leaves the rest to the others
        if own[machine] * shards > left:
            break
        left -= own[machine] * on_machine[machine]
        shards -= int(on_machine[machine])
    return np.minimum(own, left / shards)


def measured_rate(path: Path = MEASURED) -> float:
    """Pictures a second and core, at the most processes that were measured. Raises InputError where there is no measurement."""
    remedy = "run make bench-shards, or give --rate"
    try:
        rows = [row for row in json.loads(path.read_text())["rows"] if row["row"] == ROW]
        return float(max(rows, key=lambda row: row["processes"])["per_core"]["median"])
    except FileNotFoundError:
        raise InputError(f"{path} is not there; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} holds no rate of {ROW}; {remedy}") from None


def table(plan: Plan, storages: list[float]) -> str:
    """Markdown; storages: GB/s."""
    lines = ["| storage | listed in | made in | pictures/s | bounded by | shards redone | cores idle at the end |", "|---|---|---|---|---|---|---|"]
    for storage in storages:
        found = simulate(replace(plan, storage=storage * 1e9))
        lines.append(
            f"| {storage:g} GB/s | {_time(found.listed)} | {_time(found.made)} | {plan.pictures / found.made:,.0f} "
            f"| {found.bound} | {found.redone} of {plan.shards:,} | {100 * found.idle:.1f} % |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _assumptions(plan: Plan) -> str:
    return (
        f"simulated: {plan.pictures:,} pictures, {plan.machines} machines of {plan.cores} cores, {plan.rate:,.1f} pictures a second and core, "
        f"{1e3 * plan.latency:g} ms a read,\n{plan.read / 1e3:g} kB read and {plan.written / 1e3:g} kB written a picture, network "
        f"{plan.network / 1e9:g} GB/s a machine, {plan.shard_size:,} pictures a shard; parent: {1e6 * plan.listing:g} us\n"
        f"a picture to list, {1e3 * plan.handling:g} ms a shard; a worker dies {plan.deaths:g} times an hour, is back after {plan.restart:g} s, "
        f"seed {plan.seed}"
    )


class _Option(NamedTuple):
    """default: in the unit of the help; scale: of that unit in the plan's."""

    name: str
    field: str
    default: int | float
    scale: float
    zero: bool
    help: str


_OPTIONS = (
    _Option("pictures", "pictures", 15_000_000, 1, False, "of the source (default: 15 million, the Fall 2011 ImageNet)"),
    _Option("machines", "machines", 32, 1, False, "(default: 32)"),
    _Option("cores", "cores", 16, 1, False, "of a machine, one worker each (default: 16)"),
    _Option("shard-size", "shard_size", 2000, 1, False, "pictures a shard (default: 2000)"),
    _Option("read", "read", 110.0, 1e3, True, "kB read a picture (default: 110, ImageNet's mean)"),
    _Option("written", "written", 22.0, 1e3, True, "kB written a picture (default: 22)"),
    _Option("network", "network", 1.25, 1e9, False, "GB/s of a machine (default: 1.25)"),
    _Option("latency", "latency", 0.5, 1e-3, True, "ms until the first byte of what is read is there (default: 0.5)"),
    _Option("listing", "listing", 27.0, 1e-6, True, "us of the parent for a picture, to list it (default: 27, see docs/cluster.md)"),
    _Option("parent", "handling", 13.0, 1e-3, True, "ms of the parent for a shard (default: 13, see docs/cluster.md)"),
    _Option("deaths", "deaths", 0.05, 1, True, "of a worker, an hour (default: 0.05)"),
    _Option("restart", "restart", 10.0, 1, True, "s until a dead worker is back (default: 10)"),
    _Option("seed", "seed", 0, 1, True, "of the deaths (default: 0)"),
)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Simulate make_shards on a cluster; nothing is run.")
    parser.add_argument("--rate", type=float, help="pictures a second and core (default: as measured, docs/benchmarks/shards.json)")
    parser.add_argument("--storage", type=float, nargs="+", default=[1.25, 5.0, 20.0], help="GB/s, one row each (default: 1.25 5 20)")
    for option in _OPTIONS:
        parser.add_argument(f"--{option.name}", dest=option.field, type=type(option.default), default=option.default, help=option.help)
    parsed = parser.parse_args(arguments)
    if parsed.rate is None:
        parsed.rate = measured_rate()
    given = [(option.name, getattr(parsed, option.field), option.zero) for option in _OPTIONS]
    for name, value, zero in (*given, ("rate", parsed.rate, False), *(("storage", value, False) for value in parsed.storage)):
        if not (0 if zero else 1e-9) <= value < 1e12:
            raise InputError(f"--{name} must be {'at least' if zero else 'more than'} 0, not {value:g}")
    if parsed.pictures > MOST_SHARDS * parsed.shard_size:
        raise InputError(f"{parsed.pictures:,} pictures are more than {MOST_SHARDS:,} shards of {parsed.shard_size:,}; give a larger --shard-size")
    return parsed


def _plan(given: argparse.Namespace) -> Plan:
    return Plan(rate=given.rate, **{option.field: getattr(given, option.field) * option.scale for option in _OPTIONS})


def main(arguments: list[str] | None = None) -> int:
    with one_line_errors():
        given = _arguments(arguments)
        print(_assumptions(_plan(given)))
        print(table(_plan(given), given.storage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
