"""What each way to search costs and finds: the table of model.retrieve."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from model.retrieve_codes import SHORTLIST, Coded, hamming, reranked
from model.retrieve_features import Features
from model.retrieve_index import Search, exact, faiss_or_refuse, inverted_file, probing
from pipeline import InputError

K = 6  # training pictures beside each test picture in Figure 4 of the paper
QUESTIONS = 1000  # queries that the table is of, at most
IMAGENET = 1_281_167  # training pictures of ILSVRC-2012
PROBES = (1, 4, 16)  # lists of the inverted file that are searched
LEAST_S = 0.3  # seconds that a search is repeated for


@dataclass(frozen=True)
class Questions:
    """Queries whose neighbours are asked for. own: their rows among the pictures searched, which are not to be found; None: they are not
    among them."""

    of: Features
    own: np.ndarray | None

    def ask(self, search: Search, k: int = K) -> np.ndarray:
        """(n, k) rows of the nearest, without each query's own; fewer columns where the split has fewer pictures."""
        found = search(self.of.values, k + (self.own is not None))
        return found[:, :k] if self.own is None else without(found, self.own)[:, :k]


def without(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(n, k + 1) rows -> (n, k): each query's own left out, or the last where it is not among them."""
    order = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, order, 1)[:, :-1]


def questions(queries: Features, same: bool, seed: int) -> Questions:
    """Some of the queries, drawn; same: they are of the split that is searched. Raises InputError."""
    if same and len(queries) < 2:
        raise InputError("there is one picture, which has no neighbours; give --split or --queries a split with more")
    rows = np.sort(np.random.default_rng(seed).permutation(len(queries))[:QUESTIONS])
    return Questions(queries.some(rows), rows if same else None)


@dataclass(frozen=True)
class Row:
    """A way to search. bytes_a_picture: held in memory; gb_of_imagenet: those of 1,281,167 pictures, 10^9 bytes; recall: share of the K nearest by
    exact search that it finds; same_class: share of what it finds that is of the query's class, None without labels; queries_a_second: all
    asked at once; made_in_s: time to make ready, None where there is nothing to make.
    """

    method: str
    bytes_a_picture: int
    recall: float
    same_class: float | None
    queries_a_second: float
    made_in_s: float | None

    @property
    def gb_of_imagenet(self) -> float:
        return self.bytes_a_picture * IMAGENET / 1e9

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "gb_of_imagenet": round(self.gb_of_imagenet, 3)}


@dataclass(frozen=True)
class _Way:
    method: str
    bytes_a_picture: int
    search: Search
    made_in_s: float | None


def compare(features: Features, asked: Questions, made: Coded, seed: int) -> Iterator[Row]:
    """A row for each way to search; the exact search comes first, and the others are held against it."""
    truth: np.ndarray | None = None
    for way in _ways(features.values, made, seed):
        found = asked.ask(way.search)  # also the warm-up
        truth = found if truth is None else truth
        yield Row(way.method, way.bytes_a_picture, recall(found, truth), _same(features, asked, found), _speed(asked, way.search), way.made_in_s)


def _ways(values: np.ndarray, made: Coded, seed: int) -> Iterator[_Way]:
    a_picture, bits = values[:1].nbytes, made.coder.bits
    yield _Way("exact, features", a_picture, exact(values), None)
    yield from _inverted(values, seed)
    began = perf_counter()
    yield _Way(f"random hyperplanes, {bits} bits", bits // 8, hyperplanes(values, bits), perf_counter() - began)
    codes = hamming(made)
    yield _Way(f"autoencoder, {bits} bits", bits // 8, codes, made.seconds)
    yield _Way(f"the same, best {SHORTLIST} by features", bits // 8, reranked(codes, values), made.seconds)


def _inverted(values: np.ndarray, seed: int) -> Iterator[_Way]:
    """With each number of lists that there are; none where its copy does not fit into memory, which is said."""
    began = perf_counter()
    try:
        index = inverted_file(values, seed)
    except InputError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    seconds = perf_counter() - began
    for lists in sorted({min(probes, index.nlist) for probes in PROBES}):
        yield _Way(f"inverted file, {lists} of {index.nlist} lists", values[:1].nbytes + 8, probing(index, lists), seconds)


def hyperplanes(values: np.ndarray, bits: int) -> Search:
    """Codes that learn nothing, to hold the autoencoder's against: on which side of `bits` random planes through the middle a picture lies."""
    index = faiss_or_refuse().IndexLSH(values.shape[1], bits, True, True)
    some = np.array(values[:: max(1, len(values) // 10_000)])
    index.train(some)
    step = 65_536
    for start in range(0, len(values), step):
        index.add(np.array(values[start : start + step]))
    return lambda queries, k: index.search(queries, k)[1]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the rows of `truth`, (n, k), that are among those found for the same query."""
    return float(np.mean([np.isin(right, rows).mean() for rows, right in zip(found, truth, strict=True)]))


def _labelled(features: Features, asked: Questions) -> np.ndarray:
    """(n,) bool: which queries have a class to be compared; none where the pictures searched have no labels."""
    mask: np.ndarray = (asked.of.labels >= 0) & (features.labels >= 0).any()
    return mask


def by_chance(features: Features, asked: Questions) -> float | None:
    """Share of all pictures that can be found, a query's own not among them, that are of its class; as Row.same_class."""
    labels = asked.of.labels[_labelled(features, asked)]
    if not len(labels):
        return None
    counts = np.bincount(features.labels[features.labels >= 0], minlength=labels.max() + 1)
    own = int(asked.own is not None)
    return float((counts[labels].mean() - own) / (len(features) - own))


def _same(features: Features, asked: Questions, found: np.ndarray) -> float | None:
    """Share of found pictures with the query's label, over the queries that have one."""
    labelled = _labelled(features, asked)
    if not labelled.any():
        return None
    right = (features.labels[found] == asked.of.labels[:, None]) & (found >= 0)
    return float(right[labelled].sum() / (found[labelled] >= 0).sum())


def _speed(asked: Questions, search: Search) -> float:
    began, rounds = perf_counter(), 0
    while (spent := perf_counter() - began) < LEAST_S or rounds == 0:
        asked.ask(search)
        rounds += 1
    return rounds * len(asked.of) / spent


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    head = ("method", "bytes a picture", "ImageNet's", f"recall@{K}", "same class", "queries/s", "made in")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(_aligned(line, widths)) for line in lines)


def legend(chance: float | None) -> str:
    """What the columns are. chance: see by_chance."""
    same = "" if chance is None else f"; same class: of what it finds (by chance {100 * chance:.1f} %)"
    return f"bytes: held in memory, and for {IMAGENET:,} pictures; recall@{K}: share of the {K} nearest that it finds{same}"


def _aligned(line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def _cells(row: Row) -> tuple[str, ...]:
    size = f"{row.gb_of_imagenet:.3f} GB" if row.gb_of_imagenet < 1 else f"{row.gb_of_imagenet:.1f} GB"
    same = "-" if row.same_class is None else f"{100 * row.same_class:.1f} %"
    made = "-" if row.made_in_s is None else f"{row.made_in_s:.1f} s"
    return row.method, f"{row.bytes_a_picture:,}", size, f"{row.recall:.3f}", same, f"{row.queries_a_second:,.0f}", made
