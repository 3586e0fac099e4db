"""One rank's part of a training, from its loaders to its report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from model.deterministic import no_deterministic_form, set_deterministic
from model.launch import RESTART
from model.layout import Layout, peer_warning
from model.loop import train
from model.memory import keep_freed_memory, out_of_memory
from model.pictures import Source
from model.plan import lines, measure
from model.recipe import Recipe
from model.record import write_record
from model.report import write_report
from model.run import Run, Start, build_run
from model.watch import Watch
from model.ways import half_warning
from pipeline import InputError


def run_rank(given: argparse.Namespace, layout: Layout, folder: Path, recipe: Recipe, start: Start, watch: Watch | None = None) -> int:
    """Train as one rank, in this process: the exit code. Raises InputError."""
    _check_start(layout, start)
    cores = max(1, len(os.sched_getaffinity(0)) // layout.local_world)
    if layout.device.type == "cpu":
        torch.set_num_threads(cores)
    keep_freed_memory(layout.device)
    source = Source(given.shards, cores if given.threads is None else given.threads, given.on_bad_sample, given.local, given.local_gb, given.prefetch)
    set_deterministic(recipe.train.deterministic, layout.device)
    try:
        run = build_run(folder, recipe, layout, source, start, given.profile, graph=not given.dry_run)
        run.watch, run.save_every = watch, given.save_every
        try:
            return _dry_run(run) if given.dry_run else _train(run, given.shards, start)
        finally:
            run.metrics.close()
    except torch.OutOfMemoryError:
        raise InputError(out_of_memory(recipe, layout)) from None
    except RuntimeError as error:
        line = no_deterministic_form(error)
        if line is None:
            raise
        raise InputError(line) from None


def _check_start(layout: Layout, start: Start) -> None:
    """All ranks go on from the same checkpoint: hosts may see a shared folder as it was a while ago. Raises InputError."""
    if layout.control_group is None:
        return
    seen: list[object] = [None] * layout.world
    dist.all_gather_object(seen, start.checkpoint.name if start.checkpoint else "none", group=layout.control_group)
    if len(set(seen)) > 1:
        what = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(seen))
        raise InputError(f"the ranks see different newest checkpoints ({what}); --run must be a folder that all hosts share; try again in a minute")


def _train(run: Run, shards: str, start: Start) -> int:
    say, layout = run.metrics.say, run.layout
    pictures = f"{len(run.train.shards):,} training pictures, {run.net.num_classes} classes, batch {run.recipe.train.batch}"
    say(f"{run.folder}: {layout.describe()}; {pictures}")
    for note in (*run.train.notes, peer_warning(layout), half_warning(run.net.ways.half, layout.device)):
        if note:
            say(note)
    if layout.first:
        _record(run, shards)
    if start.checkpoint:
        say(f"going on at epoch {run.train.epoch + 1}, image {run.train.position:,}, step {run.step}")
    code = train(run)
    if run.watch is not None:
        run.watch.end()  # ranks that have ended do not move, and are not to be blamed for it
    if code == 0 and layout.first:
        _report(run, shards)
    return code


def _report(run: Run, shards: str) -> None:
    """A report that cannot be written is not worth a training that has ended well."""
    try:
        print(write_report(run.folder, shards, run.source.local), flush=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"warning: the report could not be written ({error}); python -m model.report --run {run.folder}", flush=True)


def _dry_run(run: Run) -> int:
    """Measure and tell; who made the folder for it removes it."""
    for line in lines(run, measure(run)):
        run.metrics.say(line)
    return 0


def _record(run: Run, shards: str) -> None:
    manifest = run.train.shards.manifest
    write_record(
        run.folder,
        recipe=run.recipe.model_dump(mode="json"),
        layout=run.layout.describe(),
        world=run.layout.world,
        shards=shards,
        digest=run.train.shards.digest,
        names=[entry.words or entry.wnid for entry in manifest.classes],
        pictures={name: split.samples for name, split in manifest.splits.items()},
        step=run.step,
        restart=int(os.environ.get(RESTART) or os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0),
    )
