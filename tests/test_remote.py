"""Shards from a store: whole and checked, whatever the store does. The store is a real server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_store import FLOOD, Fault, Store, cut, failing, flip, flood, in_circles, in_process, serving, short, slow, stall, tars, temporaries

from pipeline.errors import InputError
from pipeline.manifest import Shard, read_manifest
from pipeline.remote import RemoteShards, is_url
from pipeline.shards import ShardSet

QUICK: dict[str, Any] = {"tries": 5, "backoff": 0.01}


@pytest.fixture
def store(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(shards) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def shard(shards: Path) -> Shard:
    return read_manifest(shards)[0].splits["train"].shards[0]


@pytest.fixture
def remote(store: Store, cache: Path) -> Iterator[RemoteShards]:
    """The store's shards, opened."""
    opened = RemoteShards(store.url, cache, **QUICK)
    opened.open()
    yield opened
    opened.close()


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """By name, SHA-256 and time of change of the files in a folder."""
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()}


def test_is_url() -> None:
    assert is_url("s3://bucket/shards")
    assert is_url("file:///shards")
    assert not is_url("shards/")
    assert not is_url(Path("/shards"))


@pytest.mark.parametrize("over", ["http", "file"])
def test_what_comes_is_what_is_there_and_nothing_is_written_there(over: str, store: Store, shards: Path, cache: Path) -> None:
    (shards / "sums.npz").unlink()  # of no use to who loads
    before = state_of(shards)
    remote = RemoteShards(store.url if over == "http" else f"file://{shards}/", cache)
    folder = remote.open()
    assert folder == cache / before["manifest.json"][0][:16]
    for split in read_manifest(folder)[0].splits.values():
        for shard in split.shards:
            assert remote.fetch(shard) == folder / shard.name
    assert {name: digest for name, (digest, _) in state_of(folder).items()} == {name: digest for name, (digest, _) in before.items()}
    assert state_of(shards) == before
    val = ShardSet(folder, "val")
    assert all(len(val.read(sample)[0]) for sample in range(len(val)))


def test_what_is_there_is_not_fetched_again(store: Store, cache: Path, shard: Shard, remote: RemoteShards) -> None:
    remote.fetch(shard)
    remote.fetch(shard)
    again = RemoteShards(store.url, cache)
    again.open()
    again.fetch(shard)
    assert store.asked(shard.name) == [0]
    assert store.asked("train-000000.idx") == [0]


def test_statistics_may_be_absent_and_come_when_they_are_there(store: Store, shards: Path, cache: Path) -> None:
    mean, pca = (shards / "mean.npy").read_bytes(), (shards / "pca.json").read_bytes()
    (shards / "mean.npy").unlink()
    (shards / "pca.json").unlink()
    folder = RemoteShards(store.url, cache).open()
    assert not (folder / "pca.json").exists()
    for now in (pca, pca + b"\n"):  # computed, and computed anew
        (shards / "mean.npy").write_bytes(mean)
        (shards / "pca.json").write_bytes(now)
        RemoteShards(store.url, cache).open()
        assert (folder / "mean.npy").read_bytes() == mean
        assert (folder / "pca.json").read_bytes() == now


def test_other_shards_at_the_same_url_get_a_folder_of_their_own(store: Store, shards: Path, cache: Path, remote: RemoteShards) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["source"]["sha256"] = "0" * 64
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert RemoteShards(store.url, cache).open() != remote.folder
    assert store.asked("train-000001.idx") == [0, 0]


def test_failures_are_tried_again_and_said(store: Store, shard: Shard, remote: RemoteShards, capfd: pytest.CaptureFixture[str]) -> None:
    store.faults[shard.name] = [failing(500), failing(503), cut, flip]
    assert remote.fetch(shard).read_bytes() == (store.folder / shard.name).read_bytes()
    assert len(store.asked(shard.name)) == 5
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    for k, (line, why) in enumerate(zip(said, ["HTTP 500", "HTTP 503", "cut off, after ", "SHA-256"], strict=True)):
        assert line.startswith(f"{store.url}/{shard.name}: ")
        assert why in line
        assert f"; try {k + 2} of 5 in 0." in line
    assert tars(remote.folder.parent) == [shard.name]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_off_transfer_goes_on_where_the_store_can(ranges: bool, store: Store, cache: Path, shard: Shard) -> None:
    remote = RemoteShards(store.url, cache, silence=0.5, **QUICK)
    remote.open()
    store.ranges, store.faults[shard.name] = ranges, [stall]
    assert remote.fetch(shard).read_bytes() == (store.folder / shard.name).read_bytes()
    assert store.asked(shard.name) == [0, shard.bytes // 2]  # without ranges the answer is the whole file


def test_a_slow_store_is_waited_for(store: Store, cache: Path, shard: Shard) -> None:
    remote = RemoteShards(store.url, cache, tries=1, silence=5)
    remote.open()
    store.faults[shard.name] = [slow]
    assert remote.fetch(shard).read_bytes() == (store.folder / shard.name).read_bytes()
    assert store.asked(shard.name) == [0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (failing(500), ["HTTP 500", "after 0 of {bytes:,} bytes", "check the connection"]),
        (flip, ["SHA-256", "the manifest says {sha256}", "copy the shards"]),
        (flood, ["more bytes come than the manifest says", "of {bytes:,} bytes"]),
        (short, ["of {bytes:,} bytes", "copy the shards"]),
    ],
)
def test_what_never_comes_right_is_named(fault: Fault, words: list[str], store: Store, shard: Shard, remote: RemoteShards) -> None:
    store.faults[shard.name] = [fault] * 100
    with pytest.raises(InputError) as caught:
        remote.fetch(shard)
    message = str(caught.value)
    assert message.startswith(f"{store.url}/{shard.name}: ")
    assert "\n" not in message
    for word in ("try 5 of 5", *words):
        assert word.format(**shard.model_dump()) in message
    assert len(store.asked(shard.name)) == 5
    assert store.flooded < 5 * FLOOD // 2  # refused while it came; what sockets buffer is less than that
    assert tars(remote.folder.parent) == []


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_not_there_is_asked_for_once(status: int, store: Store, tmp_path: Path, shard: Shard, remote: RemoteShards) -> None:
    store.requests.clear()
    store.faults = {name: [failing(status)] * 100 for name in (shard.name, "train-000002.idx")}
    with pytest.raises(InputError, match=shard.name):
        remote.fetch(shard)
    with pytest.raises(InputError, match=r"train-000002\.idx"):
        RemoteShards(store.url, tmp_path / "other").open()
    store.faults["manifest.json"] = [failing(status)] * 100
    with pytest.raises(InputError, match=r"manifest\.json"):
        RemoteShards(store.url, tmp_path / "other").open()
    assert [len(store.asked(name)) for name in (shard.name, "train-000002.idx", "manifest.json")] == [1, 1, 2]
    assert not (tmp_path / "other" / remote.folder.name / "manifest.json").exists()
    assert not temporaries(tmp_path)


@pytest.mark.parametrize("fault", [cut, flip, failing(500)])
def test_small_files_are_tried_again(fault: Fault, store: Store, cache: Path) -> None:
    names = ("train-000000.idx", "val-000000.idx")
    store.faults = {name: [fault, fault] for name in names} | {"manifest.json": [cut]}
    folder = RemoteShards(store.url, cache, **QUICK).open()
    for name in ("manifest.json", *names):
        assert (folder / name).read_bytes() == (store.folder / name).read_bytes()
    assert [len(store.asked(name)) for name in ("manifest.json", *names)] == [2, 3, 3]
    assert not temporaries(cache)


def test_an_index_of_other_shards_is_refused(store: Store, shards: Path, cache: Path) -> None:
    (shards / "train-000002.idx").write_bytes((shards / "train-000001.idx").read_bytes())
    with pytest.raises(InputError, match=r"train-000002\.idx: has 8 samples in [0-9,]+ bytes, the manifest says 8 in"):
        RemoteShards(store.url, cache, **QUICK).open()


def test_an_index_without_end_is_not_taken_in(store: Store, cache: Path) -> None:
    store.faults["train-000000.idx"] = [flood] * 100
    with pytest.raises(InputError, match=r"train-000000\.idx: more than the [0-9,]+ bytes"):
        RemoteShards(store.url, cache, **QUICK).open()
    assert store.flooded < 5 * FLOOD // 2


def test_a_manifest_that_names_files_elsewhere_is_refused(store: Store, shards: Path, cache: Path, tmp_path: Path) -> None:
    text, before = (shards / "manifest.json").read_text(), sorted(tmp_path.rglob("*"))
    for old, new, why in (("train-000000.tar", "../evil-000000.tar", "name"), ("val-000000.tar", "train-000000.tar", "two splits")):
        (shards / "manifest.json").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=why):
            RemoteShards(store.url, cache, **QUICK).open()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://bucket/shards: s3:// needs the package s3fs; install it: pip install s3fs"):
        RemoteShards("s3://bucket/shards")
    with pytest.raises(InputError, match="pigeon"):
        RemoteShards("pigeon://loft/shards")


def test_the_query_goes_with_every_request_and_into_no_message(store: Store, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"http://me:pass-word@{store.url.removeprefix('http://')}/?key=se-cret"
    store.faults["manifest.json"] = [failing(500), cut, *[in_circles] * 11]
    assert (RemoteShards(url, cache, **QUICK).open() / "val-000000.idx").exists()
    store.faults["manifest.json"] = [failing(403)]
    with pytest.raises(InputError) as caught:
        RemoteShards(url, cache).open()
    said = capfd.readouterr().err + str(caught.value)
    assert said.count("manifest.json: ") == 4
    assert said.count(store.url) >= 4
    assert "se-cret" not in said
    assert "pass-word" not in said


def test_a_user_sees_a_line_for_each_try_and_one_error(store: Store, cache: Path) -> None:
    store.faults["train-000001.tar"] = [cut] * 100
    process = in_process("remote.fetch(shards[1])", store, cache)
    out, err = process.communicate(timeout=60)
    lines = err.splitlines()
    assert (process.returncode, out, len(lines)) == (2, "", 5), err
    assert all(line.startswith(f"{store.url}/train-000001.tar: ") for line in lines[:-1])
    assert lines[-1].startswith(f"error: {store.url}/train-000001.tar: ")
