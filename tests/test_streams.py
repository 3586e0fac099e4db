"""make_shards from sources that can only be read one picture behind the other, and to a URL: kills, resumes, the same shards."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, files_of, one_line, run_command, run_here
from source_fixtures import make_kaggle, make_parquet, make_targz

from pipeline import Augmentation, ImageLoader
from pipeline.errors import InputError
from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet
from tools import check_shards, compute_pca, make_shards, shard_upload, stream_pieces

STREAMS = {"parquet": make_parquet, "tar.gz": make_targz}


def samples(folder: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """By split and key: SHA-256 of the picture, and label."""
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for split in read_manifest(folder)[0].splits:
        shards = ShardSet(folder, split)
        read = [(shards.place(i)[1], *shards.read(i)) for i in range(len(shards))]
        found[split] = {key: (hashlib.sha256(jpeg.tobytes()).hexdigest(), label) for key, jpeg, label in read}
    return found


def words(source: Path, out: object, *more: object, workers: int = 2) -> list[object]:
    return ["--source", source, "--out", out, "--shard-size", 2, "--size", 32, "--workers", workers, *more]


def make(source: Path, out: object, *more: object) -> subprocess.CompletedProcess[str]:
    """make_shards in this process, with one worker."""
    return run_here(make_shards.main, *words(source, out, *more, workers=1))


def made(source: Path, out: object, *more: object) -> str:
    """The same, to its end; what it said."""
    result = make(source, out, *more)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of files that can be read anywhere; not to be changed by a test."""
    source = tmp_path_factory.mktemp("folders") / "source"
    make_kaggle(source)
    return source


@pytest.fixture(scope="module")
def of_folders(folders: Path) -> Path:
    """Its shards, as a user makes them; not to be changed by a test."""
    result = run_command("tools/make_shards.py", *words(folders, folders.parent / "shards"))
    assert result.returncode == 0, result.stderr
    return folders.parent / "shards"


@pytest.fixture(scope="module", params=STREAMS)
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source that is a stream, and its shards, made undisturbed; not to be changed by a test."""
    place = tmp_path_factory.mktemp("stream")
    STREAMS[request.param](place / "source")
    made(place / "source", place / "shards")
    return place / "source", place / "shards"


def test_a_stream_gives_the_pictures_of_folders(stream: tuple[Path, Path], of_folders: Path, tmp_path: Path) -> None:
    """The same JPEGs under the same keys and labels, in shards of a mixed order, and nothing else is left."""
    found = samples(stream[1])
    assert found == samples(of_folders)
    assert [label for _, label in found["test"].values()] == [-1, -1]
    names = set(files_of(stream[1]))
    assert names == {f"{split}-{k:06d}.{e}" for split, n in (("train", 3), ("val", 2), ("test", 1)) for k in range(n) for e in ("tar", "idx")} | {
        "manifest.json",
        "sums.npz",
    }
    computed = run_here(compute_pca.main, "--shards", shutil.copytree(stream[1], tmp_path / "shards"))
    assert "before encoding" in computed.stdout, computed.stderr


def test_any_source_can_be_read_in_order(folders: Path, of_folders: Path, tmp_path: Path) -> None:
    """The same bytes as when it is read anywhere."""
    made(folders, tmp_path / "in-order", "--in-order")
    assert files_of(tmp_path / "in-order") == files_of(of_folders)


SMALL_PIECES = "import sys, tools.stream_pieces as s; s.PIECE = 2; from tools.make_shards import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("seed", range(10 if os.environ.get("SOAK") else 1))
def test_a_stream_killed_and_started_again(stream: tuple[Path, Path], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two pictures: killed when the first is there, when the first shard is, and at once. The same bytes as undisturbed."""
    out, kills = tmp_path / "out", 0
    command = [sys.executable, "-c", SMALL_PIECES, *(str(word) for word in words(stream[0], out))]
    for awaited in (".train-*.piece", "train-*.tar"):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not any(out.glob(awaited)):
            time.sleep(0.001 * (1 + seed))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    monkeypatch.setattr(stream_pieces, "PIECE", 2)
    made(stream[0], out)
    assert files_of(out) == files_of(stream[1])


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """make_shards to a URL keeps its state below tmp_path, and tries again soon."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shard_upload, "PAUSES", (0.1, 0.1))


def test_shards_at_a_url(folders: Path, of_folders: Path, tmp_path: Path, impatient: None) -> None:
    """As those in a folder, byte for byte; the state is kept beside until all is sent."""
    store, in_order = tmp_path / "store", tmp_path / "in-order"
    made(folders, store.as_uri())
    assert files_of(store) == files_of(of_folders)
    assert "finished already" in made(folders, store.as_uri())
    made(folders, in_order.as_uri(), "--in-order")
    assert files_of(in_order) == files_of(of_folders)
    one_line(make(folders, "http://127.0.0.1:9/x"), "nothing can be written over http")


def test_what_was_sent_is_not_made_again(folders: Path, of_folders: Path, tmp_path: Path, impatient: None) -> None:
    """Killed with shards sent, and with all of them sent but the manifest, which a folder in the way keeps back."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").mkdir()
    command = [sys.executable, "tools/make_shards.py", *(str(word) for word in words(folders, store.as_uri()))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(store.glob("*.tar")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    result = make(folders, store.as_uri())
    assert result.returncode == 2
    one_line(result, "cannot be sent")
    sent = {path.name: path.stat().st_mtime_ns for path in store.glob("*.tar")}
    (store / "manifest.json").rmdir()
    made(folders, store.as_uri())
    assert len(sent) == 6
    assert {name: (store / name).stat().st_mtime_ns for name in sent} == sent
    assert files_of(store) == files_of(of_folders)
    assert not list((tmp_path / ".cache" / "make_shards").iterdir())


def test_a_store_that_somebody_else_filled(folders: Path, tmp_path: Path, impatient: None) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "train-000000.tar").write_bytes(b"somebody's")
    one_line(make(folders, store.as_uri()), "holds tars that this program did not begin")
    assert (store / "train-000000.tar").read_bytes() == b"somebody's"


@pytest.mark.parametrize(("begun", "then"), [((), ("--in-order",)), (("--in-order",), ())])
def test_another_order_than_the_one_begun_in(begun: tuple[str, ...], then: tuple[str, ...], folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "tools/make_shards.py", *(str(word) for word in words(folders, out, *begun))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (out / ".progress.jsonl").exists():
        time.sleep(0.001)
    while process.poll() is None and (out / ".progress.jsonl").stat().st_size == 0:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    one_line(make(folders, out, *then), "was begun with", "--in-order")


def test_a_test_split_without_labels_loads_and_is_not_evaluated(of_folders: Path, tmp_path: Path) -> None:
    out = shutil.copytree(of_folders, tmp_path / "out")
    assert run_here(compute_pca.main, "--shards", out).returncode == 0
    loader = ImageLoader(out, "test", batch=2, crop=16)
    (batch,) = list(loader)
    assert batch.labels.tolist() == [-1, -1]
    checked = run_here(check_shards.main, "--shards", out)
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_pictures_with_their_aspect(folders: Path, tmp_path: Path) -> None:
    """Checked as what they are, and taken with a scale alone."""
    out = tmp_path / "out"
    made(folders, out, "--resize", "shorter")
    checked = run_here(check_shards.main, "--shards", out, "--decode", "--workers", 1)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert run_here(compute_pca.main, "--shards", out).returncode == 0
    with pytest.raises(InputError, match=r"whole pictures, of any aspect.*data\.scale"):
        ImageLoader(out, "train", batch=2, crop=16)
    scaled = Augmentation(crop=16, mean_window="channel", scale=(20, 40))
    assert next(iter(ImageLoader(out, "train", batch=2, augmentation=scaled))).images.shape == (2, 3, 16, 16)


def test_pictures_with_all_their_chroma(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(folders, out, "--subsampling", "4:4:4")
    assert run_here(compute_pca.main, "--shards", out).returncode == 0
    checked = run_here(check_shards.main, "--shards", out, "--decode", "--workers", 1)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    (batch,) = list(ImageLoader(out, "val", batch=4, crop=16))
    assert batch.images.shape == (4, 3, 16, 16)
