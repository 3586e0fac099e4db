"""Train the net on shards.

python -m model.train --shards shards/ [--recipe alexnet] [--columns 1|2] [--devices N] [--run DIR] [--resume]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from model import checkpoint
from model.arguments import read_arguments
from model.launch import end_with_parent, launch, under_launcher
from model.layout import Layout, choose, join
from model.one_rank import run_rank
from model.rank import on_rank
from model.recipe import OF_THE_MACHINE, Recipe, change_recipe, check_recipe, read_recipe
from model.run import Start
from model.watch import Watch, dismiss_spares, meeting_store, wait_as_spare
from pipeline import InputError, check_folder, one_line_errors

DRY = "dry-run-"  # beginning of the name of a folder that is made for a dry run, and removed after it


def _choose_folder(given: argparse.Namespace) -> Path:
    if given.dry_run and not under_launcher():
        return Path(tempfile.mkdtemp(prefix=DRY)) / "run"
    if given.run is not None:
        folder: Path = given.run
        return folder
    if given.resume == "yes":
        runs = sorted(Path("runs").glob("*/checkpoints"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise InputError("--resume, but runs/ holds no run; name its folder with --run DIR")
        return runs[-1].parent
    if given.resume:
        raise InputError("--resume auto begins a run or goes on with it, and so must know which; name its folder with --run DIR")
    return Path("runs") / f"{Path(given.recipe or 'alexnet').stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _choose_run(given: argparse.Namespace, folder: Path, read: bool) -> tuple[Recipe, Start]:
    """The recipe, and what the run begins with; read: also the weights, and every digest. Raises InputError."""
    newest = checkpoint.latest(folder / "checkpoints")
    if given.dry_run and given.resume:
        raise InputError("--dry-run keeps nothing, and so goes on with nothing; leave --resume out")
    if given.init_from and not given.init_from.exists():
        raise InputError(f"{given.init_from} is not there; give a checkpoint's folder, .safetensors, .pth or .onnx")
    if given.new_last_layer and not given.init_from:
        raise InputError("--new-last-layer is of a net that is gone on from: name its weights by --init-from")
    if given.init_from and given.resume == "yes":
        raise InputError("--init-from begins a run, and --resume goes on with one; leave one of them out")
    if newest is None and given.resume == "yes":
        raise InputError(f"{folder} has no checkpoint to go on from; start it without --resume")
    if newest is not None and not given.resume:
        raise InputError(f"{folder} holds a run already; go on with it by --resume, or name another --run")
    if newest is not None:
        state = checkpoint.load_state(newest, files=read)
        return _resumed_recipe(given, folder, check_recipe(state["recipe"], str(newest))), Start(newest, state)
    return read_recipe(given.recipe or "alexnet", given.set), Start(init_from=given.init_from, new_last_layer=given.new_last_layer)


def _resumed_recipe(given: argparse.Namespace, folder: Path, recipe: Recipe) -> Recipe:
    here = [word for word in given.set if word.partition("=")[0].strip() in OF_THE_MACHINE]
    recipe = change_recipe(recipe, here)
    others = [word for word in given.set if word not in here]
    if (given.recipe or others) and change_recipe(read_recipe(given.recipe or "alexnet", others), here) != recipe:
        raise InputError(f"{folder} goes on with its own recipe, and --recipe and --set ask for another; leave them out, or start another --run")
    return recipe


def _join(given: argparse.Namespace, device: str, batch: int) -> Layout:
    """Meet the other ranks. Raises InputError where there is no meeting."""
    try:
        return join(given.columns, device, batch, given.hybrid, timedelta(minutes=2 * given.timeout))  # the watch is to speak first
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {port} is taken by another process; choose another for MASTER_PORT (torchrun: --rdzv-endpoint HOST:PORT)"
            ) from None
        raise InputError(f"nobody answers at {address}:{port}; see that rank 0 runs there, and MASTER_ADDR and MASTER_PORT are its own") from None


def _train_as_launched(given: argparse.Namespace) -> int:
    """Take this process's place among the ranks of torchrun."""
    end_with_parent()
    if given.verify:  # main() below has done it before it started the ranks
        check = f"python tools/check_shards.py --shards {given.shards}"
        raise InputError(f"--verify under torchrun would keep the other ranks waiting past their patience; run first: {check}")
    if given.run is None and int(os.environ["WORLD_SIZE"]) > 1:
        raise InputError("under torchrun every rank must know the run's folder, which all hosts see; name it with --run DIR")
    folder = _choose_folder(given)
    if given.dry_run and not folder.parent.name.startswith(DRY):
        raise InputError("--dry-run starts its own ranks, on this machine; leave torchrun out")
    recipe, start = _choose_run(given, folder, read=True)
    given.columns = _columns(given, recipe)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device

    def work() -> int:
        layout = _join(given, device, recipe.train.batch)
        store = meeting_store()
        if layout.spare:
            return wait_as_spare(store)
        watch = Watch(store, layout.rank, layout.world, 60 * given.timeout) if layout.world > 1 else None
        code = run_rank(given, layout, folder, recipe, start, watch)
        if layout.first and layout.spares:
            dismiss_spares(store, layout.spares)
        return code

    return on_rank(work)


def _columns(given: argparse.Namespace, recipe: Recipe) -> int | None:
    """What was asked for; a net of one column is never shared by two devices unasked."""
    return 1 if given.columns is None and recipe.model.columns == 1 else given.columns


def _check_shards(given: argparse.Namespace) -> None:
    with tqdm(desc="verifying shards", unit="B", unit_scale=True, disable=not given.verify, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
        check_folder(given.shards, given.local, given.local_gb, bar.update if given.verify else None)


def _launch(given: argparse.Namespace, words: list[str], ranks: int, columns: int, device: str, folder: Path) -> int:
    """Train on `ranks` processes, again from the newest checkpoint after a fault."""
    words = [word for word in words if word != "--verify"]

    def newest() -> object:
        return checkpoint.latest(folder / "checkpoints")

    def arguments() -> list[str]:
        going_on = ["--resume", "auto"] if newest() is not None else []  # the last of two --resume counts
        return [*words, "--columns", str(columns), "--device", device, "--run", str(folder), *going_on]

    return launch(ranks, "model.train", arguments, given.restarts or 0, newest)


def _train_here(given: argparse.Namespace, folder: Path, words: list[str]) -> int:
    """On this machine's devices: in this process if it is one, else in one process each."""
    recipe, _ = _choose_run(given, folder, read=False)
    ranks, columns, device = choose(given.devices, _columns(given, recipe), given.device, recipe.train.batch, given.hybrid)
    if ranks > 1 or given.verify:
        _check_shards(given)  # before processes are started for nothing
    if ranks == 1 and given.restarts is None:
        return run_rank(given, Layout(device=torch.device(device)), folder, *_choose_run(given, folder, read=True))
    return _launch(given, words, ranks, columns, device, folder)


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    with one_line_errors():
        if under_launcher():
            return _train_as_launched(given)
        folder = _choose_folder(given)
        try:
            return _train_here(given, folder, sys.argv[1:] if arguments is None else arguments)
        finally:
            if given.dry_run:
                shutil.rmtree(folder.parent)
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
