"""Ranks: which device each has, which column it holds, and who it talks to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from model.columns import COLUMNS, Columns
from model.exchange import gather_parts
from model.hybrid import Hybrid
from pipeline import InputError

TIMEOUT = timedelta(minutes=10)  # of a collective: a rank that hangs ends the job


@dataclass(frozen=True)
class Layout:
    """One rank's place in the mesh `data x column`. rank = data_index * ranks per replica + column index.

    world: ranks that work, the first of those that there are; the `spares` behind them, this one where `spare`, take no part.
    mesh: (data, column) where columns are split, (data,) in the hybrid, None where every rank has all parameters.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1  # of them on this machine
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    columns: Columns | Hybrid = field(default_factory=Columns)
    data_index: int = 0
    data_count: int = 1
    data_group: dist.ProcessGroup | None = None
    control_group: dist.ProcessGroup | None = None  # gloo, for words that must not wait for a GPU
    saving_group: dist.ProcessGroup | None = None  # gloo, for checkpoints, which are written meanwhile
    machine_group: dist.ProcessGroup | None = None  # the ranks of this machine, which share a cache of pictures
    mesh: DeviceMesh | None = None
    spares: int = 0
    spare: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank writes the run's files and talks to the user."""
        return self.rank == 0

    @property
    def hybrid(self) -> bool:
        """Whether the fully connected layers are split over all ranks, and so see the whole batch."""
        return isinstance(self.columns, Hybrid)

    @property
    def picture_group(self) -> dist.ProcessGroup | None:
        """The ranks that need the same pictures: the two columns of a net."""
        return None if isinstance(self.columns, Hybrid) else self.columns.group

    def whole_batch_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels of this rank's pictures, int64 (n,) -> those of the pictures that its net gives logits of: in the hybrid of all ranks'."""
        if not isinstance(self.columns, Hybrid):
            return labels
        return gather_parts(labels, len(labels) * self.world, 0, self.columns.ranks)

    def describe(self) -> str:
        waiting = f"; {self.spares} spare rank{'s' * (self.spares > 1)} wait{'s' * (self.spares == 1)}" if self.spares else ""
        if self.world == 1:
            return f"one {self.device.type}, the whole net on it{waiting}"
        where = f"{self.world} x {self.device.type}"
        if self.hybrid:
            return f"{where}, hybrid: convolutions data-parallel, each fully connected layer split over {self.world}{waiting}"
        split = "the whole net on each device" if self.columns.alone else "one column a device"
        return f"{where}, {split}, {self.data_count} replica{'s' * (self.data_count > 1)}{waiting}"


def choose(devices: int | None, columns: int | None, device: str, batch: int, hybrid: bool = False) -> tuple[int, int, str]:
    """Number of ranks, devices per replica (1 or 2) and device type, from what was asked for and what is there.

    One GPU or CPU: one rank with both columns. Two GPUs or more: one rank a GPU, columns paired, or the hybrid over all.
    Raises InputError.
    """
    device, gpus = _device_type(device), torch.cuda.device_count()
    if devices is None:
        devices = gpus if device == "cuda" else (columns or 1)
    if device == "cuda" and devices > gpus:
        raise InputError(f"--devices {devices}, but torch sees {gpus} GPU{'s' * (gpus != 1)}; use --devices {gpus} or --device cpu")
    if hybrid:
        _check_hybrid(columns)
    if devices == 1 and (hybrid or columns == COLUMNS):
        asked, there = "--hybrid" if hybrid else f"--columns {columns}", "GPU" if device == "cuda" else "device"
        more = "--device cpu" if device == "cuda" and gpus < COLUMNS else "--devices 2"
        raise InputError(f"{asked} shares the net between devices, and there is 1 {there}; leave it out, or use {more}")
    if devices < 1:
        raise InputError(f"--devices {devices}: at least 1 is needed")
    if columns is None:
        columns = 1 if hybrid else min(devices, COLUMNS)
    if devices < 1 or devices % columns:
        raise InputError(f"{devices} devices cannot be paired as {columns} columns; use an even number of --devices, or --columns 1")
    check_batch(batch, devices)
    return devices, columns, device


def _device_type(device: str) -> str:
    gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise InputError("--device cuda, but torch sees no GPU here; use --device cpu")
    return device


def _check_hybrid(columns: int | None) -> None:
    if columns == COLUMNS:
        raise InputError("--hybrid and --columns 2 are two ways to share a net between devices; leave one of them out")


def check_batch(batch: int, devices: int) -> None:
    """The batch divides over the ranks, each of which decodes its part. Raises InputError."""
    if batch < devices:
        raise InputError(f"batch {batch} is smaller than the {devices} ranks that share it; use --set train.batch=N of at least {devices}")
    if batch % devices:
        raise InputError(f"batch {batch} does not divide over {devices} ranks; use --set train.batch={max(1, batch // devices) * devices}")


def suited(world: int, columns: int | None, device: str, batch: int, hybrid: bool) -> tuple[int, int]:
    """Of `world` ranks, how many can work, the most that divide the batch, and devices per replica (1 or 2). Raises InputError.

    Where columns are not asked for, they are paired on GPUs, as far as there are two. One rank is always possible, also in
    the hybrid, where it is simply a device with the whole net: a run must go on when all hosts but one have left.
    """
    if hybrid:
        _check_hybrid(columns)
    wanted = columns or (COLUMNS if device == "cuda" and not hybrid else 1)
    for tried in (wanted,) if columns else (wanted, 1):
        for ranks in range(world, 0, -1):
            if ranks % tried == 0 and batch % ranks == 0:
                return ranks, tried
    raise InputError(f"--columns {columns} needs an even number of ranks that divides batch {batch}, of {world}; use --columns 1")


def join(columns: int | None, device: str, batch: int, hybrid: bool = False, timeout: timedelta = TIMEOUT) -> Layout:
    """Take this process's place among the ranks that the launcher's environment names. Raises InputError."""
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    place = _own_device(device, local)
    working, columns = suited(world, columns, device, batch, hybrid)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
    return take_place(working, columns, place, int(os.environ.get("LOCAL_WORLD_SIZE", world)), hybrid, timeout)


def take_place(working: int, columns: int, place: torch.device, local_world: int, hybrid: bool = False, timeout: timedelta = TIMEOUT) -> Layout:
    """A layout of the first `working` of the ranks that have met, the others are spares. Each of them must call it, the spares too."""
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = _Groups(rank, working, columns, hybrid and working > 1, timeout)
    control, saving = groups.of_all("gloo"), groups.of_all("gloo", alone=True)  # DCP wants one that knows CPUs, also of one rank
    machine = groups.of_machine(world, local_world)
    if rank >= working:
        return Layout(rank, working, local_world, place, spares=world - working, spare=True)
    return Layout(
        rank=rank,
        world=working,
        local_world=min(local_world, working),
        device=place,
        columns=groups.split(),
        data_index=rank // columns,
        data_count=working // columns,
        data_group=groups.data if working > columns else None,
        control_group=control,
        saving_group=saving,
        machine_group=machine,
        mesh=groups.mesh(place.type),
        spares=world - working,
    )


def _own_device(device: str, local: int) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise InputError(f"process {local} of this machine has no GPU of its own, torch sees {gpus}; start as many processes as GPUs")
    place = torch.device(device, local)
    torch.cuda.set_device(place)
    return place


class _Groups:
    """The groups of the ranks that work. Every rank makes all of them, in the same order, as torch asks, also those it is not in."""

    def __init__(self, rank: int, working: int, columns: int, hybrid: bool, timeout: timedelta) -> None:
        self.rank, self.working, self.columns, self.hybrid, self.timeout = rank, working, columns, hybrid, timeout
        self.data = self._mine([range(column, working, columns) for column in range(columns)])
        self.pair = self._mine([range(first, first + columns) for first in range(0, working, columns)]) if columns == COLUMNS else None

    def _mine(self, parts: list[range], backend: str | None = None) -> dist.ProcessGroup | None:
        """The group of the part that this rank is in; None for a spare."""
        made = [dist.new_group(list(part), backend=backend, timeout=self.timeout) for part in parts]
        return next((group for part, group in zip(parts, made, strict=True) if self.rank in part), None)

    def of_all(self, backend: str, alone: bool = False) -> dist.ProcessGroup | None:
        """The group of all ranks that work; of one rank, only if asked for."""
        return self._mine([range(self.working)], backend) if self.working > 1 or alone else None

    def of_machine(self, world: int, local_world: int) -> dist.ProcessGroup | None:
        """The ranks of this rank's machine, which are neighbours; None where machines have different numbers of them."""
        here = min(local_world, self.working)
        if self.working == 1 or world % local_world or self.working % here:
            return None
        return self._mine([range(first, first + here) for first in range(0, self.working, here)])

    def split(self) -> Columns | Hybrid:
        if self.hybrid:
            assert self.data is not None, "a spare has no part of the net"
            return Hybrid(self.rank, self.data)
        return Columns(self.rank % self.columns, self.pair) if self.pair is not None else Columns()

    def mesh(self, device: str) -> DeviceMesh | None:
        """(data, column) or, in the hybrid, (data,); None where nothing is split."""
        if self.data is None or (self.pair is None and not self.hybrid):
            return None
        if self.pair is None:
            return DeviceMesh.from_group(self.data, device, mesh_dim_names=("data",))
        ranks = torch.arange(self.working).view(-1, self.columns)
        return DeviceMesh.from_group([self.data, self.pair], device, mesh=ranks, mesh_dim_names=("data", "column"))


def peer_warning(layout: Layout) -> str | None:
    """What to say where two columns' GPUs cannot reach each other's memory: NCCL then goes through main memory, slower. Ranks of one machine."""
    if layout.device.type != "cuda" or not isinstance(layout.columns, Columns) or layout.columns.alone:
        return None
    mine = layout.device.index or 0
    other = mine + 1 - 2 * layout.columns.index
    if other >= torch.cuda.device_count() or torch.cuda.can_device_access_peer(mine, other):
        return None
    return f"warning: GPUs {mine} and {other} cannot reach each other's memory, so columns exchange through main memory; --columns 1 may be quicker"
