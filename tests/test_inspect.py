"""python -m pipeline.inspect: its numbers are those of the shards, its advice follows from its speeds, faults are named in a line."""

from __future__ import annotations

import io
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import one_line, run_command
from PIL import Image

from model.arguments import read_arguments
from model.recipe import read_recipe
from pipeline import ImageLoader, InputError, inspect_shards
from pipeline.cache import Pixels
from pipeline.colour import read_colour_stats
from pipeline.contact_sheet import _caption, _letters, choose, sheet_size, write_sheet
from pipeline.inspect import look, main, say_classes
from pipeline.inspect_shards import near_shards, only_first
from pipeline.inspect_speed import Speeds, _Stages, rates_of, thread_steps
from pipeline.inspect_storage import measure_storage
from pipeline.manifest import ClassEntry, Split, write_manifest
from pipeline.shards import ShardSet
from pipeline.tarshard import write_shard

Inspect = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """The command in this process: to import torch takes longer than all that is tested. What it printed, and its exit code."""

    def run(folder: Any, *options: object) -> subprocess.CompletedProcess[str]:
        arguments = ["--shards", *(str(argument) for argument in (folder, *options))]
        try:
            code: Any = main(arguments)
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run


def line_of(text: str, name: str) -> str:
    """The rest of the one line that begins so."""
    found = [line.strip().removeprefix(name).strip() for line in text.splitlines() if line.strip().startswith(name)]
    assert len(found) == 1, (name, text)
    return found[0]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", text)]


def test_what_it_says_of_a_set(made_shards: Path, tmp_path: Path) -> None:
    """As a user calls it, the sheet in the present folder."""
    sheet = tmp_path / "inspect.png"
    result = run_command("-m", "pipeline.inspect", "--shards", made_shards, "--no-speed", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sizes = [path.stat().st_size for path in made_shards.glob("train-*.tar")]
    least, median, most = min(sizes) / 1e3, float(np.median(sizes)) / 1e3, max(sizes) / 1e3
    assert numbers(line_of(result.stdout, "train")) == pytest.approx([48, 6, sum(sizes) / 1e3, sum(sizes) / 48e3, least, median, most], abs=0.051)
    assert numbers(line_of(result.stdout, "val"))[:2] == [20, 3]
    assert line_of(result.stdout, "classes") == "4, 12 training pictures each"
    assert line_of(result.stdout, "rejected files") == "0"
    shards = ShardSet(made_shards, "train")
    jpegs = [len(shards.read(sample)[0]) / 1e3 for sample in range(48)]
    assert numbers(line_of(result.stdout, "JPEG")) == pytest.approx([np.mean(jpegs), min(jpegs), max(jpegs)], abs=0.051)
    assert numbers(line_of(result.stdout, "cache needs"))[0] == pytest.approx(48 * 256 * 256 * 3 / 1e9, abs=0.005)
    assert line_of(result.stdout, "colour statistics").startswith("of 48 pictures")
    assert "Recommendation" not in result.stdout
    with Image.open(sheet) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", sheet_size(48))


def test_the_recommendation_is_made_of_the_numbers_above_it(inspect: Inspect, made_shards: Path) -> None:
    result = inspect(made_shards, "--seconds", "0.05", "--no-sheet")
    assert result.returncode == 0, result.stderr
    threads = numbers(line_of(result.stdout, "decoding threads"))
    stages = {name: numbers(line_of(result.stdout, name)) for name in ("+ decode the crop's window", "+ mirror, uint8 out: ImageLoader")}
    float32 = numbers(line_of(result.stdout, "+ mean, colour, float32 out").removeprefix("32"))
    ahead = numbers(line_of(result.stdout, "ImageLoader, float32 out"))
    assert all(len(rates) == len(threads) and min(rates) > 0 for rates in [*stages.values(), float32])
    advised = re.search(r"Threads: (\d+), prefetch: (\d) .* gives ([\d,]+) images/s", result.stdout)
    assert advised, result.stdout
    best, prefetch, rate = (int(text.replace(",", "")) for text in advised.groups())
    assert float32[threads.index(best)] >= 0.95 * max(float32) - 1
    assert rate == ahead[(1, 2, 4).index(prefetch)] >= max(ahead[1:]) / 1.1 - 1
    assert "Order: global; the files" in result.stdout  # half a megabyte fits into any memory
    command = result.stdout.splitlines()[-1].split()
    given = read_arguments(command[3:])  # after python -m model.train
    assert (given.shards, given.threads) == (str(made_shards), best)
    assert read_recipe("alexnet", given.set).data.cache == re.search(r"Cache: (\w+)", result.stdout)[1]  # type: ignore[index]


def test_of_shards_at_a_url_only_the_first_are_fetched(inspect: Inspect, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without colour statistics all but these is known."""
    (shards / "pca.json").unlink()
    monkeypatch.setattr(inspect_shards, "NEAR_REMOTE", 10)
    result = inspect(f"file://{shards}", "--local", tmp_path / "local", "--seconds", "0.02", "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    assert numbers(line_of(result.stdout, "train"))[:2] == [48, 6]
    assert "compute_pca" in line_of(result.stdout, "colour statistics")
    assert "in a sample of 16" in result.stdout
    assert "the first 16 training pictures" in result.stdout
    assert numbers(line_of(result.stdout, "float32 out, kept as rgb"))[0] > 0
    assert numbers(line_of(result.stdout, "fetched from the store"))[0] > 0
    assert "one sample at a time" not in result.stdout
    assert len(list((tmp_path / "local").rglob("train-*.tar"))) == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == sheet_size(16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shards", "nowhere"], ["nowhere is not a folder", "make_shards"]),
        (["--shards", "tests"], ["tests holds no shards"]),
        (["--device", "cuda"], ["no GPU", "--device cpu"]),
        (["--seconds", "0"], ["--seconds 0"]),
        (["--sheet", "nowhere/sheet.png"], ["nowhere/sheet.png cannot be written"]),
    ],
)
def test_what_cannot_be_used_is_one_line(inspect: Inspect, made_shards: Path, options: list[str], words: list[str]) -> None:
    result = inspect(made_shards, "--no-speed", *options)
    one_line(result, *words)
    assert result.returncode == 2


def test_a_bad_sample_is_counted_and_named(inspect: Inspect, shards: Path, tmp_path: Path) -> None:
    path, key, offset = ShardSet(shards, "train").place(20)
    content = bytearray(path.read_bytes())
    content[offset + 700] ^= 1
    path.write_bytes(content)
    result = inspect(shards, "--no-speed", "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 1
    one_line(result, path.name, key, "CRC-32C")
    assert line_of(result.stdout, "bad samples").startswith("1 of the 48")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == sheet_size(47)


def only_train(folder: Path, shards: ShardSet, ids: list[int]) -> ShardSet:
    """A set of one shard with these samples of another."""
    folder.mkdir()
    samples = []
    for sample in ids:
        jpeg, label = shards.read(sample)
        samples.append((shards.place(sample)[1], jpeg.tobytes(), label))
    written = write_shard(folder / "train-000000.tar", samples)
    facts = {key: value for key, value in vars(written).items() if key != "index_sha256"}
    split = Split(samples=len(ids), shards=({"name": "train-000000.tar", **facts},))
    write_manifest(folder, shards.manifest.model_copy(update={"splits": {"train": split}}))
    return ShardSet(folder, "train")


def test_fewest_and_most(made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ShardSet(made_shards, "train")
    labels = np.array([shards.read(sample)[1] for sample in range(48)])
    ids = [*np.flatnonzero(labels == 0)[:3], *np.flatnonzero(labels == 2)[:7], *np.flatnonzero(labels == 1)[:5], *np.flatnonzero(labels == 3)[:5]]
    some = only_train(tmp_path / "some", shards, [int(sample) for sample in ids])
    looked = look(some, len(some))
    assert looked.labels[np.argsort(looked.ids)].tolist() == labels[ids].tolist()
    say_classes(some.manifest, looked)
    said, wnids = capsys.readouterr().out, [entry.wnid for entry in some.manifest.classes]
    assert line_of(said, "fewest").split()[:2] == ["3", wnids[0]]
    assert line_of(said, "most").split()[:2] == ["7", wnids[2]]
    part = look(some, 10)
    assert not part.all
    say_classes(some.manifest, part)
    assert "in a sample of 10" in capsys.readouterr().out


def test_the_sheet_takes_as_many_classes_as_it_can() -> None:
    generator = np.random.default_rng(0)
    labels = np.sort(generator.integers(0, 300, 5000))
    at = generator.permutation(5000)
    ids, labels = np.arange(5000)[at] + 7, labels[at]
    by_id = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    chosen = [by_id[sample] for sample in choose(ids, labels).tolist()]
    assert len(set(chosen)) == 48
    assert chosen == sorted(chosen)
    assert chosen[0] < 7
    assert chosen[-1] > 292
    few = [by_id[sample] for sample in choose(ids[labels < 5], labels[labels < 5]).tolist()]
    assert sorted(np.bincount(few).tolist()) == [9, 9, 10, 10, 10]
    assert len(set(choose(ids[:5], labels[:5]).tolist())) == 5


def test_the_sheet_shows_the_pictures(made_shards: Path, tmp_path: Path) -> None:
    shards = ShardSet(made_shards, "train")
    write_sheet(tmp_path / "sheet.png", shards, np.array([3]), "a title that is far too long for this " * 9, "a line")
    with Image.open(tmp_path / "sheet.png") as sheet:
        tile = np.asarray(sheet.convert("RGB"))[80 : 80 + 148, 22 : 22 + 148]
    picture = Image.open(io.BytesIO(shards.read(3)[0].tobytes())).resize((148, 148), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(tile, np.asarray(picture))


def test_thread_steps() -> None:
    assert [thread_steps(cores) for cores in (1, 2, 3, 12, 16)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 12], [1, 2, 4, 8, 16]]
    assert thread_steps(192) == [1, 4, 16, 64, 192]


def test_a_rate_gives_nothing_away() -> None:
    """Images over time of whole passes; those that warm up are not counted, and none is longer than allowed."""
    asked: list[int] = []

    def one_pass(batches: int) -> int:
        time.sleep(0.002 * batches)  # never shorter
        asked.append(batches)
        return 10 * batches

    assert 0 < rates_of({5: (one_pass, 7)}, 0.1)[5] <= 5000
    assert max(asked) == 7
    assert min(asked[1:]) == 4
    asked.clear()
    rates_of({5: (one_pass, 1)}, 0.1)
    assert set(asked) == {1}


@pytest.fixture
def stages(shards: Path) -> Iterator[_Stages]:
    """Of the toy's first four shards, 32 samples, in batches of 8."""
    whole = ShardSet(shards, "train")
    assert near_shards(whole, 25) == 4
    with only_first(whole, 4, None) as folder:
        assert len(ShardSet(folder, "train")) == 32
        speeds = Speeds(torch.device("cpu"), batch=8, crop=227, float32={1: 1.0})
        yield _Stages(folder, speeds, 0.01, print)


def test_every_pass_is_of_the_batches_asked_for(stages: _Stages) -> None:
    for one_pass, an_epoch in (stages._reading(), stages._decoding(1), stages._loading(threads=1), stages._loading(threads=1, out="uint8")):
        assert an_epoch == 4
        assert [one_pass(batches) for batches in (1, 4, 3)] == [8, 32, 24]


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_the_cache_is_full_when_it_is_measured(stages: _Stages, shards: Path, pixels: Pixels) -> None:
    uncached, _ = stages._loading(threads=1)
    cached, most = stages._cached(pixels)
    for path in shards.glob("train-*.tar"):
        path.write_bytes(b"")
    assert cached(most) == 32
    with pytest.raises(InputError):
        uncached(1)


def test_statistics_of_the_links_are_those_of_the_set(made_shards: Path) -> None:
    shards = ShardSet(made_shards, "train")
    stats = read_colour_stats(made_shards, shards.digest, 256)
    with only_first(shards, 2, stats) as folder:
        found = ImageLoader(folder, "train", batch=4, threads=1)._stats
        assert found.statistics.eigenvalues == stats.statistics.eigenvalues
        np.testing.assert_array_equal(found.mean_image, stats.mean_image)
    assert not folder.exists()


def test_storage_is_measured(made_shards: Path) -> None:
    found = measure_storage(ShardSet(made_shards, "train"), 0.05)
    assert min(found.sequential, found.single, found.again) > 0
    assert found.sample_bytes == sum(path.stat().st_size for path in made_shards.glob("train-*.tar")) / 48


def test_captions_have_letters_that_the_font_has() -> None:
    named = [("n01", "café crème, drink"), ("n01", "犬"), ("犬", "犬"), ("n01", "")]
    entries = [ClassEntry(index=3, wnid=wnid, ilsvrc_id=None, words=words) for wnid, words in named]
    assert [_letters(_caption(entry)) for entry in entries] == ["cafe creme", "n01", "class 3", "n01"]
