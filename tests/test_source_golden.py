"""The known facts of a year's data: what agrees passes and says so, what does not is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import source_fixtures as made

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry
from tools import source_folders, source_kaggle, source_parquet, source_targz, source_webdataset
from tools.source_archives import CHALLENGE_2010, list_archives
from tools.source_entries import Entry, class_table
from tools.source_golden import ILSVRC2010, ILSVRC2012, Golden, check_golden, check_sizes, is_real, wnids_digest
from tools.sources import list_source

WNIDS = [f"n{n:08d}" for n in range(1000)]
WHERE = Path("place")


def entries(split: str, labels: list[int]) -> list[Entry]:
    return [Entry(f"{split}/{k}", f"ILSVRC2012_{split}_{k:08d}", label, "file", 0, 1) for k, label in enumerate(labels, 1)]


def made_up() -> tuple[Golden, tuple[ClassEntry, ...], dict[str, list[Entry]]]:
    """Facts of data with as many classes and validation pictures as the real one has, and that data."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 50)).tolist()
    ids = {wnid: 1000 - i for i, wnid in enumerate(WNIDS)}
    golden = Golden(
        name="ILSVRC2012",
        classes_sha256=hashlib.sha256(("\n".join(WNIDS) + "\n").encode()).hexdigest(),
        by_id=False,
        counts={"train": 1200, "val": 50_000, "test": 3},
        a_class={"val": 50, "test": 1},
        first_ids=(WNIDS[999], WNIDS[998]),
        first_val=tuple(WNIDS[label] for label in labels[:5]),
        val_sha256=hashlib.sha256(("\n".join(WNIDS[label] for label in labels) + "\n").encode()).hexdigest(),
    )
    splits = {"train": entries("train", [k % 1000 for k in range(1200)]), "val": entries("val", labels), "test": entries("test", [-1] * 3)}
    return golden, class_table(WNIDS, ids=ids), splits


def refused(golden: Golden, classes: tuple[ClassEntry, ...], splits: dict[str, list[Entry]], *words: str, exact: bool = True) -> None:
    with pytest.raises(InputError) as caught:
        check_golden(golden, WHERE, classes, splits, exact)
    for word in (str(WHERE), *words):
        assert word in str(caught.value), caught.value


def test_what_agrees() -> None:
    golden, classes, splits = made_up()
    shuffled = {"train": splits["train"], "val": splits["val"][::-1], "test": splits["test"]}  # the order is that of the names
    counts, labels = check_golden(golden, WHERE, classes, shuffled, exact=True)
    assert counts == "counts: 1,200 train, as published; 50,000 val, as published; 3 test, as published"
    for word in ("class list", "5 of the first 5 validation labels", "all 50,000 validation labels", "50 val pictures a class"):
        assert word in labels
    assert "1 test" not in labels  # without labels there is nothing to say


def test_wrong_validation_labels() -> None:
    golden, classes, splits = made_up()
    val = splits["val"]
    devkit_order = [entry._replace(label=999 - entry.label) for entry in val]
    refused(golden, classes, {**splits, "val": devkit_order}, "val/1 is labelled", golden.first_val[0])
    in_class_folder = devkit_order[0]._replace(key="n00000004_ILSVRC2012_val_00000001")
    refused(golden, classes, {**splits, "val": [in_class_folder]}, "val/1 is labelled", exact=False)
    swapped = list(val)
    i, j = 49_998, next(k for k in range(40_000, 49_998) if val[k].label != val[49_998].label)
    swapped[i], swapped[j] = val[i]._replace(label=val[j].label), val[j]._replace(label=val[i].label)
    refused(golden, classes, {**splits, "val": swapped}, "not all 50,000")
    uneven = [*val[:-1], val[-1]._replace(label=(val[-1].label + 1) % 1000)]
    refused(replace(golden, val_sha256=None), classes, {**splits, "val": uneven}, f"class {WNIDS[val[-1].label]} has 49 val pictures", "50")


def test_wrong_counts_and_numbers() -> None:
    golden, classes, splits = made_up()
    for split in splits:
        refused(
            golden, classes, {**splits, split: splits[split][:-1]}, f"{len(splits[split]) - 1:,} {split} pictures, ILSVRC2012 {len(splits[split]):,}"
        )
    counts, _ = check_golden(golden, WHERE, classes, {**splits, "train": splits["train"][:-1]}, exact=False)
    assert "1,199 train, of 1,200 in ILSVRC2012" in counts
    by_wnid = tuple(row.model_copy(update={"ilsvrc_id": row.index + 1}) for row in classes)
    refused(golden, by_wnid, splits, f"class 1 is {WNIDS[0]}, in ILSVRC2012 {WNIDS[999]}")
    labelled = [entry._replace(label=4) for entry in splits["test"]]
    refused(golden, classes, {**splits, "test": labelled}, f"class {WNIDS[0]} has 0 test pictures")


def test_names_that_say_nothing() -> None:
    golden, classes, splits = made_up()
    few = check_golden(golden, WHERE, classes, {**splits, "val": splits["val"][3:10]}, exact=False)[1]
    assert "2 of the first 5 validation labels" in few
    assert "all" not in few
    unnamed = [entry._replace(key=f"{k:08d}") for k, entry in enumerate(splits["val"])]
    labels = check_golden(golden, WHERE, classes, {**splits, "val": unnamed}, exact=False)[1]
    assert "could not be checked" in labels
    assert "validation labels" not in labels.replace("their labels could not", "")


def test_the_real_lists_are_known_by_their_sums_only() -> None:
    """A thousand other classes, and one of them changed, are not the thousand; order counts where it is the devkit's."""
    _, classes, splits = made_up()
    assert not is_real(ILSVRC2012, classes)
    assert not is_real(ILSVRC2010, classes)
    assert check_golden(ILSVRC2012, WHERE, classes, splits, exact=True) == (
        "not the 1,000 classes of ILSVRC2012 (1,000 classes): golden labels not checked",
    )
    ordered = replace(ILSVRC2010, classes_sha256=wnids_digest(reversed(WNIDS)))
    assert is_real(ordered, classes)
    assert not is_real(ordered, class_table(WNIDS, ids={wnid: i for i, wnid in enumerate(WNIDS, 1)}))
    assert not is_real(ordered, class_table(WNIDS))
    assert not is_real(ordered, classes[1:])


def test_sizes(tmp_path: Path) -> None:
    golden = replace(ILSVRC2012, sizes={"a.tar": 100})
    for size, word in ((60, "the download stopped at byte 60"), (140, "not the official archive")):
        (tmp_path / "a.tar").write_bytes(bytes(size))
        with pytest.raises(InputError, match=word):
            check_sizes(golden, [tmp_path / "a.tar"])
    (tmp_path / "a.tar").write_bytes(bytes(100))
    (tmp_path / "b.tar").write_bytes(bytes(7))
    check_sizes(golden, [tmp_path / "a.tar", tmp_path / "b.tar"])


TOY = Golden(
    name="ILSVRC2012",
    classes_sha256=wnids_digest(made.WNIDS),
    by_id=False,
    counts={"train": 6, "val": 4, "test": 2},
    a_class={},
    first_val=tuple(made.WNIDS[label] for label in made.VAL),
    val_sha256=wnids_digest(made.WNIDS[label] for label in made.VAL),
)
SOURCES: dict[str, tuple[ModuleType, Callable[[Path], object], bool]] = {
    "kaggle": (source_kaggle, made.make_kaggle, True),
    "class-folders": (source_folders, made.make_class_folders, False),
    "huggingface-parquet": (source_parquet, made.make_parquet, False),
    "huggingface-archives": (source_targz, made.make_targz, True),
    "webdataset": (source_webdataset, made.make_webdataset, False),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_of_2012_is_compared(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the toy's facts in the place of the real ones."""
    module, make, exact = SOURCES[kind]
    make(tmp_path / "source")
    monkeypatch.setattr(module, "ILSVRC2012", TOY)
    listing = list_source(tmp_path / "source")
    assert listing.source.kind == kind
    assert any("4 of the first 4 validation labels, all 4 validation labels" in line for line in listing.checks)
    for wrong in (replace(TOY, first_val=TOY.first_val[::-1]), replace(TOY, val_sha256="0" * 64)):
        monkeypatch.setattr(module, "ILSVRC2012", wrong)
        made.refused(tmp_path / "source", "labels and pictures do not belong together")
    monkeypatch.setattr(module, "ILSVRC2012", replace(TOY, counts={**TOY.counts, "train": 7}))
    if exact:
        made.refused(tmp_path / "source", "6 train pictures, ILSVRC2012 7")
    else:
        assert any("6 train, of 7 in ILSVRC2012" in line for line in list_source(tmp_path / "source").checks)


def test_archives_are_compared_before_and_after_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "2010"
    made.make_2010(folder)
    golden = replace(
        ILSVRC2010,
        classes_sha256=wnids_digest(made.IDS_2010),
        counts=TOY.counts,
        a_class={"test": 1},
        first_ids=made.IDS_2010[:2],
        sizes={"ILSVRC2010_images_train.tar": (folder / "ILSVRC2010_images_train.tar").stat().st_size},
    )
    toy = replace(CHALLENGE_2010, golden=golden)
    with pytest.raises(InputError, match=f"class {made.WNIDS[0]} has 0 test pictures"):  # two test pictures for three classes
        list_archives(toy, folder)
    checks = list_archives(replace(toy, golden=replace(golden, a_class={})), folder).checks
    assert "counts: 6 train, as published; 4 val, as published; 2 test, as published" in checks
    wrong = {
        "has 4 val pictures, ILSVRC2010 5": {"counts": {**TOY.counts, "val": 5}},
        "the devkit's class 1 is": {"first_ids": made.IDS_2010[1:]},
        "the download stopped at byte": {"sizes": {"ILSVRC2010_images_train.tar": 147_000_000_000}},
    }
    for message, facts in wrong.items():
        with pytest.raises(InputError, match=message):
            list_archives(replace(toy, golden=replace(golden, a_class={}, **facts)), folder)  # type: ignore[arg-type]
