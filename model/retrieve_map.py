"""Features on a plane, as a picture: t-SNE, a point a picture, coloured by its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from model.retrieve_index import EXTRA
from model.retrieve_sheet import INK, LIGHT, WIDTH
from pipeline import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, CLASSES = 2000, 20  # at most
MARKERS = "o^"  # ten colours with each
LEAST = 8  # pictures that make a map


def map_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows that the map is of: of up to CLASSES classes, evenly from the first to the last, at most POINTS pictures, evenly drawn."""
    there = np.unique(labels)
    chosen = there[np.linspace(0, len(there) - 1, min(CLASSES, len(there))).round().astype(int)]
    order = np.random.default_rng(seed).permutation(len(labels))
    each = POINTS // len(chosen)
    return np.sort(np.concatenate([order[labels[order] == label][:each] for label in chosen]))


def tsne_or_refuse() -> tuple[Any, Any]:
    """scikit-learn's class, and what keeps it to a number of threads. Raises InputError."""
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError(f"scikit-learn is not installed, which draws the map; {EXTRA}") from None
    return TSNE, threadpool_limits


def placed(values: np.ndarray, seed: int) -> np.ndarray:
    """(n, width) features -> (n, 2) places: t-SNE of their first 50 principal components (van der Maaten, Hinton, 2008, section 4.2)."""
    centred = values - values.mean(axis=0)
    if len(values) < LEAST:
        raise InputError(f"a map needs {LEAST} pictures, and there are {len(values)}; give --queries a split with more")
    if not centred.any():
        raise InputError("the net gives all pictures the same features, so there is nothing to map; train it, or give another checkpoint")
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    components = (left * sizes)[:, :50]
    perplexity = min(30.0, (len(values) - 1) / 3)
    tsne, limits = tsne_or_refuse()
    with limits(1):  # the same sums in the same order, and no thousand waits of threads for each other; 2,000 pictures take ten seconds
        places: np.ndarray = tsne(init="pca", perplexity=perplexity, random_state=seed).fit_transform(components)
    return places


def draw_map(places: np.ndarray, labels: np.ndarray, names: Sequence[str], words: str) -> Figure:
    """A point a picture, by class in a colour and form; words: over it."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 7.0), layout="constrained")
    axes, colours = figure.subplots(), colormaps["tab10"].colors  # type: ignore[attr-defined]
    for i, label in enumerate(np.unique(labels)):
        x, y = places[labels == label].T
        name = names[label] if label >= 0 else "without a label"
        axes.scatter(x, y, s=16, color=colours[i % 10], marker=MARKERS[i // 10], linewidths=0, alpha=0.8, label=name)
    axes.set_title(words, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color(LIGHT)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    figure.legend(loc="outside right upper", fontsize=9, frameon=False, markerscale=1.6)
    return figure
