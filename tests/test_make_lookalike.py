"""The look-alike archives: official layout, honest labels, the promised oddities, repeatable bytes."""

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pipeline.errors import InputError
from tools import make_lookalike as tool
from tools.make_lookalike import make_lookalike

CLASSES, TRAIN, VAL, SEED, SIDE = 4, 5, 3, 7, 64


def draw(out: Path, seed: int = SEED, workers: int = 1) -> Path:
    make_lookalike(out, CLASSES, TRAIN, VAL, seed, SIDE, workers)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("lookalike"))


def members(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of a flat tar, in its order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            found.append((info.name, file.read()))
        return found


def train_pictures(out: Path) -> dict[str, list[tuple[str, bytes]]]:
    """wnid -> its pictures."""
    return {name.removesuffix(".tar"): members(data) for name, data in members((out / tool.ARCHIVES[0]).read_bytes())}


def devkit(out: Path) -> tuple[Any, list[int]]:
    """The synsets, one record each, and the ground truth."""
    with tarfile.open(out / tool.ARCHIVES[2]) as tar:
        files = {info.name: tar.extractfile(info) for info in tar if info.isfile()}
    assert set(files) == {f"{tool.DEVKIT}/data/{name}" for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")}
    with tarfile.open(out / tool.ARCHIVES[2]) as tar:
        meta, truth = (tar.extractfile(name) for name in sorted(files, reverse=True))
        assert meta is not None
        assert truth is not None
        synsets = scipy.io.loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
        return synsets, [int(line) for line in truth.read().split()]


def leaves(out: Path) -> list[Any]:
    return [row for row in devkit(out)[0] if row["num_children"] == 0]


def archive_bytes(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in tool.ARCHIVES]


def test_train_layout(made: Path) -> None:
    pictures = train_pictures(made)
    assert sorted(pictures) == sorted(row["WNID"] for row in leaves(made))
    for wnid, files in pictures.items():
        assert re.fullmatch(r"n9\d{7}", wnid)
        found = [re.fullmatch(rf"{wnid}_(\d+)\.JPEG", name) for name, _ in files]
        numbers = [int(match[1]) for match in found if match]
        assert len(numbers) == len(files) == TRAIN
        assert numbers == sorted(set(numbers))
        assert numbers[-1] - numbers[0] > TRAIN - 1, "the numbers have gaps"


def test_val_layout(made: Path) -> None:
    names = [name for name, _ in members((made / tool.ARCHIVES[1]).read_bytes())]
    assert names == [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, CLASSES * VAL + 1)]
    truth = devkit(made)[1]
    assert np.bincount(truth).tolist() == [0] + [VAL] * CLASSES
    assert truth != sorted(truth)


def test_meta_mat(made: Path) -> None:
    synsets, _ = devkit(made)
    assert synsets.dtype.names == ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    assert [int(row["ILSVRC2012_ID"]) for row in synsets] == list(range(1, len(synsets) + 1))
    assert [int(row["num_train_images"]) for row in leaves(made)] == [TRAIN] * CLASSES
    wnids = [row["WNID"] for row in leaves(made)]
    assert len(set(wnids)) == CLASSES
    assert wnids != sorted(wnids), "IDs must not follow the sorted wnids"
    inner = synsets[CLASSES:]
    assert len(inner) == 3
    assert all(len(np.atleast_1d(row["children"])) == row["num_children"] > 0 for row in inner)
    below = np.concatenate([np.atleast_1d(row["children"]) for row in inner])
    assert sorted(below.tolist()) == list(range(1, len(synsets))), "one tree: each node but the root has one parent"


def test_one_class_has_a_readable_devkit(tmp_path: Path) -> None:
    make_lookalike(tmp_path, 1, 1, 1, 0, 32, 1)
    assert len(leaves(tmp_path)) == 1
    assert devkit(tmp_path)[1] == [1]


def test_labels_are_what_was_drawn(made: Path) -> None:
    """Drawn again from the class that the devkit names, every plain picture has the same bytes."""
    truth, words = devkit(made)[1], {int(row["ILSVRC2012_ID"]): row["words"] for row in leaves(made)}
    val = members((made / tool.ARCHIVES[1]).read_bytes())
    for k, class_id in enumerate(truth):
        job = (SEED, tool.VAL, class_id, k, words[class_id], SIDE, "" if k else "grey")
        assert val[k][1] == tool.draw_job(job)
    for row in leaves(made):
        class_id = int(row["ILSVRC2012_ID"])
        job = (SEED, tool.TRAIN, class_id, TRAIN - 1, words[class_id], SIDE, "")
        assert train_pictures(made)[row["WNID"]][-1][1] == tool.draw_job(job)


def test_oddities(made: Path) -> None:
    pictures, rows = train_pictures(made), leaves(made)
    odd = [Image.open(io.BytesIO(pictures[rows[j % CLASSES]["WNID"]][j // CLASSES][1])) for j in range(6)]
    png, cmyk, grey, turned, huge, progressive = odd
    assert (png.format, png.mode) == ("PNG", "RGBA")
    assert (cmyk.format, cmyk.mode) == ("JPEG", "CMYK")
    assert (grey.format, grey.mode) == ("JPEG", "L")
    assert turned.getexif()[0x0112] == 6
    assert huge.size == (4000, 3000)
    assert "progressive" in progressive.info
    for picture in odd:
        picture.load()
    plain = Image.open(io.BytesIO(pictures[rows[2]["WNID"]][1][1]))
    assert (plain.format, plain.mode, len(plain.getexif())) == ("JPEG", "RGB", 0)
    first_val = Image.open(io.BytesIO(members((made / tool.ARCHIVES[1]).read_bytes())[0][1]))
    assert (first_val.format, first_val.mode) == ("JPEG", "L")


@pytest.mark.parametrize("words", tool.KINDS)
@pytest.mark.parametrize("side", [32, 97])
def test_every_kind_draws_at_odd_sizes(words: str, side: int) -> None:
    for index in range(3):
        data = tool.draw_job((SEED, tool.TRAIN, 1, index, words, side, ""))
        values = np.asarray(Image.open(io.BytesIO(data)))
        assert values.ndim == 3
        assert values.std() > 8


def test_sizes_vary() -> None:
    sizes = [tool.draw_size(np.random.default_rng(i), 500) for i in range(2000)]
    assert np.mean([w > h for w, h in sizes]) > 0.6
    assert any(w < h for w, h in sizes)
    assert any(w == h for w, h in sizes)
    assert 100 <= min(map(min, sizes)) < 140
    assert 740 < max(map(max, sizes)) <= 800


def test_workers_do_not_change_bytes(made: Path, tmp_path: Path) -> None:
    assert archive_bytes(draw(tmp_path, workers=2)) == archive_bytes(made)


def test_other_seed_other_bytes(made: Path, tmp_path: Path) -> None:
    draw(tmp_path, seed=SEED + 1)
    assert all(a != b for a, b in zip(archive_bytes(tmp_path), archive_bytes(made), strict=True))


def test_second_run_does_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert set(before) == {*tool.ARCHIVES, tool.RECORD}, "no temporary file is left"
    draw(made)
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_other_settings_are_refused(made: Path) -> None:
    before = archive_bytes(made)
    with pytest.raises(InputError, match="another --out"):
        draw(made, seed=SEED + 1)
    assert archive_bytes(made) == before


@pytest.mark.parametrize("name", tool.ARCHIVES)
def test_foreign_archive_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"a real ILSVRC")
    with pytest.raises(InputError, match=re.escape(name)):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"a real ILSVRC"


def test_foreign_archive_beside_our_record_is_refused(tmp_path: Path) -> None:
    make_lookalike(tmp_path, 1, 1, 1, 0, 32, 1)
    (tmp_path / tool.ARCHIVES[0]).write_bytes(b"a real ILSVRC")
    with pytest.raises(InputError):
        make_lookalike(tmp_path, 1, 1, 1, 0, 32, 1)
    assert (tmp_path / tool.ARCHIVES[0]).read_bytes() == b"a real ILSVRC"


def test_dangling_link_is_refused(tmp_path: Path) -> None:
    """A link to an ILSVRC on a disk that is not mounted now."""
    (tmp_path / tool.ARCHIVES[0]).symlink_to(tmp_path / "not mounted")
    with pytest.raises(InputError):
        draw(tmp_path)
    assert (tmp_path / tool.ARCHIVES[0]).is_symlink()


def test_archive_that_comes_during_the_drawing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = tmp_path / tool.ARCHIVES[1]

    def meta_and_a_guest(*_: object) -> bytes:
        late.write_bytes(b"a real ILSVRC")
        return b""

    monkeypatch.setattr(tool, "meta_mat", meta_and_a_guest)
    with pytest.raises(InputError):
        make_lookalike(tmp_path, 1, 1, 1, 0, 32, 1)
    assert [path.name for path in tmp_path.iterdir()] == [late.name]
    assert late.read_bytes() == b"a real ILSVRC"


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": 1000}, {"train": 0}, {"val": -1}, {"seed": -1}, {"side": 8}, {"workers": 0}])
def test_settings_out_of_range(wrong: dict[str, int], tmp_path: Path) -> None:
    usual = {"classes": 1, "train": 1, "val": 1, "seed": 0, "side": 32, "workers": 1}
    with pytest.raises(InputError):
        make_lookalike(tmp_path / "out", **{**usual, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--classes", "99"], ["--classes", "many"]])
def test_command_line_errors_are_one_line(arguments: list[str], tmp_path: Path) -> None:
    script = Path(tool.__file__)
    done = subprocess.run([sys.executable, script, "--out", tmp_path / "out", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "error: " in done.stderr


def test_command_line_draws(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"out": tmp_path, "classes": CLASSES, "train": TRAIN, "val": VAL, "seed": SEED, "side": SIDE, "workers": 1}
    monkeypatch.setattr(sys, "argv", ["make_lookalike", *(f"--{name}={value}" for name, value in settings.items())])
    tool.main()
    assert archive_bytes(tmp_path) == archive_bytes(made)
