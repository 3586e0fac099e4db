"""The benchmark's other loaders. Only webdataset with Pillow runs in our own environment, so it stands for all of them here."""

from __future__ import annotations

import ast
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, torchvision_loads
from PIL import Image

from pipeline.errors import InputError
from pipeline.shards import ShardSet
from tools import bench_peers
from tools.bench_peers import PEERS, NotInstalled, Peer, main, start
from tools.peer_formats import decoded, image_folder, prepared
from tools.peer_loaders import LOADERS, Batch, Loader, Setup, collate, window
from tools.peer_passes import Passes, cpu_seconds, window_error
from tools.peer_samples import Samples

BATCH, CROP = 8, 227


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether or not the peers are installed on this machine, these tests run without them."""
    monkeypatch.setattr(bench_peers, "PYTHON", tmp_path / "no-venv")


def below(process: int) -> set[int]:
    """Processes whose parent is `process`."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return {int(line) for line in listed.stdout.split()}


def test_a_pass_counts_its_images_and_ends_with_its_process(made_shards: Path, tmp_path: Path) -> None:
    peer = start("webdataset", made_shards, tmp_path / "work", BATCH, threads=1)
    try:
        assert "replacement" in peer.note
        assert peer.window_error == 0, "Pillow on both sides"
        assert {"python", "torch", "webdataset"} <= set(peer.versions)
        for batches in (3, 1):
            images, seconds, cpu = peer.run(batches)
            assert images == batches * BATCH
            assert seconds > 0
            assert cpu > 0
        workers = below(peer._process.pid)
        assert workers, "DataLoader has a worker"
    finally:
        peer.close()
    assert peer._process.returncode == 0
    assert not [worker for worker in workers if Path("/proc", str(worker)).exists()]


def test_a_killed_peer_is_one_line(made_shards: Path, tmp_path: Path) -> None:
    peer = start("webdataset", made_shards, tmp_path / "work", BATCH, threads=1)
    peer._process.send_signal(signal.SIGKILL)
    with pytest.raises(InputError, match=r"^peer webdataset: its process ended with code -9: .*webdataset-8-1\.log$"):
        peer.run(1)
    peer.close()


def test_a_failing_peer_says_why(shards: Path, tmp_path: Path) -> None:
    for tar in shards.glob("train-*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\x00"))  # no decoder reads these
    with pytest.raises(InputError, match=r"^peer webdataset: its process ended with code 1: \S+Error: .*cannot identify image.*$"):
        start("webdataset", shards, tmp_path / "work", BATCH, threads=1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [({"images": 16, "labels_ok": False}, "16 images of 16, labels wrong"), ({"images": 15, "labels_ok": True}, "15 images of 16, labels right")],
)
def test_a_peer_that_does_not_do_the_work_is_one_line(tmp_path: Path, answer: dict[str, object], words: str) -> None:
    said = {"seconds": 1.0, "cpu_seconds": 1.0, **answer}
    program = f"import json; input(); print(json.dumps({said!r}), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peer = Peer("mds", process, tmp_path / "log", BATCH)
    with pytest.raises(InputError, match=f"peer mds did not do the work: {words}"):
        peer.run(2)
    peer.close()
    assert process.returncode is not None


def test_the_table_names_who_is_left_out(made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--shards", str(made_shards), "--work", str(tmp_path / "work")]
    assert main([*place, "--batch", "8", "--threads", "1", "--rounds", "2", "--images", "10", "--peers", "ffcv-raw,webdataset"]) == 0
    out, err = capsys.readouterr()
    assert err == "peer ffcv-raw is left out: No module named 'ffcv'; install the peers with: make peers\n"
    header, row = out.splitlines()
    assert "images/CPU-s" in header
    assert row.startswith(PEERS["webdataset"])
    assert "replacement" in row


def test_every_other_peer_is_named_by_the_library_that_is_missing(made_shards: Path, tmp_path: Path) -> None:
    setup = Setup(Samples(made_shards), tmp_path, BATCH, 1, CROP, (0, 0, 0))
    libraries = {"ffcv": "ffcv", "webdataset": "torchvision", "imagefolder": "torchvision", "spdl": "spdl", "litdata": "litdata", "mds": "streaming"}
    there = {"webdataset", *([name for name in PEERS if libraries[name.split("-")[0]] == "torchvision"] if torchvision_loads() else [])}
    for name in set(PEERS) - there:
        with pytest.raises(ModuleNotFoundError) as missing:
            LOADERS[name](setup)
        assert missing.value.name == libraries[name.split("-")[0]], name
    with pytest.raises(NotInstalled, match="peer mds is left out"):
        start("mds", made_shards, tmp_path / "work", BATCH, threads=1)


def test_what_runs_in_the_peers_environment_imports_nothing_of_ours() -> None:
    assert set(LOADERS) == set(PEERS)
    for path in (ROOT / "tools").glob("peer_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            for name in names:
                assert not str(name).startswith(("pipeline", "model", "tools.bench")), f"{path} imports {name}"
                assert not str(name).startswith("tools.") or str(name).startswith("tools.peer_"), f"{path} imports {name}"


def test_samples_are_those_of_the_shards(made_shards: Path) -> None:
    samples, shards = Samples(made_shards), ShardSet(made_shards, "train")
    assert len(samples) == len(shards)
    for sample in range(len(shards)):
        jpeg, label = shards.read(sample)
        assert (samples.jpeg(sample), samples.labels[sample], samples.places[sample].key) == (jpeg.tobytes(), label, shards.place(sample)[1])


def test_a_format_is_made_once_and_of_the_same_bytes(made_shards: Path, tmp_path: Path) -> None:
    samples = Samples(made_shards)
    root = prepared(samples, tmp_path, "imagefolder", image_folder)
    for sample, label in enumerate(samples.labels):
        assert (root / f"{label:06d}" / f"{sample:09d}.jpg").read_bytes() == samples.jpeg(sample)
    shutil.rmtree(root / "000000")
    assert prepared(samples, tmp_path, "imagefolder", image_folder) == root
    assert not (root / "000000").exists(), "it was there, so it was not made again"
    assert [path.name for path in tmp_path.iterdir()] == [root.name], "no leftovers"


def test_a_format_cut_short_is_made_anew(made_shards: Path, tmp_path: Path) -> None:
    def half(samples: Samples, out: Path) -> None:
        image_folder(samples, out)
        raise KeyboardInterrupt

    samples = Samples(made_shards)
    with pytest.raises(KeyboardInterrupt):
        prepared(samples, tmp_path, "imagefolder", half)
    root = prepared(samples, tmp_path, "imagefolder", image_folder)
    assert len(list(root.rglob("*.jpg"))) == len(samples)


def test_the_picture_check_tells_windows_from_others() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    for view in (picture[3:33, 7:37], picture[10:40, 0:30][:, ::-1]):
        assert window_error(view, picture) == 0
        assert window_error(view[..., ::-1], picture) > 20, "BGR"
    assert window_error(picture[:30, :30].transpose(1, 0, 2), picture) > 20
    windows = [window(picture, 30) for _ in range(200)]
    assert all(window_error(view, picture) == 0 for view in windows[:10])
    assert len({view.tobytes() for view in windows}) > 100, "places and flips are drawn"


def test_a_picture_is_decoded_to_rgb() -> None:
    for mode in ("RGB", "L"):
        file = io.BytesIO()
        Image.new(mode, (4, 6), "white").save(file, "JPEG")
        assert decoded(file.getvalue()).shape == (6, 4, 3)


def epochs(samples: Samples, length: int, began: list[int], shift: int = 0) -> Loader:
    """A loader of whole batches in order, its labels those of the sample `shift` further on."""

    def epoch() -> Iterator[Batch]:
        began.append(len(began))
        for number in range(length):
            ids = [(number * BATCH + i) % len(samples) for i in range(BATCH)]
            rows = [(decoded(samples.jpeg(i))[:CROP, :CROP], samples.labels[(i + shift) % len(samples)], i) for i in ids]
            yield collate(rows)

    return Loader(epoch, length, "")


def test_a_pass_lies_within_an_epoch_where_it_fits(made_shards: Path, tmp_path: Path) -> None:
    """At one thread 5 batches warm up: of 12 in an epoch the first pass takes 8 beside the one looked at, so that the second needs a new epoch."""
    setup, began = Setup(Samples(made_shards), tmp_path, BATCH, 1, CROP, (0, 0, 0)), list[int]()
    passes = Passes(epochs(setup.samples, 12, began), setup)
    assert passes.error() == 0
    answer = passes.run(3)
    assert (answer["images"], answer["labels_ok"], answer["distinct"], len(began)) == (24, True, 24, 1)
    passes.run(3)
    assert len(began) == 2
    assert passes.run(20)["images"] == 160, "longer than an epoch: it goes through several"
    assert len(began) == 5


def test_a_wrong_label_is_seen(made_shards: Path, tmp_path: Path) -> None:
    setup = Setup(Samples(made_shards), tmp_path, BATCH, 1, CROP, (0, 0, 0))
    assert not Passes(epochs(setup.samples, 12, [], shift=1), setup).run(2)["labels_ok"]


def test_normalised_pictures_are_checked_by_their_mean(made_shards: Path, tmp_path: Path) -> None:
    setup = Setup(Samples(made_shards), tmp_path, BATCH, 1, CROP, (120.0, 110.0, 100.0))
    plain = epochs(setup.samples, 12, [])

    def epoch() -> Iterator[Batch]:
        for images, labels, ids in plain.epoch():
            yield images - torch.tensor(setup.mean), labels, ids

    assert Passes(Loader(epoch, 12, ""), setup).error() == pytest.approx(0, abs=1e-4)


def test_cpu_seconds_count_child_processes_alive_and_ended() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True); input()"
    before = cpu_seconds(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "done\n"
    alive = cpu_seconds(os.getpid())
    assert alive - before >= 0.25
    child.communicate("\n")
    assert cpu_seconds(os.getpid()) - before >= alive - before - 0.02
