from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, run_here
from PIL import Image
from test_cifar import FEW, unpacked

from model import figure1_data, figure1_net
from model.figure1 import main
from model.figure1_net import ACTIVATIONS, Activation, Curve, FourLayers, TrainingSet, epochs_to, error_percent, train_epochs
from model.figure1_plot import FORMS, draw_figure
from model.figure1_result import Result, summary
from model.figure1_store import Plan
from model.retrieve_sheet import write_png
from pipeline import read_cifar

CPU = torch.device("cpu")
SHORT = ["--rates", "0.01,0.03", "--trial-epochs", "1", "--epochs", "2", "--seeds", "0", "--device", "cpu"]


def drawn(count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of three classes, (count, 32, 32, 3) uint8: noise with a bar that stands, lies, or is not there."""
    rng = np.random.default_rng(3)
    pictures, labels = rng.integers(60, 196, (count, 32, 32, 3), np.uint8), np.arange(count) % 3
    for picture, label in zip(pictures, labels, strict=True):
        at = rng.integers(4, 24)
        if label:
            (picture if label == 1 else picture.transpose(1, 0, 2))[at : at + 5] = 250
    return pictures, labels


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_net_is_the_authors(activation: Activation) -> None:
    net = FourLayers(10, activation, seed=1)
    assert {name: tuple(value.shape) for name, value in net.named_parameters() if name.endswith("weight")} == {
        "conv1.weight": (32, 3, 5, 5),
        "conv2.weight": (32, 32, 5, 5),
        "conv3.weight": (64, 32, 5, 5),
        "fc10.weight": (10, 1024),
    }
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    gain2 = {"relu": 2.0, "tanh": 1.0}[activation]
    for layer, inputs in ((net.conv1, 75), (net.conv2, 800), (net.conv3, 800)):
        assert float(layer.weight.detach().std()) == pytest.approx((gain2 / inputs) ** 0.5, rel=0.05)
        assert layer.bias is not None
        assert not layer.bias.any()
    assert float(net.fc10.weight.detach().std()) == pytest.approx(1024**-0.5, rel=0.05)


def test_the_nets_differ_by_their_activation_only() -> None:
    relu, tanh = FourLayers(10, "relu", seed=4), FourLayers(10, "tanh", seed=4)
    torch.testing.assert_close(relu.conv2.weight, tanh.conv2.weight * 2**0.5)
    assert relu.squash is torch.relu
    assert tanh.squash is torch.tanh
    assert not torch.equal(FourLayers(10, "tanh", seed=5).conv2.weight, tanh.conv2.weight)


def test_pictures_are_standardised() -> None:
    pictures, labels = drawn()
    data = TrainingSet(pictures, labels, CPU)
    x, y = data.take(slice(0, len(data)))
    assert x.shape == (96, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.mean(0), torch.zeros(3, 32, 32), atol=1e-5, rtol=0)
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(y, torch.from_numpy(labels))
    less = (pictures[7].astype(np.float64) - pictures.mean(0)) / data.deviation
    np.testing.assert_allclose(x[7].permute(1, 2, 0).numpy(), less, atol=1e-5)


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (128, [128]), (300, [128, 128])])
def test_an_epoch_takes_each_picture_once_at_most(count: int, sizes: list[int]) -> None:
    pictures = np.zeros((count, 32, 32, 3), np.uint8)
    data = TrainingSet(pictures, np.arange(count), CPU)
    epochs = [[labels for _, labels in data.batches(0, epoch)] for epoch in (0, 0, 1)]
    assert [len(labels) for labels in epochs[0]] == sizes
    first, again, other = (torch.cat(labels) for labels in epochs)
    assert len(first.unique()) == sum(sizes)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_both_learn(activation: Activation) -> None:
    curves = train_epochs(TrainingSet(*drawn(), CPU), 3, activation, 0.02, seed=0)
    errors: list[float] = []
    for curve in curves:
        errors = curve.errors
        if errors[-1] <= 10 or curve.epochs == 60:
            break
    assert errors[0] > 40
    assert errors[-1] <= 10
    assert len(curve.train_seconds) == len(curve.measure_seconds) == curve.epochs


def test_a_training_that_diverges_ends() -> None:
    *_, curve = train_epochs(TrainingSet(*drawn(), CPU), 3, "relu", 1e6, seed=0)
    assert curve.diverged
    assert curve.errors[-1] == 100.0


def test_errors_are_of_the_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = drawn(31)
    data, net = TrainingSet(pictures, labels, CPU), FourLayers(3, "tanh", seed=0)
    wrong = int((net(data.take(slice(0, 31))[0]).argmax(1) != torch.from_numpy(labels)).sum())
    monkeypatch.setattr(figure1_net, "MEASURED", 4)
    assert error_percent(net, data) == pytest.approx(100 * wrong / 31)


@pytest.mark.parametrize(
    ("errors", "epochs"),
    [
        ([90.0, 50.0, 20.0, 30.0], 1 + 25 / 30),
        ([90.0, 25.0], 1.0),
        ([90.0, 40.0, 26.0], None),
        ([20.0, 10.0], 0.0),
        ([65.0, 5.0], 2 / 3),
    ],
)
def test_epochs_to_the_target_lie_on_the_line(errors: list[float], epochs: float | None) -> None:
    assert epochs_to(errors, 25.0) == (None if epochs is None else pytest.approx(epochs))


def result(relu: list[list[float]], tanh: list[list[float]]) -> Result:
    def curves(activation: Activation, some: list[list[float]]) -> list[Curve]:
        return [Curve(activation, 0.01, seed, errors, [1.0] * (len(errors) - 1), [0.5] * (len(errors) - 1)) for seed, errors in enumerate(some)]

    plan = Plan([*range(len(relu))], [0.01], 1, len(tanh[0]) - 1, 25.0)
    return Result(plan, {}, {"relu": curves("relu", relu), "tanh": curves("tanh", tanh)}, "made up")


def test_the_ratio_is_of_the_seeds_means() -> None:
    both = result([[75.0, 25.0], [75.0, 50.0, 25.0]], [[75.0, 65, 55, 45, 35, 25], [75.0, 60, 50, 25]])
    assert both.ratio() == (pytest.approx(8 / 3), False)
    relu, tanh, line = summary(both)
    assert relu == "ReLU, rate 0.01: 1.50 epochs to 25 % (by seed: 1.00, 2.00), 1.0 s of training an epoch"
    assert "4.00 epochs to 25 % (by seed: 5.00, 3.00)" in tanh
    assert line == "tanh takes 2.7 times the epochs of ReLU; the paper says 6 times"


def test_what_was_not_reached_is_said() -> None:
    bound = result([[75.0, 25.0]], [[75.0, 60, 50, 40]])
    assert bound.ratio() == (pytest.approx(3), True)
    assert summary(bound)[1].startswith("tanh, rate 0.01: 25 % not always reached (by seed: 40.0 % after 3)")
    assert summary(bound)[2].startswith("tanh takes more than 3.0 times")
    neither = result([[75.0, 30.0]], [[75.0, 60.0]])
    assert neither.ratio() == (None, False)
    assert summary(neither)[2].startswith("no ratio: 25 % was not reached")


def test_the_picture_has_both_curves(tmp_path: Path) -> None:
    made = result([[75.0, 40.0, 20.0]], [[75.0, 70, 60, 50, 40, 30, 20]])
    figure = draw_figure(made.curves, 25.0, "title", "words")
    (axes,) = figure.axes
    for name, (colour, form) in FORMS.items():
        (line,) = [
            line for line in axes.lines if line.get_color() == colour and line.get_label() == f"{'ReLU' if name == 'relu' else 'tanh'}, rate 0.01"
        ]
        assert line.get_linestyle() == form
        np.testing.assert_array_equal(line.get_ydata(), made.curves[name][0].errors)
    write_png(figure, tmp_path / "figure1.png")
    assert Image.open(tmp_path / "figure1.png").format == "PNG"


def test_shards_are_made_small(made_shards: Path) -> None:
    small = figure1_data.of_shards(str(made_shards), 10)
    assert small.pictures.shape == (10, 32, 32, 3)
    assert small.classes == 4
    shards = figure1_data.ShardSet(made_shards, "train")
    jpeg, label = shards.read(len(shards) - 1)  # evenly spread: from the first to the last
    picture = Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert small.labels[-1] == label
    assert np.abs(np.asarray(picture).astype(int) - small.pictures[-1]).mean() < 3  # the quick decoding is not far from the whole one
    assert len(figure1_data.of_shards(str(made_shards), 10**6).labels) == len(shards)


def test_cifar_in_either_form_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure1_data, "read_cifar", partial(read_cifar, records=FEW))
    forms = [unpacked(tmp_path / "cifar", kind) for kind in ("python", "binary")]
    command = ["--out", tmp_path / "out", *SHORT, "--target", "1", "--pictures", 60]
    first, second = (run_here(main, "--cifar", folder, *command) for folder in forms)
    assert first.stdout.startswith("CIFAR-10: 60 pictures of 10 classes; cpu")
    assert "s training" in first.stdout
    assert second.returncode == 0, second.stderr
    assert "s training" not in second.stdout
    assert first.stdout.splitlines()[-3:] == second.stdout.splitlines()[-3:]


def test_a_run_is_not_trained_twice(made_shards: Path, tmp_path: Path) -> None:
    command = ["--shards", made_shards, "--out", tmp_path, *SHORT, "--target", "1"]
    ran = run_here(main, *command)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("epoch   2") == 2
    found = json.loads((tmp_path / "figure1.json").read_text())
    assert [(curve["activation"], len(curve["errors"])) for curve in found["curves"]] == [("relu", 3), ("tanh", 3)]
    assert set(found["trial_errors_percent"]["tanh"]) == {"0.01", "0.03"}
    for activation, rate in found["rates"].items():
        errors = found["trial_errors_percent"][activation]
        assert errors[f"{rate:g}"] == min(errors.values())
    assert torch.__version__.startswith(found["versions"]["torch"].split("+")[0])
    assert found["threads"] == torch.get_num_threads()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert len(files) == 6
    lost = next(path for path in files if path.parent.name == "curves" and path.name.startswith("tanh"))
    content = json.loads(lost.read_text())["curve"]
    lost.unlink()
    again = run_here(main, *command)
    assert again.stdout.count("s training") == 2  # of the lost curve only
    assert {path for path, at in files.items() if path.stat().st_mtime_ns != at} == {lost}
    assert json.loads(lost.read_text())["curve"]["errors"] == content["errors"]
    one_line(run_here(main, *command, "--pictures", 8), "other pictures", "--out")
    lost.write_text("{")
    one_line(run_here(main, *command), str(lost), "remove it")


def test_ctrl_c_leaves_whole_files(made_shards: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "model.figure1",
        "--shards",
        made_shards,
        "--out",
        tmp_path,
        *SHORT[:4],
        "--epochs",
        "100000",
        "--target",
        "0.001",
    ]
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("seed 0") and "epoch   2" in line:
                break
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert sorted(path.parent.name for path in tmp_path.rglob("*") if path.is_file()) == ["trials"] * 4
    for path in tmp_path.glob("trials/*"):
        assert json.loads(path.read_text())["curve"]["errors"]


def test_bad_input_is_one_line(made_shards: Path, tmp_path: Path) -> None:
    given = ["--shards", made_shards, "--out", tmp_path / "out"]
    for options, word in (
        (["--rates", "0.1,fast"], "--rates must be"),
        (["--rates", "0"], "--rates must be"),
        (["--rates", "0.1,0.1"], "--rates must be"),
        (["--rates", "nan"], "--rates must be"),
        (["--seeds", "1,1"], "--seeds must be"),
        (["--seeds", "9" * 30], "--seeds must be"),
        (["--epochs", 0], "--epochs must be at least 1"),
        (["--trial-epochs", 0], "--trial-epochs must be at least 1"),
        (["--pictures", 0], "--pictures must be at least 1"),
        (["--target", "nan"], "--target must be"),
        (["--rates", "1e20,1e21", "--trial-epochs", "2"], "every rate diverged"),
    ):
        one_line(run_here(main, *given, *options), word)
    one_line(run_here(main, "--shards", tmp_path / "none"), str(tmp_path / "none"))
    one_line(run_here(main, "--cifar", tmp_path / "none"), "is not there")
    one_line(run_here(main, "--cifar", unpacked(tmp_path / "cifar", records=FEW)), "data_batch_1", "10,000")
    (tmp_path / "file").write_text("")
    one_line(run_here(main, "--shards", made_shards, "--out", tmp_path / "file", *SHORT), str(tmp_path / "file"))
    assert run_here(main, "--shards", "a", "--cifar", "b").returncode == 2
