"""The loader benchmark, on the toy: what it counts, what its clock covers, and what it makes of the numbers."""

from __future__ import annotations

import csv
import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import one_line, run_command
from nvidia.dali import fn, types
from PIL import Image

from pipeline.augment import Augmentation, plain_batch
from pipeline.cache import CacheSettings
from pipeline.colour import read_colour_stats
from pipeline.draws import draw
from pipeline.errors import BadSample, InputError
from pipeline.order import order
from pipeline.shards import ShardSet
from tools import bench_gpu, bench_peers, bench_plot
from tools.bench_dali import PREFETCH, Drawn, Form, bare_picture, built, encoded, form
from tools.bench_gpu import Differences, compare_pixels
from tools.bench_kinds import CACHED, FED, dali_kinds, our_kinds, room, share_kinds
from tools.bench_loader import main, own_row
from tools.bench_results import GOALS, GPU_GOALS, RATES, Goal, ratios, table
from tools.bench_rows import SEED, Given, Setup, ahead, clocked, decoded_by_share, loaded, schedule
from tools.peer_samples import Samples

BENCH, CPU, BATCH = "tools/bench_loader.py", torch.device("cpu"), 16


def setting(folder: Path) -> Setup:
    shards = ShardSet(folder, "train")
    return Setup(shards, read_colour_stats(folder, shards.digest, 256), np.array(Samples(folder).labels), BATCH, 1, CPU)


def test_every_row_counts_the_images_asked_for(
    made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 pictures: 40 images are three batches of 16, and the feed's twelve go through four epochs. One of two peers is installed."""
    monkeypatch.setattr(bench_peers, "PYTHON", tmp_path / "no-venv")
    out = tmp_path / "x.json"
    place = ["--shards", str(made_shards), "--work", str(tmp_path / "work"), "--out", str(out)]
    assert main([*place, "--images", "40", "--batch", "16", "--rounds", "2", "--threads", "1", "--peers", "mds,webdataset"]) == 0
    result = json.loads(out.read_text())
    kinds = [*our_kinds(CPU), *dali_kinds(CPU)]
    assert [row["row"] for row in result["rows"]] == [*(kind.key for kind in kinds), "webdataset"]
    for row, kind in zip(result["rows"], [*kinds, None], strict=True):
        assert row["images"] == 2 * 48 * (kind.times if kind else 1), row
        assert row["threads"] == (None if kind and not kind.threads else 1)
        assert row["what"]
        for rate in RATES:
            assert 0 < row[rate]["min"] <= row[rate]["median"] <= row[rate]["max"], row
    webdataset = result["rows"][-1]
    assert (webdataset["whose"], webdataset["section"], webdataset["window_error"]) == ("peer", "uint8 from JPEG", 0)
    assert "replacement" in webdataset["note"]
    assert result["peers"]["left_out"] == ["mds"]
    assert {"webdataset", "torch", "python"} <= set(result["peers"]["versions"]["webdataset"])
    assert {"cpu", "cores"} <= set(result["machine"])
    assert {"dali", "commit"} <= set(result["versions"])
    assert [ratio for ratio in result["ratios"] if (ratio["row"], ratio["of"], ratio["goal"]) == ("ours-uint8", "webdataset", 8)]
    printed, said = capsys.readouterr()
    assert "peer mds is left out: No module named 'streaming'" in said
    assert printed == table(result) + "\n"
    written = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [(row["row"], float(row["images_per_s_median"])) for row in written] == [(r["row"], r["images_per_s"]["median"]) for r in result["rows"]]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    for text in (out.read_text(), out.with_suffix(".csv").read_text(), printed):
        assert str(tmp_path.parent) not in text, "the result names a folder of this machine"
        assert str(made_shards.parent) not in text


@pytest.mark.parametrize(("batches", "an_epoch"), [(2, 3), (3, 3), (4, 3), (7, 1), (32, 10009)])
def test_a_pass_ends_with_an_epoch(batches: int, an_epoch: int) -> None:
    due = schedule(batches, an_epoch)
    assert len(due) == batches
    assert due[0][0] == 0
    assert due[-1][1] == an_epoch - 1
    for (epoch, number), following in pairwise(due):
        assert following == ((epoch, number + 1) if number + 1 < an_epoch else (epoch + 1, 0))


def test_the_clock_covers_the_loader_from_its_start_to_its_end(made_shards: Path) -> None:
    """Its thread begins with the first batch asked for, and has nothing more to do when the last one is in hand. Then all over again."""
    s = setting(made_shards)
    row = loaded(s, out="uint8")
    for batches in (4, 2):
        results, given = row(batches), list[Given]()
        assert not _loader_threads()
        for _ in range(batches):
            given.append(next(results))
            for thread in _loader_threads() if len(given) == batches else []:
                thread.join(10)
        assert not _loader_threads(), "it works ahead of the last batch"
        assert next(results, None) is None
        for batch, (epoch, number) in zip(given, schedule(batches, 3), strict=True):
            assert batch.ids.tolist() == order(SEED, epoch, 48)[number * BATCH : (number + 1) * BATCH].tolist()


def _loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "image-loader"]


def test_what_is_begun_within_the_clock_ends_within_it() -> None:
    begun, ended, most = list[int](), list[int](), 0

    def end(number: int) -> Given:
        nonlocal most
        most = max(most, len(begun) - len(ended))
        ended.append(number)
        return Given(1)

    results = ahead(range(7), begun.append, end)
    assert not begun
    assert len(list(results)) == 7
    assert begun == ended == list(range(7))
    assert most == PREFETCH + 1


def test_a_wrong_label_or_count_is_no_result(made_shards: Path) -> None:
    labels = setting(made_shards).labels
    ids = np.arange(16)
    right, wrong = Given(16, torch.from_numpy(labels[ids]), torch.from_numpy(ids)), Given(16, labels[ids] + 1, ids)
    images, seconds, cpu = clocked(lambda batches: iter([right] * batches), 3, labels)
    assert images == 48
    assert seconds > 0
    assert cpu > 0
    with pytest.raises(RuntimeError, match="label"):
        clocked(lambda batches: iter([right, wrong]), 2, labels)
    for others in (1, 3):
        with pytest.raises(RuntimeError, match="not 2 batches"):
            clocked(lambda batches, others=others: iter([right] * others), 2, labels)  # type: ignore[misc]


def test_a_cached_row_reads_nothing_when_it_is_measured(shards: Path) -> None:
    s, kinds = setting(shards), {kind.key: kind for kind in our_kinds(CPU)}
    cached = [own_row(kinds[f"ours-cached-{name}"], s, 1) for name in ("uint8", "yuv-float32")]
    decoding = own_row(kinds["ours-uint8"], s, 1)
    for tar in shards.glob("train-*.tar"):
        with open(tar, "r+b") as file:
            file.truncate(0)
    for row in cached:
        row.run(CACHED)
        assert row.images == BATCH * CACHED
    with pytest.raises(BadSample):
        decoding.run(1)


def test_a_cache_without_room_is_no_row(made_shards: Path) -> None:
    with pytest.raises(InputError, match=r"48 pictures need 0.01 GB of main memory, only .*fewer samples"):
        room(CacheSettings("host", "rgb", limit_gb=0.005), setting(made_shards))


def test_the_forms_of_plain_dali_do_the_same_work(made_shards: Path) -> None:
    s = setting(made_shards)
    ids = np.arange(8)
    draws, jpegs = draw(SEED, 0, ids, 30), [s.shards.read(int(i))[0] for i in ids]
    colours = draws.normals.astype(np.float32)
    work = form(s.stats, 227, 0.1, "cpu")
    shift = s.stats.shift(draws.normals, "eigenvalue", 0.1)
    windows, finished = plain_batch(jpegs, draws, shift, s.stats.mean_image, Augmentation())

    def graph() -> Any:
        x, y, flip = (fn.external_source(name=name, dtype=types.FLOAT, ndim=0, batch=True) for name in ("x", "y", "flip"))
        normals = fn.external_source(name="normals", dtype=types.FLOAT, ndim=1, batch=True)
        given = Drawn(x, y, fn.cast(flip, dtype=types.INT32), work.shift(normals))
        jpeg = encoded()
        return tuple(what(work, jpeg, given) for what in (bare_picture, Form.uint8, Form.float32_a, Form.float32_b))

    def feed(pipe: Any) -> None:
        pipe.feed_input("jpeg", jpegs)
        for name, values in (("x", draws.x), ("y", draws.y), ("flip", draws.flip), ("normals", colours)):
            pipe.feed_input(name, values.astype(np.float32))

    pipe = built(graph, 8, 1, None, feed)
    feed(pipe)
    pipe.schedule_run()
    whole, uint8, a, b = (np.asarray(output.as_tensor()) for output in pipe.outputs())
    assert whole.shape == (8, 256, 256, 3)
    np.testing.assert_array_equal(uint8, windows)
    np.testing.assert_allclose(a.transpose(0, 3, 1, 2), finished, atol=1e-4)
    np.testing.assert_allclose(b, finished, atol=1e-4)


def test_what_plain_dali_draws_itself(made_shards: Path) -> None:
    """All 30 offsets, edges as often as others, both sides, and shifts of the size that the statistics say."""
    s = setting(made_shards)
    work = form(s.stats, 227, 0.1, "cpu")

    def graph() -> Any:
        drawn = work.drawn()
        return drawn.x, drawn.y, drawn.flip, drawn.shift

    pipe = built(graph, 6000, 1, None)
    pipe.schedule_run()
    x, y, flip, shift = (np.asarray(output.as_tensor()) for output in pipe.outputs())
    for offsets in (x, y):
        counts = np.bincount(offsets.astype(int), minlength=30)
        assert len(counts) == 30
        assert counts.min() > 120, "200 are expected, and 100 at the edges of a rounded uniform draw"
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.1
    assert 0.45 < flip.mean() < 0.55
    expected = 255 * 0.1 * np.sqrt((np.array(s.stats.statistics.eigenvalues)[:, None] * s.stats.statistics.eigenvectors) ** 2).T
    np.testing.assert_allclose(shift.std(axis=0), np.sqrt((expected**2).sum(axis=1)), rtol=0.05)


def summary(row: str, wall: float, cpu: float, batch: int = 128, threads: int | None = 1) -> dict[str, Any]:
    spread = {"images_per_s": {"median": wall, "min": 0, "max": 9e9}, "images_per_cpu_s": {"median": cpu, "min": 0, "max": 9e9}}
    return {"row": row, "section": "feeding", "batch": batch, "threads": threads, **spread}


def test_ratios_are_of_medians_in_the_same_setting() -> None:
    rows = [
        summary("a", 300, 200),
        summary("b", 100, 400),
        summary("a", 900, 50, 256, 2),
        summary("b", 100, 100, 256, 2),
        summary("c", 7, 9, 128, None),
    ]
    found = ratios(rows, (Goal("a", "b", 2.5), Goal("c", None, 60), Goal("a", "missing", 1), Goal("missing", None, 1)))
    assert found == [
        {"row": "a", "of": "b", "batch": 128, "threads": 1, "goal": 2.5, "images_per_s": 3, "images_per_cpu_s": 0.5},
        {"row": "a", "of": "b", "batch": 256, "threads": 2, "goal": 2.5, "images_per_s": 9, "images_per_cpu_s": 0.5},
        {"row": "c", "of": None, "batch": 128, "threads": None, "goal": 60, "images_per_s": 7, "images_per_cpu_s": 9},
    ]
    lines = table({"rows": rows, "ratios": found}).splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["a", "/", "b", "128", "1", "3.00", "0.50", "2.5"],
        ["a", "/", "b", "256", "2", "9.00", "0.50", "2.5"],
        ["c,", "images", "a", "second", "128", "-", "7", "9", "60"],
    ]


def test_every_goal_is_of_rows_that_there_are() -> None:
    known = {*(kind.key for kind in (*our_kinds(CPU), *dali_kinds(CPU))), *bench_peers.PEERS, None}
    for goal in (*GOALS, *GPU_GOALS):
        assert {goal.row, goal.of} <= known, goal


def test_pixels_under_load(made_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's decoder stands in for a GPU's: the same pictures, whatever else runs."""
    monkeypatch.setattr(bench_gpu, "MATRIX", 64)
    found = compare_pixels(setting(made_shards), 0.5, batches=5)
    assert found["pixels"] == 5 * BATCH * 256 * 256
    assert found["from_the_cpu"] == found["from_itself_at_rest"] == {"differ": 0, "largest": 0}
    said = table({"rows": [], "ratios": [], "pixels_under_load": [found]})
    assert said.endswith("of 5,242,880 pixels 0 differ from the CPU's (by 0 at most), 0 from its own at rest (by 0)")
    counted, pictures = Differences(CPU), torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    other = pictures.clone()
    other[0, 1, 2] = torch.tensor([0, 7, 255])
    other[1, 3, 3, 0] = 3
    counted.add(pictures, other)
    counted.add(other, other)
    assert (counted.pixels, counted.result()) == (64, {"differ": 2, "largest": 255})


def test_rows_of_a_gpu(made_shards: Path) -> None:
    """What can be said of them without one: which they are, and that a share of the engines counts its images."""
    cuda = torch.device("cuda:0")
    ours = {kind.key: kind.what for kind in our_kinds(cuda)}
    assert "device's memory" in ours["ours-cached-float32"]
    assert "hw_decoder_load 0.65" in dali_kinds(cuda)[0].what
    assert [kind.key for kind in share_kinds([0, 0.25, 1])] == ["ours-decode-share-0", "ours-decode-share-0.25", "ours-decode-share-1"]
    s = setting(made_shards)
    assert clocked(decoded_by_share(s, 0.25), 4, s.labels)[0] == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "0"), "--batch must be different numbers from 1 up"),
        (("--threads", "1,1"), "--threads must be different numbers from 1 up"),
        (("--rounds", "0"), "--rounds must be at least 1, not 0"),
        (("--peers", "ffcv"), "--peers must be all, none, or different ones of ffcv-jpeg, "),
        (("--hw-loads", "0,1"), "--hw-loads is of a GPU's JPEG engines"),
        (("--device", "cuda"), "--device cuda, but torch sees no GPU"),
        (("--out", "x.txt"), "--out x.txt cannot be written"),
        (("--batch", "16,49"), "batch 49 is larger than the 48 samples"),
    ],
)
def test_a_wrong_argument_is_one_line(
    made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], words: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--shards", str(made_shards), "--out", str(tmp_path / "x.json"), *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_shards_is_one_line(tmp_path: Path) -> None:
    one_line(run_command(BENCH, "--shards", tmp_path / "none", "--out", tmp_path / "x.json"), "none is not a folder", "tools/make_shards.py")


@pytest.mark.parametrize("content", ["", "[1]", '{"rows": []}'])
def test_a_plot_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        bench_plot.main(["--result", str(tmp_path / "x.json"), "--out", str(tmp_path / "x.png")])
    assert stopped.value.code == 2
    assert "x.json is no result of tools/bench_loader.py" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_fast_rows_take_longer_passes() -> None:
    times = {kind.key: kind.times for kind in (*our_kinds(CPU), *dali_kinds(CPU))}
    assert times["ours-feed"] == FED
    assert times["ours-cached-uint8"] == CACHED
    assert times["ours-uint8"] == times["dali-decode"] == 1
