"""What a layer gives for each picture of a split, once through the loader, in an array on disk that is read where it lies.

DIR/train-fc7.npy          (n, 4096) float32: outputs after ReLU, centre view, net in evaluation mode
DIR/train-fc7-ids.npy      (n,) int64: number of each picture in its split
DIR/train-fc7-labels.npy   (n,) int64; -1 in a test split without labels
DIR/train-fc7.json         which checkpoint and shards they are of; written last, so where it is the others are whole
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from model.net import Net
from pipeline import Batch, ImageLoader, InputError, atomic_file, fsync_folder

FORMAT = 1
LAYERS = ("fc7", "fc6")
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """What features are of. checkpoint, shards: SHA-256 of a checkpoint's content and of the shards' manifest."""

    split: str
    layer: str
    checkpoint: str
    shards: str

    @property
    def name(self) -> str:
        return f"{self.split}-{self.layer}"


@dataclass(frozen=True)
class Features:
    """values: (n, width) float32; ids: of the pictures in their split; labels: their classes; both (n,) int64. took: see Clock.as_json."""

    values: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    took: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    def some(self, rows: np.ndarray) -> Features:
        """A few of them, read into memory."""
        return Features(np.array(self.values[rows]), self.ids[rows], self.labels[rows])


class Clock:
    """Pictures, seconds and the part of them spent waiting for data, from the end of the first batch on: it starts the loader and the net."""

    def __init__(self) -> None:
        self.images, self.seconds, self.waited = 0, 0.0, 0.0

    def of(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches; what their user does until asking for the next is counted too."""
        source = iter(loader)
        yield from islice(source, 1)
        began = asked = time.perf_counter()
        for batch in source:
            self.waited += time.perf_counter() - asked
            self.images += len(batch.ids)
            yield batch
            asked = time.perf_counter()
        self.seconds = time.perf_counter() - began

    def as_json(self) -> dict[str, float]:
        return {"timed_images": self.images, "seconds": round(self.seconds, 4), "waiting_for_data_s": round(self.waited, 4)}

    def __str__(self) -> str:
        if not self.images:
            return "one batch, too few to time"
        return f"{self.images / self.seconds:,.1f} images/s, waiting for data {100 * self.waited / self.seconds:.1f} %"


def checkpoint_digest(content: dict[str, Any]) -> str:
    """SHA-256 over the digests of a checkpoint's tensors and its recipe; content: as model.evaluate.load_net gives it."""
    named = {name: content[name] for name in ("files", "recipe", "step", "wnids")}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def progress(items: Iterable[T], words: str, count: int | None = None, unit: str = "") -> Iterable[T]:
    """The same items, with a line on a terminal of how far they are."""
    return tqdm(items, words, count, leave=False, unit=unit, disable=not sys.stderr.isatty())


@torch.no_grad()
def features_of(net: Net, images: torch.Tensor, layer: str) -> torch.Tensor:
    """(n, width) float32 outputs of a layer after ReLU; images: (n, 3, s, s), as the loader gives them; the net in evaluation mode."""
    shown: list[torch.Tensor] = []

    def look(name: str, out: torch.Tensor) -> None:
        if name == layer:
            shown.append(out.float())

    net.look = look
    try:
        net(images.contiguous(memory_format=torch.channels_last))
    finally:
        net.look = None
    return shown[0]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and be the only process that writes there. Raises InputError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another model.retrieve is at work in {folder}; wait for it, or give another --out") from None
        yield


def open_features(folder: Path, split: str, layer: str) -> tuple[Features, Origin]:
    """Features that were written before, the values mapped and not read. Raises InputError where there are none, or not whole."""
    stem, again = f"{split}-{layer}", "make them with python -m model.retrieve"
    try:
        about = json.loads((folder / f"{stem}.json").read_text())
        origin, shape = Origin(**about["of"]), tuple(about["shape"])
        values = np.load(folder / f"{stem}.npy", mmap_mode="r", allow_pickle=False)
        took = dict(about["took"])
        ids, labels = (np.load(folder / f"{stem}-{what}.npy", allow_pickle=False) for what in ("ids", "labels"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} has no features of the {split} split's {layer}; {again}") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"the features of the {split} split in {folder} are damaged ({error}); {again}") from None
    if about.get("format") != FORMAT or origin.name != stem or values.dtype != np.float32 or values.shape != shape:
        raise InputError(f"the features of the {split} split in {folder} are not those that {stem}.json tells of; {again}")
    if not len(ids) == len(labels) == len(values):
        raise InputError(f"the features of the {split} split in {folder} have not one id and one label each; {again}")
    return Features(values, ids, labels, took), origin


def saved_features(folder: Path, origin: Origin) -> Features | None:
    """Those of this very origin, if they are there; if others are, it is said why they are made anew."""
    if not (folder / f"{origin.name}.json").exists():
        return None
    try:
        found, of = open_features(folder, origin.split, origin.layer)
    except InputError as error:
        print(f"made anew: {error}", file=sys.stderr)
        return None
    if of == origin:
        return found
    other = "another checkpoint" if of.checkpoint != origin.checkpoint else "other shards"
    print(f"made anew: the features of the {origin.split} split in {folder} are of {other}", file=sys.stderr)
    return None


def write_features(net: Net, loader: ImageLoader, folder: Path, origin: Origin) -> tuple[Features, Clock]:
    """Run a split that `loader` gives centre views of, and write what the layer gives. To be called alone in the folder. Raises InputError."""
    path = folder / f"{origin.name}.npy"
    (folder / f"{origin.name}.json").unlink(missing_ok=True)  # from here on the old ones are not to be taken for whole
    for leftover in folder.glob(f".{path.name}.*.tmp"):  # of a killed process
        leftover.unlink()
    fsync_folder(folder)
    width, count, clock = net.design.outputs(net.num_classes)[origin.layer], len(loader.shards), Clock()
    _check_space(folder, 4 * width * count)
    with atomic_file(path) as file:
        ids, labels = _write_values(file, count, width, _parts(net.eval(), loader, origin.layer, clock))
    for what, numbers in (("ids", ids), ("labels", labels)):
        with atomic_file(folder / f"{origin.name}-{what}.npy") as file:
            np.save(file, numbers)
    with atomic_file(folder / f"{origin.name}.json", "w") as file:
        json.dump({"format": FORMAT, "of": asdict(origin), "shape": [len(ids), width], "took": clock.as_json()}, file, indent=1)
    return open_features(folder, origin.split, origin.layer)[0], clock


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"the features take {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free; free space or give another --out")


def _write_values(file: IO[bytes], count: int, width: int, parts: Iterator[Features]) -> tuple[np.ndarray, np.ndarray]:
    """An .npy of the parts one behind the other; their ids and labels. count: pictures at most, fewer where bad ones are skipped."""
    begin = _write_header(file, count, width)
    ids, labels = [], []
    for part in parts:
        file.write(part.values.tobytes())
        ids.append(part.ids)
        labels.append(part.labels)
    written = sum(map(len, ids))
    if not written:
        raise InputError("not one picture of these shards can be used; check them: python tools/check_shards.py")
    file.seek(0)
    end = _write_header(file, written, width)
    assert begin == end, "NumPy leaves room in the header for another number of rows"
    return np.concatenate(ids), np.concatenate(labels)


def _write_header(file: IO[bytes], rows: int, width: int) -> int:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return file.tell()


def _parts(net: Net, loader: ImageLoader, layer: str, clock: Clock) -> Iterator[Features]:
    """Features batch by batch, on the CPU; each is fetched from a GPU while the next is under way."""
    before: tuple[torch.Tensor, Batch] | None = None
    for batch in progress(clock.of(loader), loader.shards.split, len(loader), " batches"):
        now = features_of(net, batch.images, layer), batch
        if before is not None:
            yield _part(*before, loader)
        before = now
    if before is not None:
        yield _part(*before, loader)


def _part(values: torch.Tensor, batch: Batch, loader: ImageLoader) -> Features:
    """Without the pictures that were skipped since they cannot be used."""
    ids, skipped = batch.ids.cpu().numpy(), [one.id for one in loader.skipped]
    kept = ~np.isin(ids, skipped)
    found = values.cpu().numpy()[kept]
    if not np.isfinite(found).all():
        raise InputError("the net gives NaN or infinity for some pictures: its training came apart; give an earlier checkpoint")
    return Features(found, ids[kept], batch.labels.cpu().numpy()[kept])
