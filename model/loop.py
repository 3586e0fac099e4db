"""The training loop: epochs, steps, log lines, validation, checkpoints."""

from __future__ import annotations

import math
import sys
import time

import torch
import torch.distributed as dist

from model import activations, spikes
from model.evaluate import evaluate, write_predictions
from model.kernels import as_png, kernel_sheet
from model.loss import refuse_not_finite, stuck_warning
from model.net import MaskDraw, Net, gather_parameter, whole_net
from model.pictures import SKIPPED, augmentation, count_skipped, list_skipped, validation_loader
from model.run import Run, Window, save_run, settle_save
from model.stop import Stopped
from pipeline import STAGES, Batch, ImageLoader, InputError, LoadingGivenUp, atomic_file


def train(run: Run) -> int:
    """Train to the end of the recipe, or to a signal: the exit code."""
    try:
        if run.unvalidated:
            _validate(run)
        while not run.schedule.finished(run.train.epoch):
            enter_epoch(run)
            _train_epoch(run)
            window = run.window
            mean = window.epoch_loss / window.epoch_steps if window.epoch_steps else math.inf
            warning = stuck_warning(mean, run.train.epoch, run.net.num_classes, run.recipe)
            if warning:
                run.metrics.say(warning)
            run.unvalidated = run.val is not None
            save_run(run)  # before the validation, which may be ended by what it likes
            _validate(run)
        _finish(run)
    except Stopped as stopped:
        save_run(run, wait=True)
        run.metrics.say(f"stopped by a signal at step {run.step}, saved; the same command with --resume goes on at the next image")
        return 128 + stopped.number
    return 0


def enter_epoch(run: Run) -> None:
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
        run.at("waiting for data")
        try:
            with run.timeline.stage("waiting for data"):
                batch = next(batches)
        except LoadingGivenUp:  # only one rank alone gives up: more of them agree on a step
            if run.window.losses:
                _log(run, epoch)
            raise Stopped(run.stop.noted()) from None
        except InputError:
            if run.layout.world == 1 and number:  # ranks that share a net cannot save without the one that stopped
                save_run(run, wait=True)
                run.metrics.say(f"saved at step {run.step}: --resume goes on there, and with --on-bad-sample skip passes over a bad sample")
            raise
        run.window.waited += time.perf_counter() - asked
        run.stop.begin()
        run.at("computing")
        one_step(run, batch)
        signal_number = run.stop.agreed()
        due = number < left - 1 and run.save_every > 0 and run.step % run.save_every == 0  # at its end an epoch is saved as a whole
        if run.step % log_every == 0 or number == left - 1 or signal_number or due:  # so that no line spans a checkpoint
            _log(run, epoch)
        _trace(run, number == left - 1 or bool(signal_number))
        if run.step == 1 or number == left - 1:
            _look(run, batch)
        if signal_number:
            raise Stopped(signal_number)
        if due:
            save_run(run)
        settle_save(run, wait=False)
    for _ in batches:  # takes the loader to the start of the next epoch
        raise AssertionError("the loader gave more batches than its length")


def one_step(run: Run, batch: Batch) -> None:
    layout, rows = run.layout, len(batch.labels)
    masks = MaskDraw(run.recipe.train.seed, run.step, rows * layout.data_count, rows * layout.data_index)
    labels = layout.whole_batch_labels(batch.labels)
    run.window.losses.append(run.take_step(batch.images, labels, masks, run.timeline.stage))
    run.step += 1


def _log(run: Run, epoch: int) -> None:
    """Read the losses since the last line (the only wait for the device), and write them with rates and waits."""
    window, count = run.window, len(run.window.losses)
    run.take_step.settle()
    losses = torch.stack(window.losses)
    if run.layout.data_group is not None:
        dist.all_reduce(losses, group=run.layout.data_group)
    values = (losses / run.layout.data_count).tolist()
    rate = run.schedule.rates(epoch)["weight"]
    _keep_spikes(run, values, run.step - count, rate)
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


def _trace(run: Run, last: bool) -> None:
    """A step more for the time line; it ends with the epoch, whose validation it does not show."""
    run.timeline.step()
    if last:
        run.timeline.end()
    for line in run.timeline.lines:
        run.metrics.say(line)
    run.timeline.lines = []


def _look(run: Run, batch: Batch) -> None:
    """What layers and columns do on a few pictures, and the first layer's kernels, for those who watch; no bit of the training changes."""
    histograms = activations.measure(_whole(run), batch.images, run.layout)
    first = run.net.design.layers()[0]
    kernels = gather_parameter(run.net, f"{first}.weight", run.net.first.weight.detach())
    if not run.layout.first:
        return
    run.metrics.on_board(lambda board: activations.write(board, run.step, histograms))
    run.metrics.write(run.step, **activations.silent_shares(histograms))
    sheet = kernel_sheet(kernels, run.net.design.columns)
    run.metrics.on_board(lambda board: board.add_image(first, sheet, run.step, dataformats="HWC"))
    try:
        with atomic_file(run.folder / "kernels" / f"step-{run.step:08d}.png") as file:
            file.write(as_png(sheet))
    except OSError as error:  # a picture is not worth a run
        run.metrics.say(f"warning: the kernels' picture could not be written ({error.strerror})")


def _keep_spikes(run: Run, losses: list[float], first_step: int, rate: float) -> None:
    """Keep what is needed to repeat the steps whose loss leapt; the first rank writes it."""
    for place, loss, usual in run.usual.leaps(losses):
        if not run.layout.first:
            continue
        step, batch, steps = first_step + place + 1, run.train.batch, len(run.train.shards) // run.train.batch
        epoch, within = divmod(step - 1, steps)
        ids = run.train.ids_of(epoch)[within * batch : (within + 1) * batch].tolist()
        spike = spikes.Spike(step, loss, usual, rate, epoch, within * batch, ids, spikes.before(run.saver.folder, step))
        try:
            kept = spikes.keep(run.folder, run.saver.folder, spike)
        except OSError as error:
            run.metrics.say(f"warning: what is needed to repeat step {step} could not be kept ({error.strerror})")
            continue
        if kept is not None:
            run.metrics.write(step, event="spike", spike_loss_nats=str(loss), usual_loss_nats=usual if math.isfinite(usual) else None)
            run.metrics.say(f"the loss leapt to {loss:.4g} nats at step {step}, from {usual:.4g}: kept in {kept}; python -m model.replay repeats it")
        if not math.isfinite(loss):  # those after it only follow from it
            break


def _list_skipped(run: Run, loader: ImageLoader) -> None:
    """Say which pictures this rank had to skip, once, and list them in the run's folder."""
    found = list(loader.skipped)  # the loader's thread adds to it meanwhile
    try:
        new = list_skipped(run.folder, found)
    except OSError as error:  # a full disk: they are listed when it can be
        print(f"warning: skipped pictures could not be listed ({error.strerror})", file=sys.stderr, flush=True)
        return
    for one in new:
        place = f"{one.shard}: sample {one.key} at offset {one.offset}: {one.reason}"
        print(f"skipped: {place}; {count_skipped(run.folder)} by now, listed in {run.folder / SKIPPED}", file=sys.stderr, flush=True)
    del loader.skipped[: len(found)]


def _validate(run: Run) -> None:
    """The centre view of the validation pictures: tell the schedule, and save with what it says."""
    if run.val is None:
        return
    epoch, began = run.train.epoch, time.perf_counter()  # the loader stands at the next epoch, so `epoch` counts those done
    run.val.epoch = run.val.position = 0
    result = evaluate(_whole(run), run.val, run.layout, run.stop, run.at)
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


def _whole(run: Run) -> Net:
    """The net to evaluate: in the hybrid gathered onto each rank, which then takes pictures of its own."""
    return whole_net(run.net) if run.layout.hybrid else run.net


def _finish(run: Run) -> None:
    """The ten views of the paper, the predictions of a few pictures, and where the time went."""
    failed = run.saver.settle()
    if failed is not None:
        raise failed  # the last weights: here nothing goes on
    for line in [*run.spent.table(count_skipped(run.folder)), *run.saver.table(run.spent.seconds)]:
        run.metrics.say(line)
    if run.val is None:
        return
    loader = validation_loader(run.source, run.recipe, run.layout, 10)
    result = evaluate(_whole(run), loader, run.layout, run.stop, run.at)
    run.metrics.write(run.step, val_ten_view_top1_error_percent=100 * result.top1_error, val_ten_view_top5_error_percent=100 * result.top5_error)
    run.metrics.say(f"finished   validation, ten views:   {result}")
    if run.schedule.best_error < float("inf"):
        run.metrics.say(f"these are of the last epoch's net; {run.saver.folder / 'best'} had the best centre view")
    run.metrics.check_written()
    if run.layout.first:
        write_predictions(run.folder / "predictions.json", result)
