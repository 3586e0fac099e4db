"""Nearest pictures by what a layer gives for them (paper, section 6.1 and Figure 4), exactly, approximately, and by short binary codes.

python -m model.retrieve --checkpoint runs/RUN/checkpoints/best --shards shards/

Writes into RUN/retrieval/: the features of both splits (model/retrieve_features.py), the codes, retrieval.json with the table that it
prints, neighbours.png and map.png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.evaluate import load_net
from model.layout import Layout, choose
from model.memory import keep_freed_memory
from model.net import Net
from model.pictures import Source, augmentation
from model.recipe import Recipe
from model.retrieve_codes import Coded, check_bits, coded, read_coded, write_coded
from model.retrieve_features import LAYERS, Features, Origin, alone_in, checkpoint_digest, progress, saved_features, write_features
from model.retrieve_index import exact, faiss_or_refuse, measured
from model.retrieve_map import draw_map, map_rows, placed, tsne_or_refuse
from model.retrieve_sheet import Shown, class_names, draw_sheet, neighbours_of, shown_queries, stored, write_png
from model.retrieve_table import K, Questions, by_chance, compare, legend, questions, table
from model.ways import Ways
from pipeline import ImageLoader, InputError, ShardSet, atomic_file, one_line_errors

SPLITS = ("train", "val", "test")


def _read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Nearest pictures by their fc7 features: exact search, an index, short binary codes.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a run: runs/RUN/checkpoints/best, latest, or a step's")
    parser.add_argument("--shards", default="shards", help="folder made by make_shards, or its URL (default: shards/)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="whose pictures are searched (default: train)")
    parser.add_argument("--queries", choices=SPLITS, default="val", help="whose pictures are looked for (default: val)")
    parser.add_argument("--layer", choices=LAYERS, default="fc7", help="whose outputs are compared (default: fc7)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of what is written (default: RUN/retrieval)")
    parser.add_argument("--codes", type=int, default=128, metavar="BITS", help="of the autoencoder's codes, a multiple of 8 (default: 128)")
    parser.add_argument("--batch", type=int, help="pictures at a time (default: by the recipe)")
    parser.add_argument("--seed", type=int, default=0, help="of the codes, of the queries that are drawn, and of the map (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--on-bad-sample", choices=("stop", "skip"), default="stop", help="a picture that cannot be used is left out by skip")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    parser.add_argument("--local-gb", type=float, help="of a URL: most of that folder to use, 10^9 bytes (default: half of what is free)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class _Trained:
    """A net whose features are asked for, and what has to be known of it. digest: of its checkpoint."""

    net: Net
    recipe: Recipe
    wnids: list[str]
    digest: str
    device: torch.device


@dataclass(frozen=True)
class _Side:
    """A split and its features."""

    shards: ShardSet
    features: Features
    origin: Origin


def _trained(given: argparse.Namespace) -> _Trained:
    """The net, ready on its device. It computes in float32 also where it was trained in bfloat16: neighbours are told by small differences."""
    device = torch.device(choose(1, 1, given.device, 1)[2])
    net, recipe, content = load_net(given.checkpoint)
    if given.layer not in recipe.model.layers():
        other = next((layer for layer in LAYERS if layer in recipe.model.layers()), None)
        raise InputError(f"the net of {given.checkpoint} has no {given.layer}; {f'use --layer {other}' if other else 'give another checkpoint'}")
    net.ways = Ways(fused=recipe.train.step == "fast")
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Trained(net, recipe, content["wnids"], checkpoint_digest(content), device)


def _shards(given: argparse.Namespace, split: str, wnids: list[str]) -> ShardSet:
    """A split that has pictures, of the classes that the net knows. Raises InputError."""
    shards = ShardSet(given.shards, split, given.local, given.local_gb)
    if not len(shards):
        raise InputError(f"{given.shards} has no pictures in its {split} split; make shards from a source that has some")
    if [entry.wnid for entry in shards.manifest.classes] != wnids:
        raise InputError(f"{given.shards} has other classes than {given.checkpoint} was trained on; give the shards of its training")
    return shards


def _side(given: argparse.Namespace, trained: _Trained, shards: ShardSet, out: Path) -> _Side:
    """The features of a split, taken from an earlier call or made now."""
    origin = Origin(shards.split, given.layer, trained.digest, shards.digest)
    found = saved_features(out, origin)
    if found is not None:
        print(f"{shards.split}: {len(found):,} pictures, {found.width:,} values of {given.layer} each, there already")
        return _Side(shards, found, origin)
    loader = _loader(given, trained, shards.split)
    found, clock = write_features(trained.net, loader, out, origin)
    print(f"{shards.split}: {len(found):,} pictures, {found.width:,} values of {given.layer} each: {clock}")
    for one in loader.skipped:
        print(f"left out: {one.shard}, sample {one.key} at offset {one.offset}: {one.reason}")
    return _Side(shards, found, origin)


def _loader(given: argparse.Namespace, trained: _Trained, split: Any) -> ImageLoader:
    """Centre views of a split in stored order, each picture once."""
    source = Source(given.shards, _cores(), given.on_bad_sample, given.local, given.local_gb)
    batch, how = given.batch or trained.recipe.train.batch, augmentation(trained.recipe)
    return ImageLoader(given.shards, split, batch=batch, views="centre", augmentation=how, **source.common(Layout(device=trained.device)))


def _codes(given: argparse.Namespace, device: torch.device, searched: _Side, out: Path) -> Coded:
    """Those of an earlier call, or learned now."""
    made = read_coded(out, searched.origin, given.codes, given.seed)
    if made is None:
        made = coded(searched.features.values, given.codes, given.seed, device)
        write_coded(out, searched.origin, given.seed, made)
    print(f"codes of {given.codes} bits, learned in {made.seconds:.1f} s: the autoencoder loses {100 * made.lost:.1f} % of the features' variance")
    return made


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _retrieve(given: argparse.Namespace) -> int:
    check_bits(given.codes)
    faiss_or_refuse()
    tsne_or_refuse()
    trained = _trained(given)
    if trained.device.type == "cpu":
        torch.set_num_threads(_cores())
    keep_freed_memory(trained.device)
    shards, queried = (_shards(given, split, trained.wnids) for split in (given.split, given.queries))
    out: Path = given.out or given.checkpoint.resolve().parent.parent / "retrieval"
    with alone_in(out):
        searched = _side(given, trained, shards, out)
        asking = searched if given.queries == given.split else _side(given, trained, queried, out)
        made = _codes(given, trained.device, searched, out)
        _compare(given, searched, asking, made, out)
        _draw_neighbours(given, searched, asking, out)
        _draw_map(given, asking, out)
    return 0


def _compare(given: argparse.Namespace, searched: _Side, asking: _Side, made: Coded, out: Path) -> None:
    """The table, printed and written."""
    faiss, features = faiss_or_refuse(), searched.features
    asked = questions(asking.features, searched is asking, given.seed)
    rows, threads = list(progress(compare(features, asked, made, given.seed), "searches")), faiss.omp_get_max_threads()
    chance = by_chance(features, asked)
    print(f"\n{len(asked.of):,} queries at once on {threads} threads, of {len(features):,} pictures\n{table(rows)}\n{legend(chance)}\n")
    about = {
        "split": given.split,
        "queries_split": given.queries,
        "layer": given.layer,
        "width": features.width,
        "pictures": len(features),
        "queries": len(asked.of),
        "k": K,
        "seed": given.seed,
        "threads": threads,
        "faiss": faiss.__version__,
        "bits": given.codes,
        "variance_lost": made.lost,
        "same_class_by_chance": chance,
        "extraction": {side.origin.split: side.features.took for side in (searched, asking)},
    }
    with atomic_file(out / "retrieval.json", "w") as file:
        json.dump({**about, "methods": [row.as_json() for row in rows]}, file, indent=1)
    print(out / "retrieval.json")


def _draw_neighbours(given: argparse.Namespace, searched: _Side, asking: _Side, out: Path) -> None:
    """Some queries of different classes, each beside its nearest."""
    rows = shown_queries(asking.features.labels, given.seed)
    asked = Questions(asking.features.some(rows), rows if searched is asking else None)
    features, names, lines = searched.features, class_names(asking.shards), []
    far, near = measured(features.values, asked.of.values, asked.ask(exact(features.values)), K)
    for i, (sample, label) in enumerate(zip(asked.of.ids.tolist(), asked.of.labels.tolist(), strict=True)):
        query = Shown(stored(asking.shards, sample), names[label] if label >= 0 else "")
        lines.append((query, neighbours_of(searched.shards, features, near[i], far[i], label)))
    words = (
        f"{given.queries} picture",
        f"nearest {given.split} pictures, with their Euclidean distance of {given.layer}; framed: of the same class",
    )
    write_png(draw_sheet(lines, words), out / "neighbours.png")


def _draw_map(given: argparse.Namespace, side: _Side, out: Path) -> None:
    """Left out, which is said, where there is nothing to map."""
    some = side.features.some(map_rows(side.features.labels, given.seed))
    words = f"{given.layer} of {len(some):,} {given.queries} pictures, t-SNE"
    try:
        places = placed(some.values, given.seed)
    except InputError as error:
        (out / "map.png").unlink(missing_ok=True)  # an earlier one is of other features
        print(f"no map.png: {error}", file=sys.stderr)
        return
    write_png(draw_map(places, some.labels, class_names(side.shards), words), out / "map.png")


def main(arguments: list[str] | None = None) -> int:
    given = _read_arguments(arguments)
    with one_line_errors():
        return _retrieve(given)
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
