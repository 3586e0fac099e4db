"""The local folder of fetched tars: never over its limit, and safe under threads, processes, SIGKILL and a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from http_store import Answer, Store, bytes_of_tars, command, failing, in_process, serving, slow, stall, tars, temporaries

from pipeline.errors import InputError
from pipeline.manifest import Shard, read_manifest
from pipeline.remote import RemoteShards
from pipeline.remote_folder import FetchStopped, locked


@pytest.fixture
def store(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(shards) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def train(shards: Path) -> tuple[Shard, ...]:
    return read_manifest(shards)[0].splits["train"].shards


def opened(store: Store, cache: Path, limit: int | None = None, **options: float) -> RemoteShards:
    remote = RemoteShards(store.url, cache, limit, **options)  # type: ignore[arg-type]
    remote.open()
    return remote


def test_two_processes_download_once(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    store.faults = {"train-000000.idx": [stall], train[0].name: [slow]}
    code = "print('opened', flush=True); sys.stdin.readline(); print(remote.fetch(shards[0]))"
    processes = [in_process(code, store, cache)]
    assert store.reached.wait(60)
    processes.append(in_process(code, store, cache))
    while len(store.asked("manifest.json")) < 2:
        time.sleep(0.01)
    time.sleep(0.2)  # for the second to ask for an index, which it must not
    store.go_on.set()
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert Path(out.strip()).read_bytes() == (store.folder / train[0].name).read_bytes()
    assert [store.asked(shard.name.replace(".tar", ".idx")) for shard in train] == [[0]] * len(train)
    assert store.asked(train[0].name) == [0]


def test_threads_download_once(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    remote, found = opened(store, cache), list[Path]()
    store.faults[train[0].name] = [slow]
    threads = [threading.Thread(target=lambda: found.append(remote.fetch(train[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [remote.folder / train[0].name] * 4
    assert store.asked(train[0].name) == [0]


def test_a_killed_download_leaves_nothing_in_the_way(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    store.faults[train[0].name] = [stall]
    process = in_process("remote.fetch(shards[0])", store, cache)
    assert store.reached.wait(60)
    assert tars(cache) == [f".{train[0].name}.tmp"]
    opened(store, cache)
    assert tars(cache) == [f".{train[0].name}.tmp"]  # it lives: not for others to remove
    process.kill()
    process.communicate()
    remote = opened(store, cache)
    assert tars(cache) == []
    assert remote.fetch(train[0]).read_bytes() == (store.folder / train[0].name).read_bytes()
    assert tars(cache) == [train[0].name]


def test_a_killed_open_leaves_nothing_in_the_way(store: Store, cache: Path) -> None:
    store.faults["train-000001.idx"] = [stall]
    process = in_process("", store, cache)
    assert store.reached.wait(60)
    process.kill()
    process.communicate()
    folder = next(path for path in cache.iterdir() if path.is_dir())
    (folder / f".train-000001.idx.{process.pid}.tmp").write_text("half")  # as it would be, killed a moment later
    remote = opened(store, cache)
    assert (remote.folder / "train-000001.idx").read_bytes() == (store.folder / "train-000001.idx").read_bytes()
    assert not temporaries(cache)


def test_a_tar_of_another_size_is_not_trusted(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    remote = opened(store, cache)
    os.truncate(remote.fetch(train[0]), 1000)
    assert remote.fetch(train[0]).read_bytes() == (store.folder / train[0].name).read_bytes()


def test_never_more_than_the_limit(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    limit, found = 3 * max(shard.bytes for shard in train), list[int]()

    def watched(answer: Answer, start: int, body: bytes) -> None:
        answer.head(start, len(body))
        answer.wfile.write(body[:-1])
        found.append(bytes_of_tars(cache))  # while it is on its way
        answer.wfile.write(body[-1:])

    store.faults = {shard.name: [watched] * 9 for shard in train}
    remote = opened(store, cache, limit)
    remote.hold(train[0].name)
    for shard in (*train, *train):
        remote.fetch(shard)
        found.append(bytes_of_tars(cache))
        assert (remote.folder / train[0].name).exists()
    assert max(found) <= limit
    assert len(found) > 3 * len(train)  # most of them had to go and come again
    assert store.asked(train[0].name) == [0]


def test_two_processes_keep_one_limit(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    """Each reads all shards, the other way round, one held at a time, in a folder that takes three."""
    limit, found = 3 * max(shard.bytes for shard in train), list[int]()
    code = "for shard in shards[::{step}] * 3:\n    remote.hold(shard.name)\n    data = remote.fetch(shard).read_bytes()\n    "
    code += "assert len(data) == shard.bytes\n    remote.release(shard.name)"
    cache.mkdir()
    processes = [subprocess.Popen(command(code.format(step=step), store, cache, limit), cwd=ROOT, stderr=subprocess.PIPE) for step in (1, -1)]
    while any(process.poll() is None for process in processes):
        with locked(cache / ".lock", lambda: False):  # or a file may be renamed between list and size, and count twice
            found.append(bytes_of_tars(cache))
        time.sleep(0.005)
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0), (b"", 0)]
    assert 0 < max(found) <= limit
    assert sum(len(store.asked(shard.name)) for shard in train) > len(train)


def test_what_was_used_longest_ago_goes_first(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    remote = opened(store, cache, 10**9)
    for age, shard in enumerate(train[:3]):
        os.utime(remote.fetch(shard), (1000 - age, 1000 - age))
    remote.fetch(train[2])  # a use
    small = opened(store, cache, sum(shard.bytes for shard in train[:3]))
    small.fetch(train[3])
    assert (small.folder / train[2].name).exists()
    assert not (small.folder / train[1].name).exists()


def test_a_lower_limit_holds_from_open_on_and_other_files_stay(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    remote = opened(store, cache)
    paths = [remote.fetch(shard) for shard in train[:3]]
    (cache / "mine").mkdir()
    others = [cache / "mine" / "train-000000.tar", cache / "train-000000.tar", remote.folder / "backup.tar"]
    for other in others:
        shutil.copy(paths[0], other)
    remote.hold(train[0].name)
    small = opened(store, cache, 1)
    assert [path.exists() for path in paths] == [True, False, False]
    assert all(other.exists() for other in others)
    with pytest.raises(InputError, match=f"{train[1].bytes:,} bytes are needed, but the limit of the folder is 1 "):
        small.fetch(train[1])


def test_no_room_beside_what_is_held(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    first, second, third = sorted(train[:3], key=lambda shard: -shard.bytes)
    limit = first.bytes + second.bytes
    remote = opened(store, cache, limit)
    for shard in (first, second, second):
        remote.hold(shard.name)
        remote.fetch(shard)
    remote.fetch(first)  # so the second would go before it
    with pytest.raises(InputError) as caught:
        remote.fetch(third)
    assert f"{third.bytes:,} bytes are needed" in str(caught.value)
    assert f"limit of the folder is {limit:,}" in str(caught.value)
    with pytest.raises(InputError, match=f"{limit:,} bytes by this process"):  # at once: nobody else would make room
        opened(store, cache, limit).fetch(third)
    assert store.asked(third.name) == []
    remote.release(first.name)
    remote.release(second.name)  # held twice, so still held
    remote.fetch(third)
    assert tars(cache) == sorted([second.name, third.name])


def test_what_another_process_holds_stays_until_it_ends(
    store: Store, cache: Path, train: tuple[Shard, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    code = "remote.hold(shards[0].name); remote.fetch(shards[0]); print('held', flush=True); sys.stdin.readline()"
    process = in_process(code, store, cache, says="held")
    limit = max(shard.bytes for shard in train)
    with pytest.raises(InputError, match="bytes are needed"):
        opened(store, cache, limit, patience=0).fetch(train[1])
    assert tars(cache) == [train[0].name]
    waiting = threading.Thread(target=opened(store, cache, limit, patience=60).fetch, args=(train[1],))
    waiting.start()
    said = ""
    while "waits for room" not in said:
        assert waiting.is_alive(), said
        said += capfd.readouterr().err
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    waiting.join()
    assert tars(cache) == [train[1].name]


@pytest.mark.parametrize("when", ["transfer", "back-off", "lock"])
def test_a_fetch_can_be_stopped(when: str, store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    remote, stop, stopped = opened(store, cache, backoff=1000.0), threading.Event(), list[str]()
    store.faults[train[0].name] = [failing(500) if when == "back-off" else stall]

    def fetch(who: str, stop: threading.Event | None) -> None:
        try:
            remote.fetch(train[0], stop)
        except FetchStopped:
            stopped.append(who)

    threads = [threading.Thread(target=fetch, args=("one", None if when == "lock" else stop))]
    if when == "lock":
        threads[0].start()
        assert store.reached.wait(60)
        threads.append(threading.Thread(target=fetch, args=("another", stop)))
    threads[-1].start()
    while not store.asked(train[0].name):
        time.sleep(0.01)
    stop.set()
    if when == "transfer":
        store.go_on.set()
    threads[-1].join(60)
    assert stopped == ["another" if when == "lock" else "one"]
    remote.close()  # ends the first as well
    store.go_on.set()
    threads[0].join(60)
    assert len(stopped) == len(threads)
    assert tars(cache) == []


SMALL_DISK = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size="$1" none "$0" && shift && exec "$@"']


@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0, reason="this system lets nobody mount a small disk")
def test_a_full_disk(store: Store, cache: Path, train: tuple[Shard, ...]) -> None:
    """Room is made of what nobody holds; else one line. A disk, in memory, that holds two tars beside the small files."""
    cache.mkdir()
    code = "paths = [remote.fetch(shard) for shard in shards[:3]]\nprint([path.exists() for path in paths], flush=True)\n"
    code += "for shard in shards[:3]: remote.hold(shard.name); remote.fetch(shard)"
    sizes = [path.stat().st_size for path in store.folder.iterdir() if path.suffix not in (".tar", ".npz")] + [shard.bytes for shard in train[:3]]
    size = sum(-(-size // 4096) * 4096 for size in sizes) - 8192
    arguments = [*SMALL_DISK, str(cache), str(size), *command(code, store, cache, 10**9)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[False, True, True]\n", done.stderr
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"{train[2].bytes:,} bytes are needed, but the disk has" in done.stderr
    assert done.stderr.count("\n") == 1
