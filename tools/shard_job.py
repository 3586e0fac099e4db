"""The job of make_shards, from a listed source to a folder with a manifest: claimed, planned, gone on with, finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.manifest import FORMAT_VERSION, NAME, Manifest, Rejected, Settings, Shard, Split, classes_digest, write_manifest
from pipeline.order import order
from tools import pixel_sums
from tools.pixel_sums import Sums, read_sums, summed_side, total_sums, write_sums
from tools.shard_upload import send, sizes_there
from tools.shard_worker import Assembly, Done, Piece, Task, assemble_shard, look, make_piece, make_shard
from tools.sources import Entry, Listing
from tools.stream_pieces import cut_into_pieces, places_of, with_bytes
from tools.workers import Workers

PROGRESS = ".progress.jsonl"  # one line per finished shard or piece; gone when the manifest is there
SUMS = ".sums.npz"  # pixel sums of what is finished; becomes sums.npz
MOST_SHARDS = 100_000
WRITE_EPOCH = 2**32 - 1  # the order of samples in the shards: an epoch number that no training reaches


@dataclass
class Job:
    """A claimed output folder, and what is done in it.

    to: URL that the shards are sent to; `out` then has only what is not sent yet, and the progress. in_order: read the source from its
    beginning to its end. sums: None where an earlier run's were lost; compute_pca then does without.
    """

    listing: Listing
    out: Path
    settings: Settings
    to: str | None
    in_order: bool
    progress: IO[str]
    sums: Sums | None
    done: dict[str, Done] = field(default_factory=dict)

    def run(self, workers: Workers) -> Manifest:
        """Do all that is still to be done. Raises InputError."""
        pieces = cut_into_pieces(self.listing, self.out, self.settings) if self.in_order else []
        planned = list(self._planned())
        entry = planned[0][2][0]
        workers.agree(partial(look, entry, bool(self.listing.streamed), self.settings, self.out / PROGRESS if self.to is None else None))
        if pieces:
            left = self._left(pieces)
            handed = with_bytes(pieces, self.done.keys()) if self.listing.streamed == "tar.gz" else left
            self._watched(make_piece, handed, pieces, left, workers)
            places = places_of(pieces, self.done)
            assemblies = (
                Assembly(split, path, some, [places[entry.file, entry.offset] for entry in some], self.to)
                for split, path, some in planned
                if path.name not in self.done
            )
            workers.run(assemble_shard, assemblies, self._take, lambda: None)
        else:
            shards = [Task(split, path, some, self.settings, self.to) for split, path, some in planned]
            left = self._left(shards)
            self._watched(make_shard, left, shards, left, workers)
        return self._finish(planned, pieces)

    def _planned(self) -> Iterator[tuple[str, Path, list[Entry]]]:
        """Each split, in one seeded permutation of all of it, cut into shards."""
        size = self.settings.shard_size
        for split, entries in self.listing.splits.items():
            shuffled = [entries[i] for i in order(self.settings.seed, WRITE_EPOCH, len(entries))]
            for number, start in enumerate(range(0, len(shuffled), size)):
                yield split, self.out / f"{split}-{number:06d}.tar", shuffled[start : start + size]

    def _left(self, tasks: Sequence[Any]) -> list[Any]:
        return [task for task in tasks if task.path.name not in self.done]

    def _watched(self, function: Callable[[Any], Any], handed: Any, all_tasks: Sequence[Any], left: Sequence[Any], workers: Workers) -> None:
        """Run the tasks that convert pictures, with a progress bar."""
        total, to_do = (sum(len(task.entries) for task in tasks) for tasks in (all_tasks, left))
        with tqdm(total=total, initial=total - to_do, unit=" pictures", desc="shards", mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
            finished = 0

            def take(result: tuple[Done, Sums | None]) -> None:
                nonlocal finished
                self._take(result)
                finished += result[0].samples + len(result[0].rejected)

            def tick() -> None:
                count = finished if workers.pictures_done is None else workers.pictures_done()
                bar.update(min(total - to_do + count, total) - bar.n)

            workers.run(function, handed, take, tick)
            bar.update(total - bar.n)  # the workers' count is not exact

    def _take(self, result: tuple[Done, Sums | None]) -> None:
        """Record what was made. The sums go first: what is recorded as done is in them, and what is in them is not added again."""
        made, sums = result
        if self.sums is not None and sums is not None and not sums.of <= self.sums.of:
            self.sums.merge(sums)
            write_sums(self.out / SUMS, self.sums, "")
        self.done[made.name] = made
        _record(self.progress, json.dumps(asdict(made)))

    def _finish(self, planned: list[tuple[str, Path, list[Entry]]], pieces: list[Piece]) -> Manifest:
        made = [(split, self.done[path.name]) for split, path, _ in planned]
        # What is to be told of a stream's files was found when its pieces were made.
        told = [(piece.path.name[1:].split("-")[0], self.done[piece.path.name]) for piece in pieces] or made
        manifest = _manifest(self.listing, self.settings, made, told)
        if self.sums is not None and self.sums.images:
            # Without the names of what was summed, which depend on the way through the source.
            write_sums(self.out / pixel_sums.NAME, replace(self.sums, of=set()), manifest.digest())
        write_manifest(self.out, manifest)
        if self.to is not None:
            for name in (pixel_sums.NAME, NAME):  # the manifest last: a folder that has one is complete
                if (self.out / name).exists():
                    send(self.out / name, self.to)
        # Temporary files are of workers that died.
        for leftover in (self.out / PROGRESS, self.out / SUMS, *(piece.path for piece in pieces), *self.out.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)
        return manifest


def _manifest(listing: Listing, settings: Settings, made: list[tuple[str, Done]], told: list[tuple[str, Done]]) -> Manifest:
    splits: dict[Any, Split] = {}
    for split in listing.splits:
        shards = [Shard(name=d.name, samples=d.samples, bytes=d.bytes, sha256=d.sha256) for of, d in made if of == split and d.samples]
        splits[split] = Split(samples=sum(shard.samples for shard in shards), shards=tuple(shards))
    return Manifest(
        format_version=FORMAT_VERSION,
        settings=settings,
        source=listing.source,
        classes=listing.classes,
        classes_sha256=classes_digest(listing.classes),
        splits=splits,
        rejected=_sorted((split, name, reason) for split, d in told for name, reason in d.rejected),
        doubtful=_sorted((split, name, reason) for split, d in told for name, reason in d.doubtful),
    )


def _sorted(found: Any) -> tuple[Rejected, ...]:
    return tuple(Rejected(split=split, name=name, reason=reason) for split, name, reason in sorted(found))


@contextmanager
def claim(out: Path, settings: Settings, listing: Listing, to: str | None, in_order: bool) -> Iterator[Job]:
    """The folder, locked; begun if nothing is there, else with what is done. Begun with other settings, or in use, it is an InputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}; choose another --out") from None
    shards = sum(-(-len(entries) // settings.shard_size) for entries in listing.splits.values())
    if shards > MOST_SHARDS:
        raise InputError(
            f"--shard-size {settings.shard_size} makes {shards:,} shards, more than the {MOST_SHARDS:,} that a manifest may list; take a larger one"
        )
    mark = json.dumps({"settings": settings.model_dump(), "source": listing.source.model_dump(), "in_order": in_order})
    there = sizes_there(to) if to is not None else {path.name: 0 for path in out.glob("*.tar")}
    if not (out / PROGRESS).exists() and any(name.endswith(".tar") for name in there):
        raise InputError(f"{to or out} holds tars that this program did not begin, or not for this user and machine; choose another --out")
    with open(out / PROGRESS, "a+", encoding="utf-8", errors="replace") as progress:
        try:
            fcntl.flock(progress, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however we end
        except BlockingIOError:
            raise InputError(f"another make_shards is writing to {to or out}; wait for it or choose another --out") from None
        progress.seek(0)
        first = progress.readline()
        if first.endswith("\n") and first != f"{mark}\n":
            raise InputError(f"{to or out} was begun {_otherwise(first, mark)}; choose another --out, or delete {out} to begin anew")
        for leftover in out.glob(".*.tmp"):
            leftover.unlink()
        if first.endswith("\n"):
            yield Job(listing, out, settings, to, in_order, progress, *_already_done(progress, out, settings, None if to is None else there))
            return
        sums = total_sums(summed_side(settings))
        write_sums(out / SUMS, sums, "")
        progress.truncate(0)
        _record(progress, mark)
        yield Job(listing, out, settings, to, in_order, progress, sums)


def _otherwise(first: str, mark: str) -> str:
    """How a folder was begun that was begun in another way; first, mark: its first line, and what it would be now."""
    now = json.loads(mark)
    with suppress(ValueError, TypeError, KeyError):
        was = json.loads(first)
        changed = [f"with {key} {was['settings'][key]}, not {value}" for key, value in now["settings"].items() if was["settings"][key] != value]
        if was["source"] != now["source"]:
            changed.append("from another source")
        if was["in_order"] != now["in_order"]:
            changed.append(f"{'with' if was['in_order'] else 'without'} --in-order")
        return " and ".join(changed) or "by another version of this program"
    return "with other settings, or by another version of this program"


def _record(progress: IO[str], line: str) -> None:
    progress.write(line + "\n")
    progress.flush()
    os.fsync(progress.fileno())


def _already_done(progress: IO[str], out: Path, settings: Settings, there: dict[str, int] | None) -> tuple[Sums | None, dict[str, Done]]:
    """Pixel sums, and the shards and pieces that an earlier run recorded and whose bytes are still those it wrote, by name."""
    progress.seek(0)
    content = progress.read()
    whole = content[: content.rfind("\n") + 1]
    if whole != content:  # a kill cut the last line off in writing; the next one must not be glued to it
        progress.truncate(len(whole.encode()))
    done: dict[str, Done] = {}
    for line in whole.splitlines()[1:]:
        try:
            found = Done(**json.loads(line))
        except (ValueError, TypeError):
            continue  # no record: the shard is made again
        if _is_there(out / found.name, found, there):
            done[found.name] = found
    return read_sums(out / SUMS, summed_side(settings), ""), done


def _is_there(path: Path, found: Done, there: dict[str, int] | None) -> bool:
    """Whole, by its sum; at a URL, where `there` gives the files' sizes, by its size."""
    if path.suffix == ".tar" and there is not None:
        return found.samples == 0 or (there.get(path.name) == found.bytes and path.with_suffix(".idx").name in there)
    if path.suffix == ".tar":
        index = path.with_suffix(".idx")
        whole = path.exists() and index.exists() and sha256_of(index) == found.index_sha256 and sha256_of(path) == found.sha256
        return found.samples == 0 or whole
    return path.exists() and sha256_of(path) == found.sha256


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
