"""A cache of decoded pictures: the first pass decodes, later passes do not.

Pictures are kept as the decoder yields them, so later epochs see the same bits. "host": memory of the machine, shared by its
ranks through an anonymous file that vanishes with the last of them. "device": memory of each rank's device, its own or
divided over the ranks of a group.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist

from pipeline.errors import InputError

Where = Literal["none", "host", "device"]
Pixels = Literal["rgb", "yuv420"]
KEPT_FREE = 0.1  # share of the memory that is free which is left to others
NOT_CACHED = -1


@dataclass(frozen=True)
class CacheSettings:
    """where: see above. pixels: "rgb", 3 bytes a pixel, or "yuv420", the JPEG's own planes at half of it, for a longer cut.
    limit_gb: 10^9 bytes at most, None for what is free. kept_free_gb: 10^9 bytes that are left to others, at least a tenth."""

    where: Where = "none"
    pixels: Pixels = "rgb"
    limit_gb: float | None = None
    kept_free_gb: float = 2.0


def picture_bytes(pixels: Pixels, size: int) -> int:
    return size * size * 3 if pixels == "rgb" else size * size * 3 // 2


@dataclass(frozen=True)
class Room:
    """What was asked for and what there is: pictures, bytes of each, and how many of them fit into `free` bytes."""

    pictures: int
    each: int
    free: int
    where: str

    @property
    def fit(self) -> int:
        return min(self.pictures, self.free // self.each)

    def __str__(self) -> str:
        needed = f"cache: {self.pictures:,} pictures need {self.pictures * self.each / 1e9:,.2f} GB of {self.where}"
        if self.fit == self.pictures:
            return f"{needed}, {self.free / 1e9:,.2f} GB are free for it: all are kept"
        share = f"{self.fit:,} are kept ({100 * self.fit / self.pictures:.0f} %), the others decoded in every epoch"
        return f"{needed}, only {self.free / 1e9:,.2f} GB are free for it: {share}"


def room_for(settings: CacheSettings, pictures: int, size: int, device: torch.device, sharers: int = 1) -> Room:
    """sharers: ranks that will each take as much of main memory. Raises InputError when not one picture fits."""
    if settings.where not in get_args(Where) or settings.pixels not in get_args(Pixels):
        raise InputError(f"a cache is host or device, of rgb or yuv420, not {settings.where} of {settings.pixels}")
    if settings.limit_gb is not None and not 0 < settings.limit_gb < 1e9:
        raise InputError(f"the limit of a cache is a number of 10^9 bytes above 0, not {settings.limit_gb}")
    on_gpu = settings.where == "device" and device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory() // sharers
    free = max(0, free - max(int(free * KEPT_FREE), int(settings.kept_free_gb * 1e9)))
    if settings.limit_gb is not None:
        free = min(free, int(settings.limit_gb * 1e9))
    room = Room(pictures, picture_bytes(settings.pixels, size), free, f"{device}'s memory" if on_gpu else "main memory")
    if pictures and not room.fit:
        raise InputError(f"{room}; use cache: none, raise cache_limit_gb, or free memory")
    return room


def free_memory() -> int:
    """Bytes of main memory that can still be had: of the system, and of the control groups that we run in."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder, most, used in _control_groups():
        try:
            files = sum(int(line.split()[1]) for line in (folder / "memory.stat").read_text().splitlines() if line.startswith(_FILES))
            free = min(free, int((folder / most).read_text()) - int((folder / used).read_text()) + files)
        except (OSError, ValueError):  # not this version of control groups, or "max": no limit
            continue
    return max(free, 0)


_FILES = ("active_file ", "inactive_file ")  # pages of files that are counted as used, and are given back when they are asked for


def _control_groups() -> list[tuple[Path, str, str]]:
    """Folder of each memory control group of this process, to the root, with its files of limit and use."""
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        place = Path(path.lstrip("/"))
        groups += [(root / folder, *names) for folder in (place, *place.parents)]
    return groups


class Cache:
    """Slots for decoded pictures. A picture with no slot, or with an empty one, is not here.

    store: (slots, bytes of a picture) uint8. labels: (slots,) int32, NOT_CACHED for an empty slot; written after the
    pixels, so that a rank that shares the store never finds half a picture.
    """

    def __init__(self, store: np.ndarray | torch.Tensor, labels: np.ndarray, part: int = 0, parts: int = 1) -> None:
        self.store, self.labels, self._part, self._parts = store, labels, part, parts

    def slots(self, ids: np.ndarray) -> np.ndarray:
        """(n,) slot of each id, -1 for those that have none here."""
        slots = ids // self._parts
        return np.where((ids % self._parts == self._part) & (slots < len(self.labels)), slots, -1)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """(n,) label of each id that is here, NOT_CACHED for the others."""
        slots = self.slots(ids)
        return np.where(slots >= 0, self.labels[slots], NOT_CACHED) if len(self.labels) else np.full(len(ids), NOT_CACHED)

    def put(self, slots: np.ndarray, pictures: Any, labels: np.ndarray) -> None:
        """Keep pictures, (n, bytes) uint8 where the store is, in their slots (all >= 0)."""
        if isinstance(self.store, torch.Tensor):
            self.store[torch.from_numpy(slots).to(self.store.device)] = pictures
        else:
            for slot, picture in zip(slots, pictures, strict=True):
                self.store[slot] = picture
        self.labels[slots] = labels


def host_cache(room: Room, group: dist.ProcessGroup | None) -> Cache:
    """A cache in main memory, shared by the processes of `group` (of one machine; None for this one alone)."""
    numbers = room.fit * 4
    total = room.fit * room.each + numbers
    descriptor = _shared_file(total, group)
    memory = mmap.mmap(descriptor, total)  # outlives the descriptor, and ends with the last process that has it
    labels = np.frombuffer(memory, np.int32, room.fit)
    store = np.frombuffer(memory, np.uint8, room.fit * room.each, offset=numbers).reshape(room.fit, room.each)
    if group is None or dist.get_rank(group) == 0:
        labels[:] = NOT_CACHED
    if group is not None:
        dist.barrier(group)
    os.close(descriptor)
    return Cache(store, labels)


def _shared_file(size: int, group: dist.ProcessGroup | None) -> int:
    """Descriptor of a file in memory that has no name; made by the first rank, and opened by the others through it."""
    if group is None or dist.get_rank(group) == 0:
        descriptor = os.memfd_create("decoded pictures")
        os.truncate(descriptor, size)
    if group is None:
        return descriptor
    place: list[Any] = [(os.getpid(), descriptor) if dist.get_rank(group) == 0 else None]
    dist.broadcast_object_list(place, group=group, group_src=0)
    if dist.get_rank(group) != 0:
        process, number = place[0]
        descriptor = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
    return descriptor


def device_cache(room: Room, device: torch.device, part: int, parts: int) -> Cache:
    """A cache in a device's memory; part of parts: which ids it holds, all for 0 of 1."""
    slots = min(-(-(room.pictures - part) // parts), room.free // room.each)
    return Cache(torch.empty((slots, room.each), dtype=torch.uint8, device=device), np.full(slots, NOT_CACHED, np.int32), part, parts)
