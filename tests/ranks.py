"""Real processes joined by gloo. They stay for the next call, since each of them takes seconds to import torch and DALI."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

Call = tuple[Callable[..., Any], int, Path, tuple[Any, ...]]  # function, ranks, folder to meet in, arguments

_ranks: list[tuple[BaseProcess, Connection]] = []


def on_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(rank, *arguments)` on `world` real processes joined by gloo; what each returned, by rank.

    Each call has a process group, environment and torch's first random numbers of its own, as in new processes.
    """
    import torch

    place = folder / f"ranks-{world}-{uuid.uuid4().hex}"
    place.mkdir()
    if not all(process.is_alive() for process, _ in _ranks):
        _end()
    while len(_ranks) < world:
        _ranks.append(_start(len(_ranks)))
    for _, pipe in _ranks[:world]:
        pipe.send(((function, world, place, arguments), dict(os.environ), Path.cwd()))
    _wait(world)
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _start(rank: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, pipe


def _wait(world: int) -> None:
    """Until all have done the call. The first that fails ends them all, since the others may wait for it for ever."""
    waiting = {pipe: rank for rank, (_, pipe) in enumerate(_ranks[:world])}
    while waiting:
        for pipe in wait(list(waiting)):
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                fault = pipe.recv()
            except EOFError:
                fault = "it was killed"
            if fault is not None:
                _end()
                raise RuntimeError(f"rank {rank}: {fault}")


def _end() -> None:
    for process, pipe in _ranks:
        process.kill()
        process.join()
        pipe.close()
    _ranks.clear()


def _serve(rank: int, pipe: Connection) -> None:
    """In a process: one call after the other, to the end of the tests or to the first that fails."""
    import torch

    first = torch.get_rng_state()
    while True:
        try:
            call, environment, folder = pipe.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        torch.set_rng_state(first)
        torch.set_num_threads(1)
        try:
            _do(rank, call)
        except BaseException:
            pipe.send(traceback.format_exc())
            return
        gc.collect()
        pipe.send(None)


def _do(rank: int, call: Call) -> None:
    import torch
    import torch.distributed as dist

    function, world, place, arguments = call
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=rank, world_size=world)
    torch.save(function(rank, *arguments), place / f"{rank}.pt")
    dist.destroy_process_group()
