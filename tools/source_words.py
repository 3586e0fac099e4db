"""Lists of classes as text: what a wnid is in words, or the names of labels 0, 1, 2, ..."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError


def read_words(path: Path) -> dict[str, str]:
    """Words by wnid from lines "n01440764 tench, Tinca tinca", as in synset_words.txt; words.txt has a tab between. Raises InputError."""
    words = {}
    for line in read_lines(path):
        wnid, *rest = line.split(None, 1)
        words[wnid] = rest[0].strip() if rest else wnid
    return words


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty. Raises InputError."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; fetch this list of classes again") from None
