"""Nearest neighbours by Euclidean distance of features: of all pictures exactly, and by an inverted file, which looks at a part of them.

Both are faiss's. A search is a function of the queries, (n, width) float32, and k; it gives the rows of the k nearest, nearest first,
(n, k) int64, -1 where it found fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import InputError

Search = Callable[[np.ndarray, int], np.ndarray]

BLOCK_BYTES = 1 << 30  # of features that are searched at a time, so that a split need not fit into memory
SPARE = 16  # further candidates of the exact search, which are measured again
AT_ONCE = 64 << 20  # bytes of candidates' features in memory at a time
A_LIST = 64  # pictures that each centre of the inverted file is learned from
EXTRA = "pip install 'alexnet-imagenet[retrieve]'"


def faiss_or_refuse() -> Any:
    """The library, which only this needs. Raises InputError."""
    try:
        import faiss
    except ImportError:
        raise InputError(f"faiss is not installed, which searches for neighbours; {EXTRA}") from None
    return faiss


def nearest(features: np.ndarray, queries: np.ndarray, k: int, block: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distances, (n, k) float32, and rows, (n, k) int64, of the k nearest of all features, nearest first; the lower row first of two at the
    same distance. block: rows at a time.

    The search is that of faiss's IndexFlatL2, without its copy of the features. It computes |q|^2 + |f|^2 - 2qf, which loses the digits of
    small distances; so a few more than k are found that way, and measured as |q - f|.
    """
    faiss = faiss_or_refuse()
    k = min(k, len(features))
    block = block or max(1, BLOCK_BYTES // features[:1].nbytes)
    heap = faiss.ResultHeap(len(queries), min(k + SPARE, len(features)))
    for start in range(0, len(features), block):
        part = features[start : start + block]
        squares, rows = faiss.knn(queries, np.asarray(part), min(heap.k, len(part)))
        heap.add_result(squares, rows + start)
    heap.finalize()
    return measured(features, queries, heap.I, k)


def measured(features: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each query's own candidates, (n, c) rows, as `nearest` gives them; a candidate of -1 is none."""
    candidates = np.sort(candidates, axis=1)  # in the order of the disk; equal distances keep it
    found = np.empty(candidates.shape, np.float32)
    step = max(1, AT_ONCE // (candidates.shape[1] * features[:1].nbytes))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        apart = features[candidates[some]] - queries[some, None]
        found[some] = np.sqrt(np.einsum("qcw,qcw->qc", apart, apart))
    found[candidates < 0] = np.inf
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, 1), np.take_along_axis(candidates, order, 1)


def exact(features: np.ndarray) -> Search:
    return lambda queries, k: nearest(features, queries, k)[1]


def inverted_file(features: np.ndarray, seed: int) -> Any:
    """An IndexIVFFlat: pictures in lists, each around a centre found by k-means; as many lists as the root of the pictures' number.

    With fewer than A_LIST pictures there is one list, and the search is exact. Raises InputError where its copy of the features
    does not fit into memory.
    """
    faiss, (count, width) = faiss_or_refuse(), features.shape
    free = free_memory()
    if features.nbytes > 0.9 * free:
        raise InputError(f"an inverted file of these features takes {features.nbytes / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free")
    lists = max(1, min(math.isqrt(count), count // A_LIST))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
    index.cp.seed, index.cp.min_points_per_centroid = seed + 1, 1
    sample = np.random.default_rng(seed).permutation(count)[: A_LIST * lists]
    index.train(np.array(features[np.sort(sample)]))
    block = max(1, BLOCK_BYTES // features[:1].nbytes)
    for start in range(0, count, block):
        index.add(np.asarray(features[start : start + block]))
    return index


def free_memory() -> float:
    """Bytes that can still be taken; what does not tell is taken to have enough."""
    about = Path("/proc/meminfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")), math.inf)


def probing(index: Any, lists: int) -> Search:
    """Search of the lists whose centres are nearest."""

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        index.nprobe = lists
        rows: np.ndarray = index.search(queries, k)[1]
        return rows

    return search
