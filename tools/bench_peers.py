"""The other data loaders, on the same shards, each in a process of its own and in its own environment (constraints-peers.txt).

    python tools/bench_peers.py [--shards DIR] [--work DIR] [--batch 128] [--threads 1,2] [--rounds 3] [--images 4000] [--peers a,b]

PEERS says what each is. All give uint8 (or, where marked, float32) batches of random 227 crops, flipped at random, with labels; what a pass
measures stands in tools/peer_passes.py. Labels are checked against the shards, and two pictures of each peer against their JPEGs. Where a peer
does less than we do, or otherwise, its note says so; none of them checks what it reads by a sum. Rounds go through all peers in turn, so that a
noisy machine hits all alike. A peer that is not installed is named with the reason. tools/bench_loader.py measures these beside our own rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.errors import InputError, one_line_errors
from pipeline.shards import ShardSet

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
INSTALL = "make peers"
WORK = Path("demo/peers")

PEERS = {  # name: what it is
    "ffcv-jpeg": "FFCV, JPEG mode, uint8",
    "ffcv-jpeg-normalised": "FFCV, JPEG mode, float32, normalised on the CPU",
    "ffcv-raw": "FFCV, RAW mode, uint8",
    "ffcv-raw-normalised": "FFCV, RAW mode, float32, normalised on the CPU",
    "webdataset": "webdataset, Pillow, DataLoader",
    "webdataset-torchvision": "webdataset, torchvision's decoder, DataLoader",
    "imagefolder": "torchvision ImageFolder, Pillow, DataLoader",
    "imagefolder-torchvision": "torchvision ImageFolder, torchvision's decoder, DataLoader",
    "spdl": "SPDL, its own decoder (FFmpeg)",
    "spdl-torchvision": "SPDL, torchvision's decoder",
    "litdata": "litdata, torchvision's decoder",
    "mds": "MosaicML streaming (MDS), torchvision's decoder, DataLoader",
}


class NotInstalled(InputError):
    """This peer cannot run here; the message is one line: which, why, what to do."""


class Peer:
    """A running peer, ready for passes; close() ends it.

    note: where its work is not the same as ours; versions: of its libraries; window_error: mean difference of its pixels from Pillow's,
    in grey levels, the larger of two pictures.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path, batch: int) -> None:
        self.name, self._process, self._log, self._batch = name, process, log, batch
        self.note, self.window_error = "", 0.0
        self.versions: dict[str, str] = {}

    def _answer(self) -> dict[str, Any]:
        """The next line of the process. Raises InputError when it ended instead."""
        assert self._process.stdout is not None, "it was started with a pipe"
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()] or ["it said nothing"]
        code = self._process.wait()
        raise InputError(f"peer {self.name}: its process ended with code {code}: {said[-1].strip()}; all of what it said is in {self._log}")

    def wait_until_ready(self) -> None:
        """Until its format is prepared and it has given a first batch: seconds to minutes. Raises NotInstalled, InputError."""
        answer = self._answer()
        if "missing" in answer:
            raise NotInstalled(f"peer {self.name} is left out: {answer['missing']}; install the peers with: {INSTALL}")
        self.note, self.versions, self.window_error = answer["note"], answer["versions"], answer["window_error"]

    def run(self, batches: int) -> tuple[int, float, float]:
        """Images, wall seconds and CPU-seconds of a pass of `batches` batches. Raises InputError for a wrong label or count."""
        assert self._process.stdin is not None, "it was started with a pipe"
        with suppress(BrokenPipeError):  # it has ended; its answer says why
            self._process.stdin.write(f"pass {batches}\n")
            self._process.stdin.flush()
        answer = self._answer()
        if not answer["labels_ok"] or answer["images"] != batches * self._batch:
            counted = f"{answer['images']} images of {batches * self._batch}, labels {'right' if answer['labels_ok'] else 'wrong'}"
            raise InputError(f"peer {self.name} did not do the work: {counted}; this is a fault of the peer or of tools/peer_loaders.py")
        return answer["images"], answer["seconds"], max(answer["cpu_seconds"], 0.01)  # the system counts ticks of 10 ms

    def close(self) -> None:
        """End the process and its workers."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(peer: str, shards: Path, work: Path, batch: int, threads: int) -> Peer:
    """Start a peer of PEERS on the training shards, its own format prepared in `work` (up to 200 kB an image) on the first start.

    It runs in .venv-peers, where there is one, else in our own environment, where only "webdataset" is installed.
    Raises NotInstalled where its library is not there, InputError where its process fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{peer}-{batch}-{threads}.log"
    place = ("--shards", str(shards.resolve()), "--work", str(work.resolve()))
    command = [str(PYTHON if PYTHON.exists() else sys.executable), "-m", "tools.peer_passes", "--peer", peer, *place]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "NUMBA_NUM_THREADS": str(max(threads, os.cpu_count() or 1))}
    with open(log, "w") as said:
        process = subprocess.Popen(
            [*command, "--batch", str(batch), "--threads", str(threads)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    running = Peer(peer, process, log, batch)
    try:
        running.wait_until_ready()
    except BaseException:
        running.close()
        raise
    return running


@dataclass
class Row:
    """One line of the table."""

    peer: Peer
    threads: int
    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)


def benchmark(names: list[str], shards: Path, work: Path, batch: int, threads: list[int], rounds: int, images: int) -> list[Row]:
    """Rounds of `images` images through all peers in turn; those that are not installed are named on stderr."""
    batches, rows, missing = -(-images // batch), list[Row](), dict[str, str]()
    for count in threads:  # one after the other: a running peer takes 0.5 to 1 GB
        with ExitStack() as stack:
            running = []
            for name in (name for name in names if name not in missing):
                try:
                    running.append(Row(start(name, shards, work, batch, count), count))
                    stack.callback(running[-1].peer.close)
                except NotInstalled as error:
                    missing[name] = str(error)
                    print(error, file=sys.stderr)
            measure(running, batches, rounds)
            rows += running
    return sorted(rows, key=lambda row: names.index(row.peer.name))


def measure(rows: list[Row], batches: int, rounds: int) -> None:
    """Rounds of a pass of each row in turn."""
    for _ in range(rounds):
        for row in rows:
            counted, wall, cpu = row.peer.run(batches)
            row.per_s.append(counted / wall)
            row.per_cpu_s.append(counted / cpu)


def table(rows: list[Row]) -> str:
    lines = [f"{'peer':<64} {'threads':>7} {'images/s':>9} {'min':>7} {'max':>7} {'images/CPU-s':>13}  note"]
    for row in rows:
        rates = f"{median(row.per_s):>9,.0f} {min(row.per_s):>7,.0f} {max(row.per_s):>7,.0f} {median(row.per_cpu_s):>13,.0f}"
        lines.append(f"{PEERS[row.peer.name]:<64} {row.threads:>7} {rates}  {row.peer.note}")
    return "\n".join(lines)


def _numbers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--{name} must be different numbers from 1 up with commas between, such as 1,2, not {text!r}")
    return [int(part) for part in parts]


def _check(given: argparse.Namespace) -> None:
    for name in ("batch", "rounds", "images"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(given, name)}")
    unknown = sorted(set(given.peers.split(",")) - set(PEERS))
    if unknown:
        raise InputError(f"--peers {unknown[0]} is no peer; known are {', '.join(PEERS)}")
    samples = len(ShardSet(given.shards, "train"))
    if given.batch > samples:
        raise InputError(f"batch {given.batch} is larger than the {samples} samples of {given.shards}; give a smaller --batch")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of other data loaders.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards, with colour statistics")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the peers' own formats, up to 300 kB an image in all")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--threads", default="1,2", help="threads or worker processes: a set of rows for each number")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each row")
    parser.add_argument("--images", type=int, default=4000, help="images a pass, rounded up to whole batches")
    parser.add_argument("--peers", default=",".join(PEERS), help="names with commas between")
    given = parser.parse_args(arguments)
    with one_line_errors():
        _check(given)
        threads = _numbers("threads", given.threads)
        rows = benchmark(given.peers.split(","), given.shards, given.work, given.batch, threads, given.rounds, given.images)
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
