"""Train the net on shards.

python -m model.train --shards shards/ [--recipe alexnet] [--columns 1|2] [--devices N] [--run DIR] [--resume]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from model import checkpoint
from model.alexnet import MaskDraw
from model.arguments import read_arguments
from model.evaluate import autocast, evaluate, write_predictions
from model.launch import LOST_CONTACT, end_with_parent, launch, lost_contact, under_launcher
from model.layout import Layout, check_batch, choose, join
from model.loss import refuse_not_finite, stuck_warning
from model.memory import keep_freed_memory
from model.pictures import SKIPPED, Source, augmentation, count_skipped, list_skipped, validation_loader
from model.recipe import OF_THE_MACHINE, Recipe, change_recipe, check_recipe, read_recipe
from model.run import Run, Window, build_run, save_run
from model.sgd import PaperSGD
from model.stop import Stopped
from pipeline import STAGES, Batch, ImageLoader, InputError, LoadingGivenUp, check_folder, line_of_place, one_line_errors


def train_step(model: torch.nn.Module, optimiser: PaperSGD, images: torch.Tensor, labels: torch.Tensor, masks: MaskDraw) -> torch.Tensor:
    """One step of the paper's SGD; the loss (nats, mean over this replica's pictures) stays on the device."""
    optimiser.zero_grad(set_to_none=True)
    with autocast(images.device):
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last), masks), labels)
    loss.backward()
    optimiser.step()
    return loss.detach()


def train(run: Run) -> int:
    """Train to the end of the recipe, or to a signal: the exit code."""
    try:
        if run.unvalidated:
            _validate(run)
        while not run.schedule.finished(run.train.epoch):
            _enter_epoch(run)
            _train_epoch(run)
            window = run.window
            mean = window.epoch_loss / window.epoch_steps if window.epoch_steps else math.inf
            warning = stuck_warning(mean, run.train.epoch, run.net.num_classes, run.recipe)
            if warning:
                run.metrics.say(warning)
            run.unvalidated = run.val is not None
            save_run(run, best=False)  # before the validation, which may be ended by what it likes
            _validate(run)
        _finish(run)
    except Stopped as stopped:
        run.metrics.say(f"stopped by a signal at step {run.step}, saved; the same command with --resume goes on at the next image")
        return 128 + stopped.number
    return 0


def _enter_epoch(run: Run) -> None:
    """Set the epoch's rates; leave the colour noise off from its last epoch on."""
    epoch = run.train.epoch
    for group, rate in run.schedule.rates(epoch).items():
        next(g for g in run.optimiser.param_groups if g["name"] == group)["rate"] = rate
    wanted = augmentation(run.recipe, epoch)
    if wanted != run.train.augmentation:
        run.train.change(wanted)
    run.train.times.share()  # what the loader did before is not the training's
    run.window = Window()


def _train_epoch(run: Run) -> None:
    """The steps that are left of this epoch. After a signal it saves and raises Stopped."""
    epoch, log_every = run.train.epoch, run.recipe.train.log_every
    left, whole = len(run.train), len(run.train) + run.train.position // run.train.batch
    batches = iter(run.metrics.bar(run.train, whole, whole - left, f"epoch {epoch + 1}"))
    for number in range(left):
        asked = time.perf_counter()
        try:
            batch = next(batches)
        except LoadingGivenUp:  # only one rank alone gives up: more of them agree on a step
            save_run(run, best=False)
            raise Stopped(run.stop.noted()) from None
        except InputError:
            if run.layout.world == 1 and number:  # ranks that share a net cannot save without the one that stopped
                save_run(run, best=False)
                run.metrics.say(f"saved at step {run.step}: --resume goes on there, and with --on-bad-sample skip passes over a bad sample")
            raise
        run.window.waited += time.perf_counter() - asked
        run.stop.begin()
        _one_step(run, batch)
        signal_number = run.stop.agreed()
        if run.step % log_every == 0 or number == left - 1 or signal_number:
            _log(run, epoch)
        if signal_number:
            save_run(run, best=False)
            raise Stopped(signal_number)
    for _ in batches:  # takes the loader to the start of the next epoch
        raise AssertionError("the loader gave more batches than its length")


def _one_step(run: Run, batch: Batch) -> None:
    rows = len(batch.labels)
    masks = MaskDraw(run.recipe.train.seed, run.step, rows * run.layout.data_count, rows * run.layout.data_index)
    run.window.losses.append(train_step(run.model, run.optimiser, batch.images, batch.labels, masks))
    run.step += 1


def _log(run: Run, epoch: int) -> None:
    """Read the losses since the last line (the only wait for the device), and write them with rates and waits."""
    window, count = run.window, len(run.window.losses)
    losses = torch.stack(window.losses)
    if run.layout.data_group is not None:
        dist.all_reduce(losses, group=run.layout.data_group)
    values = (losses / run.layout.data_count).tolist()
    rate = run.schedule.rates(epoch)["weight"]
    refuse_not_finite(values, run.step - count, epoch, rate)
    elapsed = time.perf_counter() - window.began
    loss, wait = sum(values) / count, 100 * window.waited / elapsed
    images = count * run.recipe.train.batch / elapsed
    loader = run.train.times.share()
    run.spent.add(count * run.recipe.train.batch, elapsed, window.waited, loader)
    shares = {f"loader_{stage}_percent": loader[stage] for stage in STAGES}
    run.metrics.write(run.step, epoch=epoch + 1, loss_nats=loss, rate=rate, images_per_second=images, data_wait_percent=wait, **shares)
    run.metrics.say(
        f"epoch {epoch + 1:3d}  step {run.step:6d}  loss {loss:7.4f}  rate {rate:g}  {images:7.1f} images/s  waiting for data {wait:4.1f} %"
        f"  (loader: {', '.join(f'{stage} {loader[stage]:.0f}' for stage in STAGES)} %)"
    )
    _list_skipped(run, run.train)
    window.epoch_loss, window.epoch_steps = window.epoch_loss + sum(values), window.epoch_steps + count
    window.losses, window.waited, window.began = [], 0.0, time.perf_counter()


def _list_skipped(run: Run, loader: ImageLoader) -> None:
    """Say which pictures this rank had to skip, once, and list them in the run's folder."""
    found = list(loader.skipped)  # the loader's thread adds to it meanwhile
    for one in list_skipped(run.folder, found):
        place = f"{one.shard}: sample {one.key} at offset {one.offset}: {one.reason}"
        print(f"skipped: {place}; {count_skipped(run.folder)} by now, listed in {run.folder / SKIPPED}", file=sys.stderr, flush=True)
    del loader.skipped[: len(found)]


def _validate(run: Run) -> None:
    """The centre view of the validation pictures: tell the schedule, and save with what it says."""
    if run.val is None:
        return
    epoch, began = run.train.epoch, time.perf_counter()  # the loader stands at the next epoch, so `epoch` counts those done
    run.val.epoch = run.val.position = 0
    result = evaluate(run.net, run.val, run.layout, run.stop)
    _list_skipped(run, run.val)
    best = run.schedule.validated(result.top1_error)
    run.metrics.write(
        run.step,
        epoch=epoch,
        val_top1_error_percent=100 * result.top1_error,
        val_top5_error_percent=100 * result.top5_error,
        val_images=result.images,
        val_seconds=time.perf_counter() - began,
    )
    run.metrics.say(f"epoch {epoch:3d}  validation, centre view: {result}")
    run.unvalidated = False
    save_run(run, best)


def _finish(run: Run) -> None:
    """The ten views of the paper, the predictions of a few pictures, and where the time went."""
    for line in run.spent.table(count_skipped(run.folder)):
        run.metrics.say(line)
    if run.val is None:
        return
    loader = validation_loader(run.source, run.recipe, run.layout, 10)
    result = evaluate(run.net, loader, run.layout, run.stop)
    run.metrics.write(run.step, val_ten_view_top1_error_percent=100 * result.top1_error, val_ten_view_top5_error_percent=100 * result.top5_error)
    run.metrics.say(f"finished   validation, ten views:   {result}")
    if run.schedule.best_error < float("inf"):
        run.metrics.say(f"these are of the last epoch's net; {run.folder / 'checkpoints' / 'best.pt'} had the best centre view")
    if run.layout.first:
        write_predictions(run.folder / "predictions.json", result)


def _choose_run(given: argparse.Namespace) -> tuple[Path, Recipe, dict[str, Any] | None]:
    """Folder, recipe and checkpoint to go on from. Raises InputError."""
    folder: Path | None = given.run
    if given.resume:
        if folder is None:
            runs = sorted(Path("runs").glob("*/checkpoints"), key=lambda path: path.stat().st_mtime)
            if not runs:
                raise InputError("--resume, but runs/ holds no run; name its folder with --run DIR")
            folder = runs[-1].parent
        newest = checkpoint.latest(folder / "checkpoints")
        if newest is None:
            raise InputError(f"{folder} has no checkpoint to go on from; start it without --resume")
        content = checkpoint.load(newest)
        here = [word for word in given.set if word.partition("=")[0].strip() in OF_THE_MACHINE]
        recipe = change_recipe(check_recipe(content["recipe"], str(newest)), here)
        others = [word for word in given.set if word not in here]
        if (given.recipe or others) and change_recipe(read_recipe(given.recipe or "alexnet", others), here) != recipe:
            raise InputError(f"{folder} goes on with its own recipe, and --recipe and --set ask for another; leave them out, or start another --run")
        return folder, recipe, content
    recipe = read_recipe(given.recipe or "alexnet", given.set)
    if folder is None:
        folder = Path("runs") / f"{Path(given.recipe or 'alexnet').stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if checkpoint.latest(folder / "checkpoints") is not None:
        raise InputError(f"{folder} holds a run already; go on with it by --resume, or name another --run")
    return folder, recipe, None


def _run_rank(given: argparse.Namespace, layout: Layout) -> int:
    """Train as one rank, in this process."""
    folder, recipe, resumed = _choose_run(given)
    check_batch(recipe.train.batch, layout.world)
    cores = max(1, len(os.sched_getaffinity(0)) // layout.local_world)
    if layout.device.type == "cpu":
        torch.set_num_threads(cores)
    keep_freed_memory(layout.device)
    source = Source(given.shards, cores if given.threads is None else given.threads, given.on_bad_sample, given.local, given.local_gb, given.prefetch)
    run = build_run(folder, recipe, layout, source, resumed)
    run.metrics.say(
        f"{folder}: {layout.describe()}; {len(run.train.shards):,} training pictures, {run.net.num_classes} classes, batch {recipe.train.batch}"
    )
    for note in run.train.notes:
        run.metrics.say(note)
    if resumed:
        run.metrics.say(f"going on at epoch {run.train.epoch + 1}, image {run.train.position:,}, step {run.step}")
    try:
        return train(run)
    finally:
        run.metrics.close()


def _train_as_launched(given: argparse.Namespace) -> int:
    """Take this process's place among the ranks of torchrun."""
    world = int(os.environ["WORLD_SIZE"])
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    columns = given.columns or min(world, 2)
    if world % columns:
        raise InputError(f"{world} ranks cannot be paired as {columns} columns; use an even number, or --columns 1")
    end_with_parent()
    if given.verify:  # launch() below has done it before it started the ranks
        check = f"python tools/check_shards.py --shards {given.shards}"
        raise InputError(f"--verify under torchrun would keep the other ranks waiting past their patience; run first: {check}")
    layout = join(columns, device)
    try:
        code = _run_rank(given, layout)
    except (InputError, OSError) as error:
        line = str(error) if isinstance(error, InputError) else line_of_place(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(2)  # at once: an orderly exit takes so long that a rank that lost contact would be blamed
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        print(f"rank {layout.rank}: another rank has gone", file=sys.stderr)
        os._exit(LOST_CONTACT)  # collectives still pending would keep an orderly exit waiting
    dist.destroy_process_group()
    return code


def _check_shards(given: argparse.Namespace) -> None:
    with tqdm(desc="verifying shards", unit="B", unit_scale=True, disable=not given.verify, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        check_folder(given.shards, given.local, given.local_gb, bar.update if given.verify else None)


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    with one_line_errors():
        if under_launcher():
            return _train_as_launched(given)
        folder, recipe, _ = _choose_run(given)
        ranks, columns, device = choose(given.devices, given.columns, given.device, recipe.train.batch)
        if ranks > 1 or given.verify:
            _check_shards(given)  # before processes are started for nothing
        if ranks == 1:
            return _run_rank(given, Layout(device=torch.device(device)))
        again = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--verify"]
        return launch(ranks, [*again, "--columns", str(columns), "--device", device, "--run", str(folder)])
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
