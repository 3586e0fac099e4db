"""What a loader's cache holds on this rank, who decodes what because of it, and what the user is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from pipeline.cache import Cache, CacheSettings, Room, device_cache, host_cache, room_for
from pipeline.share import Share


@dataclass(frozen=True)
class CachePlan:
    """group: the ranks that exchange pictures, None for this one alone."""

    share: Share
    group: dist.ProcessGroup | None
    cache: Cache | None
    notes: list[str]


def plan_cache(
    settings: CacheSettings,
    pictures: int,
    size: int,
    device: torch.device,
    rank: int,
    world: int,
    group: dist.ProcessGroup | None,
    machine: dist.ProcessGroup | None,
) -> CachePlan:
    """group: ranks that need the same rows, machine: ranks of this machine; neighbouring both. Raises InputError when nothing fits.

    A device's cache is divided over the ranks that exchange pictures anyway, or over those of the machine where one
    device is too small; who caches a picture decodes and cuts it for all of them.
    """
    columns = group.size() if group is not None else 1
    share = _share(rank, world, group, columns, by_id=False)
    if settings.where == "none":
        return CachePlan(share, group, None, [])
    if settings.where != "device":
        alone = machine is None  # every rank then has a cache of its own
        room = _smallest(room_for(settings, pictures, size, device, world if alone else 1), machine)
        return CachePlan(share, group, host_cache(room, machine), [str(room)])
    ranks = machine or group
    room = _smallest(room_for(settings, pictures, size, device, ranks.size() if ranks is not None else 1), ranks)
    wide = machine is not None and machine.size() > columns and room.fit * columns < pictures
    exchange = machine if wide else group
    parts = exchange.size() if exchange is not None else 1
    whole = replace(room, free=room.free * parts)
    share = _share(rank, world, exchange, columns, by_id=parts > 1)
    cache = device_cache(room, device, rank - share.group.start, parts)
    divided = f", divided over {parts} ranks" if parts > 1 else ""
    return CachePlan(share, exchange, cache, [f"{whole}{divided}"])


def _share(rank: int, world: int, group: dist.ProcessGroup | None, columns: int, by_id: bool) -> Share:
    """The ranks of a group are neighbours, so its first is this one's number less its place in the group."""
    if group is None:
        return Share(rank, world, range(rank, rank + 1), columns, False)
    first = rank - dist.get_rank(group)
    return Share(rank, world, range(first, first + group.size()), columns, by_id)


def _smallest(room: Room, group: dist.ProcessGroup | None) -> Room:
    """The least that any rank of the group has free: all must come to the same plan."""
    if group is None:
        return room
    free = torch.tensor([room.free], dtype=torch.int64)
    if dist.get_backend(group) == "nccl":
        free = free.cuda()
    dist.all_reduce(free, dist.ReduceOp.MIN, group)
    return replace(room, free=int(free))
