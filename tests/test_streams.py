"""make_shards from sources that can only be read one picture behind the other, and to a URL: kills, resumes, the same shards."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, files_of, one_line, run_command
from source_fixtures import Pictures, make_kaggle, make_parquet, make_targz

from pipeline import ImageLoader
from pipeline.errors import InputError
from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet

STREAMS = {"parquet": make_parquet, "tar.gz": make_targz}


def samples(folder: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """By split and key: SHA-256 of the picture, and label."""
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for split in read_manifest(folder)[0].splits:
        shards = ShardSet(folder, split)
        read = [(shards.place(i)[1], *shards.read(i)) for i in range(len(shards))]
        found[split] = {key: (hashlib.sha256(jpeg.tobytes()).hexdigest(), label) for key, jpeg, label in read}
    return found


def command(source: Path, out: object, *more: object) -> list[object]:
    return ["tools/make_shards.py", "--source", source, "--out", out, "--shard-size", 2, "--size", 32, "--workers", 2, *more]


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_stream_gives_the_pictures_of_folders(make: Callable[[Path], dict[str, Pictures]], tmp_path: Path) -> None:
    """The same JPEGs under the same keys and labels, in shards of a mixed order, and nothing else is left."""
    make(tmp_path / "stream")
    make_kaggle(tmp_path / "folders")
    for name in ("stream", "folders"):
        made = run_command(*command(tmp_path / name, tmp_path / f"{name}-shards"))
        assert made.returncode == 0, made.stderr
    stream, folders = samples(tmp_path / "stream-shards"), samples(tmp_path / "folders-shards")
    assert stream == folders
    assert [label for _, label in stream["test"].values()] == [-1, -1]
    names = set(files_of(tmp_path / "stream-shards"))
    assert names == {f"{split}-{k:06d}.{e}" for split, n in (("train", 3), ("val", 2), ("test", 1)) for k in range(n) for e in ("tar", "idx")} | {
        "manifest.json",
        "sums.npz",
    }
    computed = run_command("tools/compute_pca.py", "--shards", tmp_path / "stream-shards")
    assert "before encoding" in computed.stdout, computed.stderr


def test_any_source_can_be_read_in_order(tmp_path: Path) -> None:
    """The same bytes as when it is read anywhere."""
    make_kaggle(tmp_path / "source")
    for name, more in (("anywhere", ()), ("in-order", ("--in-order",))):
        made = run_command(*command(tmp_path / "source", tmp_path / name, *more))
        assert made.returncode == 0, made.stderr
    assert files_of(tmp_path / "in-order") == files_of(tmp_path / "anywhere")


@pytest.mark.parametrize("seed", range(10 if os.environ.get("SOAK") else 1))
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_stream_killed_and_started_again(
    make: Callable[[Path], dict[str, Pictures]], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of two pictures: killed when the first is there, when the first shard is, and at once. The same bytes as undisturbed."""
    make(tmp_path / "source")
    small = ["-c", "import sys, tools.stream_pieces as s; s.PIECE = 2; from tools.make_shards import main; sys.exit(main(sys.argv[1:]))"]
    assert run_command(*small, *command(tmp_path / "source", tmp_path / "whole")[1:]).returncode == 0
    out = tmp_path / "out"
    words = [str(word) for word in (sys.executable, *small, *command(tmp_path / "source", out)[1:])]
    kills = 0
    for awaited in (".train-*.piece", "train-*.tar"):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not any(out.glob(awaited)):
            time.sleep(0.001 * (1 + seed))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    last = run_command(*words[1:])
    assert last.returncode == 0, last.stderr
    assert files_of(out) == files_of(tmp_path / "whole")


def test_shards_at_a_url(tmp_path: Path) -> None:
    """As those in a folder, byte for byte; the state is kept beside until all is sent."""
    make_kaggle(tmp_path / "source")
    assert run_command(*command(tmp_path / "source", tmp_path / "folder")).returncode == 0
    store = tmp_path / "store"
    finished(at_url(tmp_path / "source", store, tmp_path))
    assert files_of(store) == files_of(tmp_path / "folder")
    assert "finished already" in finished(at_url(tmp_path / "source", store, tmp_path))
    finished(at_url(tmp_path / "source", tmp_path / "in-order", tmp_path, "--in-order"))
    assert files_of(tmp_path / "in-order") == files_of(store)
    one_line(run_command(*command(tmp_path / "source", "http://127.0.0.1:9/x"), cwd=ROOT), "nothing can be written over http")


def at_url(source: Path, store: Path, home: Path, *more: object) -> subprocess.Popen[str]:
    """make_shards to a file:// URL, with its state below `home`."""
    impatient = "import sys, tools.shard_upload as u; u.PAUSES = (0.1, 0.1); from tools.make_shards import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", impatient, *command(source, store.as_uri(), *more)[1:]]
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.Popen([str(word) for word in words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def test_what_was_sent_is_not_made_again(tmp_path: Path) -> None:
    """Killed with shards sent, and with all of them sent but the manifest, which a folder in the way keeps back."""
    make_kaggle(tmp_path / "source")
    store = tmp_path / "store"
    store.mkdir()
    (store / "manifest.json").mkdir()
    process = at_url(tmp_path / "source", store, tmp_path)
    while process.poll() is None and not any(store.glob("*.tar")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert "cannot be sent" in finished(at_url(tmp_path / "source", store, tmp_path), 2)
    sent = {path.name: path.stat().st_mtime_ns for path in store.glob("*.tar")}
    (store / "manifest.json").rmdir()
    finished(at_url(tmp_path / "source", store, tmp_path))
    assert len(sent) == 6
    assert {name: (store / name).stat().st_mtime_ns for name in sent} == sent
    assert run_command(*command(tmp_path / "source", tmp_path / "folder")).returncode == 0
    assert files_of(store) == files_of(tmp_path / "folder")
    assert not list((tmp_path / ".cache" / "make_shards").iterdir())


def test_a_store_that_somebody_else_filled(tmp_path: Path) -> None:
    make_kaggle(tmp_path / "source")
    store = tmp_path / "store"
    store.mkdir()
    (store / "train-000000.tar").write_bytes(b"somebody's")
    assert "holds tars that this program did not begin" in finished(at_url(tmp_path / "source", store, tmp_path), 2)
    assert (store / "train-000000.tar").read_bytes() == b"somebody's"


@pytest.mark.parametrize(("begun", "then"), [((), ("--in-order",)), (("--in-order",), ())])
def test_another_order_than_the_one_begun_in(begun: tuple[str, ...], then: tuple[str, ...], tmp_path: Path) -> None:
    make_kaggle(tmp_path / "source")
    words = [str(word) for word in (sys.executable, *command(tmp_path / "source", tmp_path / "out", *begun))]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (tmp_path / "out" / ".progress.jsonl").exists():
        time.sleep(0.001)
    while process.poll() is None and (tmp_path / "out" / ".progress.jsonl").stat().st_size == 0:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    one_line(run_command(*command(tmp_path / "source", tmp_path / "out", *then)), "was begun with", "--in-order")


def test_a_test_split_without_labels_loads_and_is_not_evaluated(tmp_path: Path) -> None:
    make_kaggle(tmp_path / "source")
    out = tmp_path / "out"
    assert run_command(*command(tmp_path / "source", out)).returncode == 0
    assert run_command("tools/compute_pca.py", "--shards", out).returncode == 0
    loader = ImageLoader(out, "test", batch=2, crop=16)
    (batch,) = list(loader)
    assert batch.labels.tolist() == [-1, -1]
    checked = run_command("tools/check_shards.py", "--shards", out)
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_pictures_with_their_aspect(tmp_path: Path) -> None:
    """Checked as what they are, and refused where squares are needed."""
    make_kaggle(tmp_path / "source")
    out = tmp_path / "out"
    made = run_command(*command(tmp_path / "source", out, "--resize", "shorter"))
    assert made.returncode == 0, made.stderr
    checked = run_command("tools/check_shards.py", "--shards", out, "--decode")
    assert checked.returncode == 0, checked.stderr + checked.stdout
    one_line(run_command("tools/compute_pca.py", "--shards", out), "no mean image", "--resize square")
    with pytest.raises(InputError, match="whole pictures, of any aspect"):
        ImageLoader(out, "train", batch=2, crop=16)


def test_pictures_with_all_their_chroma(tmp_path: Path) -> None:
    make_kaggle(tmp_path / "source")
    out = tmp_path / "out"
    made = run_command(*command(tmp_path / "source", out, "--subsampling", "4:4:4"))
    assert made.returncode == 0, made.stderr
    assert run_command("tools/compute_pca.py", "--shards", out).returncode == 0
    checked = run_command("tools/check_shards.py", "--shards", out, "--decode")
    assert checked.returncode == 0, checked.stderr + checked.stdout
    (batch,) = list(ImageLoader(out, "val", batch=4, crop=16))
    assert batch.images.shape == (4, 3, 16, 16)
