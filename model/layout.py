"""Ranks: which device each has, which column it holds, and who it talks to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from model.columns import COLUMNS, Columns
from pipeline import InputError

TIMEOUT = timedelta(minutes=10)  # of a collective: a rank that hangs ends the job


@dataclass(frozen=True)
class Layout:
    """One rank's place in the mesh `data x column`. rank = data_index * ranks per replica + column index."""

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    columns: Columns = field(default_factory=Columns)
    data_index: int = 0
    data_count: int = 1
    data_group: dist.ProcessGroup | None = None
    control_group: dist.ProcessGroup | None = None  # gloo, for words that must not wait for a GPU
    machine_group: dist.ProcessGroup | None = None  # the ranks of this machine, which share a cache of pictures

    @property
    def first(self) -> bool:
        """Whether this rank writes the run's files and talks to the user."""
        return self.rank == 0

    def describe(self) -> str:
        if self.world == 1:
            return f"one {self.device.type}, both columns on it"
        where = f"{self.world} x {self.device.type}"
        split = "one column a device" if self.columns.group is not None else "both columns on each device"
        return f"{where}, {split}, {self.data_count} replica{'s' * (self.data_count > 1)}"


def choose(devices: int | None, columns: int | None, device: str, batch: int) -> tuple[int, int, str]:
    """Number of ranks, devices per replica (1 or 2) and device type, from what was asked for and what is there.

    One GPU or CPU: one rank with both columns. Two GPUs or more: one rank a GPU, columns paired. Raises InputError.
    """
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise InputError("--device cuda, but torch sees no GPU here; use --device cpu")
    if devices is None:
        devices = gpus if device == "cuda" else (columns or 1)
    if device == "cuda" and devices > gpus:
        raise InputError(f"--devices {devices}, but torch sees {gpus} GPU{'s' * (gpus != 1)}; use --devices {gpus} or --device cpu")
    if columns is None:
        columns = min(devices, COLUMNS)
    if devices < 1 or devices % columns:
        raise InputError(f"{devices} devices cannot be paired as {columns} columns; use an even number of --devices, or --columns 1")
    check_batch(batch, devices)
    return devices, columns, device


def check_batch(batch: int, devices: int) -> None:
    """The batch divides over the ranks, each of which decodes its part. Raises InputError."""
    if batch < devices:
        raise InputError(f"batch {batch} is smaller than the {devices} ranks that share it; use --set train.batch=N of at least {devices}")
    if batch % devices:
        raise InputError(f"batch {batch} does not divide over {devices} ranks; use --set train.batch={max(1, batch // devices) * devices}")


def join(columns: int, device: str) -> Layout:
    """Take this process's place among the ranks that the launcher's environment names."""
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    place = torch.device(device, local) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    mesh = init_device_mesh(device, (world // columns, columns), mesh_dim_names=("data", "column"))
    data_index, column = rank // columns, rank % columns
    return Layout(
        rank=rank,
        world=world,
        local_world=local_world,
        device=place,
        columns=Columns(column, mesh.get_group("column")) if columns == COLUMNS else Columns(),
        data_index=data_index,
        data_count=world // columns,
        data_group=mesh.get_group("data") if world > columns else None,
        control_group=dist.new_group(backend="gloo", timeout=TIMEOUT) if world > 1 else None,
        machine_group=_machine_group(rank, world, local_world) if world > 1 else None,
    )


def _machine_group(rank: int, world: int, local_world: int) -> dist.ProcessGroup | None:
    """The ranks of this rank's machine, which are neighbours; None where machines have different numbers of them."""
    if world % local_world:
        return None
    machines = [list(range(first, first + local_world)) for first in range(0, world, local_world)]
    return [dist.new_group(ranks, timeout=TIMEOUT) for ranks in machines][rank // local_world]
