"""The pictures of show_batch and plot_run: made, not blank, true to the loader; and what users do wrong is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TRAIN, one_line, run_command
from PIL import Image

from model.kernels import BETWEEN, ENLARGED, GAP, as_png, kernel_sheet
from pipeline import Augmentation, ImageLoader, InputError, read_manifest
from pipeline.colour import read_colour_stats
from pipeline.shards import ShardSet
from tools import plot_run, show_batch

MAPS, CROP, SEED = 16, 200, 3
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(made_shards: Path, tmp_path: Path) -> Path:
    """A run's folder as training leaves it, with made-up numbers."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    lines: list[dict[str, float]] = [{"step": s, "epoch": 1 + s // 21, "loss_nats": 2 / s, "rate": 0.01 if s < 21 else 0.001} for s in range(1, 41)]
    lines += [{"step": 20 * e, "epoch": e, "val_top1_error_percent": 70.0 / e, "val_top5_error_percent": 0.0} for e in (1, 2)]
    lines += [{"step": 40, "val_ten_view_top1_error_percent": 30.0, "val_ten_view_top5_error_percent": 0.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "kernels").mkdir()
    for step in (1, 40):
        weights = torch.randn(MAPS, 3, 11, 11, generator=torch.Generator().manual_seed(step))
        (folder / "kernels" / f"step-{step:08d}.png").write_bytes(as_png(kernel_sheet(weights)))
    newest = folder / "checkpoints" / "step-00000040"
    newest.mkdir()
    (newest / "state.json").write_text(json.dumps({"wnids": [entry.wnid for entry in read_manifest(made_shards)[0].classes]}))
    shards = ShardSet(made_shards, "val")
    best = [{"class": c, "probability": p} for c, p in enumerate((0.6, 0.2, 0.1, 0.1))]
    rows = [{"id": i, "label": shards.read(i)[1], "best": best} for i in range(8)]
    (folder / "predictions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a tool's main in this process, which spares its imports."""

    def called(main: Callable[[list[str]], int], *arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess([], code, printed.out, printed.err)

    return called


def pixels(path: Path, width: int = 1600) -> np.ndarray:
    """A picture that is `width` wide, of a sane height and not blank."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        found = np.asarray(picture.convert("RGB"))
    assert found.shape[1] == width
    assert 400 <= found.shape[0] <= 2400
    assert found.std() > 10
    return found


def test_plot_run_writes_three_pictures_and_their_paths(run: Path, made_shards: Path) -> None:
    done = run_command("tools/plot_run.py", "--run", run, "--shards", made_shards)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(run / f"{name}.png") for name in ("curves", "kernels", "predictions")]
    for name in ("curves", "kernels", "predictions"):
        pixels(run / f"{name}.png")
    assert not list(run.glob(".*"))


def test_curves_mark_the_drop_of_the_rate_and_leave_a_half_written_line_out(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')
    lines = plot_run.read_metrics(run)
    train = [line for line in lines if "loss_nats" in line]
    assert len(train) == 40
    assert plot_run.rate_drops(train) == [(20, 0.001)]
    left, right = plot_run.draw_curves(lines[:40], CLASSES).axes  # not validated yet
    assert "0.001" in [text.get_text() for text in left.texts]
    assert [text.get_text() for text in right.texts] == ["not validated yet"]


def test_curves_show_units_that_never_fire_where_they_were_looked_at(run: Path) -> None:
    lines = plot_run.read_metrics(run)
    assert plot_run.silent_shares(lines) == {}
    looks = [
        {"step": step, "silent_percent_conv1_1_column0": 2.0 * step, "silent_percent_conv1_1_column1": 0.0, "silent_percent_fc6_column0": 5.0}
        for step in (1, 40)
    ]
    assert plot_run.silent_shares([*lines, *looks]) == {"conv1_1": [(1, 1.0), (40, 40.0)], "fc6": [(1, 5.0), (40, 5.0)]}
    *_, below = plot_run.draw_curves([*lines, *looks], CLASSES).axes
    assert below.get_legend_handles_labels()[1] == ["conv1_1: 40.0 %", "fc6: 5.0 %"]


def test_kernels_are_scaled_each_to_its_own_range_around_grey() -> None:
    kernels = torch.zeros(40, 3, 11, 11)
    kernels[0, 0, 2, 3], kernels[0, 1, 2, 3], kernels[17, 2, 0, 10] = 4, -2, -0.001
    kernels[20, :, 5, 5], kernels[21, 0, 5, 5] = torch.tensor([1.0, 1, 1]), torch.nan
    sheet = kernel_sheet(kernels)
    side = 11 * ENLARGED + GAP
    row = [GAP + i * side for i in range(2)]  # of a column's kernels: 20, so two rows
    below = 2 * side + GAP + BETWEEN
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * below - BETWEEN, 16 * side + GAP, 3)
    assert sheet[row[0] + 2 * ENLARGED, row[0] + 3 * ENLARGED].tolist() == [255, 64, 128]
    assert sheet[row[1], row[1] + 11 * ENLARGED - 1].tolist() == [128, 128, 0]  # kernel 17: second row, second place
    assert sheet[below + row[0] + 5 * ENLARGED, row[0] + 5 * ENLARGED].tolist() == [255, 255, 255]  # kernel 20: first of column 1
    assert (sheet[below + row[0] : below + row[0] + 11 * ENLARGED, row[1] : row[1] + 11 * ENLARGED] == 128).all()  # no number
    for white in (slice(0, GAP), slice(side, side + GAP), slice(2 * side + GAP, below)):  # around rows, between columns
        assert (sheet[white] == 255).all()


def test_the_newest_kernels_are_drawn(run: Path) -> None:
    kernels = plot_run.read_kernels(run)
    assert kernels.step == 40
    assert np.array_equal(kernels.sheet, kernel_sheet(torch.randn(MAPS, 3, 11, 11, generator=torch.Generator().manual_seed(40))))
    figure = plot_run.draw_kernels(kernels)
    (axes,) = figure.axes
    assert np.array_equal(np.asarray(axes.images[0].get_array()), kernels.sheet)
    assert "after step 40;" in figure.texts[0].get_text()


def test_predictions_show_the_right_picture_and_mark_the_right_guess(run: Path, made_shards: Path) -> None:
    shards = ShardSet(made_shards, "val")
    shown = plot_run.shown_pictures(plot_run.read_predictions(run), shards)
    assert len(shown) == 8
    for i, one in enumerate(shown):
        picture, label = plot_run.decoded(shards, i)
        assert np.array_equal(one.picture, picture)
        assert one.name == shards.manifest.classes[label].words.split(",")[0]
        assert [place for place, (_, _, right) in enumerate(one.guesses) if right] == [label]  # guesses are classes 0, 1, 2, 3


@pytest.mark.parametrize("colour", ["eigenvalue", "stddev", "none"])
def test_augmented_pixels_are_those_of_the_loader(made_shards: Path, colour: str) -> None:
    augmentation = Augmentation(crop=CROP, colour=colour)  # type: ignore[arg-type]
    shards = ShardSet(made_shards, "train")
    stats = read_colour_stats(made_shards, shards.digest, shards.manifest.settings.size)
    ids = show_batch.choose_images(shards, SEED)
    assert len(set(ids.tolist())) == 8
    assert {shards.read(int(i))[1] for i in ids[:CLASSES]} == set(range(CLASSES))
    copies = show_batch.augmented(shards, stats, ids, augmentation, SEED)
    assert len(copies) == show_batch.EPOCHS
    for epoch in (0, 5):
        loader = ImageLoader(made_shards, "train", batch=TRAIN, augmentation=augmentation, seed=SEED, epoch=epoch, threads=1)
        fed = {int(i): image.numpy().copy() for batch in loader for i, image in zip(batch.ids, batch.images, strict=True)}
        draws = copies[epoch].draws
        for row, sample in enumerate(ids.tolist()):
            x, y = int(draws.x[row]), int(draws.y[row])
            mean = stats.mean_image[y : y + CROP, x : x + CROP]
            wanted = fed[sample].transpose(1, 2, 0) + (mean[:, ::-1] if draws.flip[row] else mean)
            assert np.abs(np.clip(wanted, 0, 255) - copies[epoch].pictures[row]).max() <= 1


def test_show_batch_writes_one_picture(command: Command, made_shards: Path, tmp_path: Path) -> None:
    done = command(show_batch.main, "--shards", made_shards, "--out", tmp_path / "augmented.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "augmented.png")
    pixels(tmp_path / "augmented.png")


def test_mistakes_with_show_batch_are_one_line(command: Command, shards: Path, tmp_path: Path) -> None:
    given = ["--shards", shards, "--out", tmp_path / "a.png"]
    one_line(command(show_batch.main, "--shards", tmp_path / "none"), "not a folder")
    one_line(command(show_batch.main, *given, "--crop", 257), "--crop", "256")
    one_line(command(show_batch.main, *given, "--crop", 0), "--crop")
    one_line(command(show_batch.main, *given, "--seed", -1), "--seed")
    one_line(command(show_batch.main, *given[:2], "--out", tmp_path / "none" / "a.png"), "folder does not exist")
    one_line(command(show_batch.main, *given[:2], "--out", tmp_path), "is a folder")
    (shards / "pca.json").unlink()
    one_line(command(show_batch.main, *given), "pca.json", "compute_pca.py")


def test_mistakes_with_runs_are_one_line(command: Command, run: Path, made_shards: Path, tmp_path: Path) -> None:
    given = ["--run", run, "--shards", made_shards]
    one_line(command(plot_run.main, "--run", tmp_path / "none", "--shards", made_shards), "there is no run")
    one_line(command(plot_run.main, "--run", tmp_path, "--shards", made_shards), "metrics.jsonl")
    one_line(command(plot_run.main, "--run", run, "--shards", tmp_path), "holds no shards")
    damaged = Path(shutil.copytree(run / "checkpoints" / "step-00000040", run / "checkpoints" / "step-00000041"))
    (damaged / "state.json").write_text('{"wnids": ["n0')
    one_line(command(plot_run.main, *given), "step-00000041", "not a checkpoint")
    damaged.rename(run / "damaged")
    (run / "kernels" / "step-00000041.png").write_bytes(b"cut short")
    one_line(command(plot_run.main, *given), "step-00000041.png", "not a picture")
    shutil.rmtree(run / "kernels")
    one_line(command(plot_run.main, *given), "no picture yet")
    shutil.rmtree(run / "checkpoints")
    one_line(command(plot_run.main, *given), "no checkpoint yet")
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n')
    one_line(command(plot_run.main, *given), "no loss yet")
    (run / "metrics.jsonl").write_text("loss 2.3\n")
    one_line(command(plot_run.main, *given), "line 1")


def test_shards_of_other_classes_are_refused(command: Command, run: Path, made_shards: Path) -> None:
    path = run / "checkpoints" / "step-00000040" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wnids": ["n00000000"]}))
    one_line(command(plot_run.main, "--run", run, "--shards", made_shards), "other classes")
    assert not list(run.glob("*.png"))


def test_without_predictions_the_other_pictures_are_made(command: Command, run: Path, made_shards: Path) -> None:
    (run / "predictions.json").unlink()
    done = command(plot_run.main, "--run", run, "--shards", made_shards)
    assert done.returncode == 0
    assert "not finished" in done.stderr
    assert done.stdout.split() == [str(run / "curves.png"), str(run / "kernels.png")]


def test_predictions_of_other_shards_are_refused(run: Path, made_shards: Path) -> None:
    path, shards = run / "predictions.json", ShardSet(made_shards, "val")
    first = json.loads(path.read_text())[0]
    for changed, words in (({"id": 10_000}, "does not have"), ({"label": (first["label"] + 1) % CLASSES}, "another class"), ({"id": "x"}, "0.id")):
        path.write_text(json.dumps([{**first, **changed}]))
        with pytest.raises(InputError, match=words):
            plot_run.shown_pictures(plot_run.read_predictions(run), shards)
