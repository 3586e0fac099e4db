"""Damage to the files of a shard folder: to chosen samples; and at random, with the samples that it has really touched."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from conftest import reseal
from PIL import Image

from pipeline.shards import ShardSet

Member = tuple[int, int, str]  # first byte of the header, size, name
# How often each way is taken; those that change a file's size are found before anything is read.
WAYS = {"flip": 20, "flips": 14, "noise": 14, "zero": 14, "blocks": 8, "slide": 6, "text": 14, "truncate": 4, "grow": 3, "shift": 3}


def damage(path: Path, rng: np.random.Generator, sound: Path) -> str:
    """Damage a file in one of the ways that disks, copies and people do; what was done. sound: the same folder, undamaged."""
    content, members = bytearray(path.read_bytes()), list(_members(sound / path.with_suffix(".idx").name)) if path.suffix == ".tar" else []
    at, way = _place(members, len(content), rng), str(rng.choice(list(WAYS), p=np.array(list(WAYS.values())) / 100))
    if way == "text":
        way, content = _text(members, content, rng)
    elif way == "flip":
        content[at] ^= 1 << int(rng.integers(8))
    elif way == "flips":
        for place in rng.integers(len(content), size=int(rng.integers(2, 12))):
            content[place] ^= 1 << int(rng.integers(8))
    elif way == "noise":
        part = content[at : at + int(rng.integers(1, 64))]
        content[at : at + len(part)] = rng.bytes(len(part))
    elif way == "zero":
        part = content[at : at + int(rng.choice([1, 16, 512, 4096, 20000]))]
        content[at : at + len(part)] = bytes(len(part))
    elif way == "blocks":
        _swap_blocks(content, rng)
    elif way == "truncate":
        del content[at:]
    elif way == "grow":
        content += rng.bytes(int(rng.choice([1, 512, 10240])))
    else:
        content[at:at] = bytes(512)
        if way == "slide":  # what a lost block in the middle of a copy does: the size stays
            del content[-512:]
    path.write_bytes(content)
    return f"{way} at {at} of {path.name}"


def _place(members: list[Member], size: int, rng: np.random.Generator) -> int:
    """Anywhere; in tars half of the time in a header, which are few of its bytes."""
    if members and rng.random() < 0.5:
        fields = [(0, 40), (124, 136), (297, 313), (0, 512)]  # name, size, sum, all
        return int(rng.choice([start for start, _, _ in members]) + rng.integers(*fields[int(rng.integers(4))]))
    return int(rng.integers(size))


def _swap_blocks(content: bytearray, rng: np.random.Generator) -> None:
    blocks = max(1, len(content) // 512)
    i, j = (512 * int(place) for place in rng.integers(blocks, size=2))
    one, other = content[i : i + 512], content[j : j + 512]
    content[i : i + len(one)], content[j : j + len(other)] = other[: len(one)].ljust(len(one)), one[: len(other)].ljust(len(other))


def _text(members: list[Member], content: bytearray, rng: np.random.Generator) -> tuple[str, bytearray]:
    """What goes wrong with text: lines swapped, lost, doubled; a number that is another one. Of a tar: a size in a header."""
    if members:
        start, size, _ = members[int(rng.integers(len(members)))]
        content[start + 124 : start + 135] = b"%011o" % max(0, size + int(rng.choice([-512, -1, 1, 512, 1 << 20])))
        return "wrong size", content
    lines = content.splitlines(keepends=True)
    i, j = (int(row) for row in rng.integers(len(lines), size=2))
    way = str(rng.choice(["swapped lines", "lost line", "doubled line", "wrong number"]))
    if way == "swapped lines":
        lines[i], lines[j] = lines[j], lines[i]
    elif way == "lost line":
        del lines[i]
    elif way == "doubled line":
        lines.insert(i, lines[i])
    else:
        lines[i] = _wrong_number(lines[i], rng)
    return way, bytearray(b"".join(lines))


def _wrong_number(line: bytearray, rng: np.random.Generator) -> bytearray:
    words = line.split(b" ")
    numbers = [k for k, word in enumerate(words) if word.strip(b",\n").isdigit()]
    if not numbers:
        return line
    k = numbers[int(rng.integers(len(numbers)))]
    value = int(words[k].strip(b",\n"))
    wrong = [value + 1, value - 1, value + 512, 10 * value, -value, 0, 10**30, 2**63 - 1]
    words[k] = words[k].replace(b"%d" % value, b"%d" % wrong[int(rng.integers(len(wrong)))])
    return bytearray(b" ".join(words))


def _members(index: Path) -> Iterator[Member]:
    """Every member of a shard, two a sample."""
    for line in index.read_text().splitlines()[1:]:
        _, offset, size, name, _, label_offset, label_size, label_name = line.split(" ")
        yield int(offset) - 512, int(size), name
        yield int(label_offset) - 512, int(label_size), label_name


def changed_samples(sound: Path, tar: Path) -> set[int]:
    """Rows of a shard's samples of which a byte that says something differs between a sound tar and its index, and those beside `tar`.

    That is name, size, sum and data of a member, and the numbers and names of a line of the index; neither the other fields
    of a header, which no reader of ours looks at, nor padding. Only for damage that leaves the files' sizes as they were.
    """
    before, after = sound.read_bytes(), tar.read_bytes()
    bad = set()
    for number, (start, size, name) in enumerate(_members(sound.with_suffix(".idx"))):
        data = start + 512
        places = [(start, start + len(name) + 1), (start + 124, start + 136), (start + 297, start + 313), (data, data + size)]
        if any(before[a:b] != after[a:b] for a, b in places):
            bad.add(number // 2)
    lines, others = (path.with_suffix(".idx").read_text("latin-1").splitlines()[1:] for path in (sound, tar))
    return bad | {row for row, (line, other) in enumerate(zip(lines, others, strict=False)) if line != other}


def damage_jpeg(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """Damage in the headers or in the data of a JPEG."""
    content = bytearray(jpeg)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(2, 640 if rng.random() < 0.4 else len(content)))
        part = content[at : at + int(rng.choice([1, 2, 8, 100, 2000]))]
        way = str(rng.choice(["flip", "noise", "zero", "marker", "truncate", "lose"]))
        if way == "flip":
            content[at] ^= 1 << int(rng.integers(8))
        elif way == "marker":
            content[at : at + 2] = bytes([255, int(rng.integers(1, 255))])[: len(content) - at]
        elif way == "truncate":
            del content[max(at, 100) :]
        elif way == "lose":
            del content[at : at + len(part)]
        else:
            content[at : at + len(part)] = rng.bytes(len(part)) if way == "noise" else bytes(len(part))
        if len(content) < 700:
            break
    return bytes(content)


# --- of chosen samples


def flip_bit(shards: Path, split: str, *samples: int) -> None:
    """Flip one bit of the JPEGs of some samples; their CRC tells."""
    one = ShardSet(shards, split)
    for path, _, offset in map(one.place, samples):
        with open(path, "r+b") as file:
            file.seek(offset + 1000)
            byte = file.read(1)[0]
            file.seek(offset + 1000)
            file.write(bytes([byte ^ 8]))


def change_pictures(shards: Path, split: str, samples: Iterable[int], how: Callable[[bytes, int], tuple[bytes, int]]) -> None:
    """Change the JPEGs and labels of some samples, with all sums right."""
    one = ShardSet(shards, split)
    places = [one.place(sample) for sample in samples]
    for name in sorted({path.name for path, _, _ in places}):
        keys = {key for path, key, _ in places if path.name == name}

        def change(found: list[tuple[str, bytes, int]], keys: set[str] = keys) -> None:
            found[:] = [(key, *(how(jpeg, label) if key in keys else (jpeg, label))) for key, jpeg, label in found]

        reseal(shards, name, change)


def spoil(shards: Path, split: str, *samples: int) -> None:
    """Pictures that only the decoder finds fault with."""
    change_pictures(shards, split, samples, lambda jpeg, label: (no_codes(jpeg), label))


def no_codes(jpeg: bytes) -> bytes:
    """The first Huffman table claims more codes than there can be."""
    at = jpeg.index(b"\xff\xc4")
    return jpeg[: at + 5] + b"\xff" * 16 + jpeg[at + 21 :]


def as_png(jpeg: bytes) -> bytes:
    """A picture that Pillow and DALI would decode, which is no JPEG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((32, 32)).resize((256, 256)).save(buffer, "PNG")
    return buffer.getvalue()


MIXTURES: dict[str, Callable[[int], bool]] = {"read": lambda _: False, "decoded": lambda _: True, "mixed": lambda number: number % 2 == 0}


def break_some(shards: Path, split: str, bad: list[int], mixture: str) -> None:
    """Faults that reading finds, or only decoding, or in turns."""
    spoil(shards, split, *(sample for number, sample in enumerate(bad) if MIXTURES[mixture](number)))
    flip_bit(shards, split, *(sample for number, sample in enumerate(bad) if not MIXTURES[mixture](number)))


def samples_beyond(shards: ShardSet, path: Path, end: int = 0) -> set[int]:
    """Samples of a tar that reach over its byte `end`."""
    first = [sample for sample in range(len(shards)) if shards.place(sample)[0] == path]
    reach = [shards.place(sample + 1)[2] - 512 if sample + 1 in first else path.stat().st_size for sample in first]
    return {sample for sample, last in zip(first, reach, strict=True) if last > end}
