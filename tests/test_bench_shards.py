"""The conversion benchmark, on a few drawn pictures. Of the peers only Pillow runs in our own environment, so it stands for all of them here."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import torchvision_loads
from PIL import Image, ImageFilter

from pipeline.errors import InputError
from tools import bench_shards_plot, bench_shards_workers
from tools.bench_shards import KINDS, main
from tools.bench_shards_own import OWN, asked, settings
from tools.bench_shards_quality import judge, psnr, references
from tools.bench_shards_results import table
from tools.bench_shards_workers import Worker, ask
from tools.peer_conversions import read_pictures, run
from tools.peer_converters import PEERS
from tools.picture import convert, plain_pixels

SIZES = [(500, 375), (333, 500), (1100, 560), (200, 230)]


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether or not the peers are installed on this machine, the test runs without them."""
    monkeypatch.setattr(bench_shards_workers, "PYTHON", tmp_path / "no-venv")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four JPEGs of colours, to be reduced by less and by more than two, and to be enlarged, and a grey one."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for number, (width, height) in enumerate(SIZES):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
        picture = noise.point([min(max(4 * value - 380, 0), 255) for value in range(256)] * 3)
        picture.save(folder / f"{number}.jpg", quality=92, subsampling="4:2:0" if number % 2 else "4:4:4")
    Image.open(folder / "0.jpg").convert("L").save(folder / "4.JPEG", quality=92)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_every_row_counts_its_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], own_environment: None) -> None:
    out = tmp_path / "new" / "x.json"
    names = ["ours", "ours-sums", "ours-444", "limit", "pillow", "pyvips"]
    assert main(["--pictures", str(pictures), "--rounds", "2", "--rows", ",".join(names), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(row["row"], row["processes"]) for row in result["rows"]] == [(name, n) for n in (1, 2) for name in names[:-1]]
    for row in result["rows"]:
        for rate in ("per_core", "per_cpu_s"):
            assert 0 < row[rate]["min"] <= row[rate]["median"] <= row[rate]["max"], row
        assert (row["failed"], row["other_form"], row["what"]) == (0, "", KINDS[row["row"]].what)
        assert (row["psnr_db"] is None) == (row["row"] in ("ours-sums", "limit")), row
    rows = {row["row"]: row for row in result["rows"]}
    assert 30 < rows["ours"]["psnr_db"] < rows["ours-444"]["psnr_db"], "chroma at full size is nearer"
    assert abs(rows["ours"]["psnr_db"] - rows["pillow"]["psnr_db"]) < 0.3, "the same resampling, one decoded in full"
    assert rows["ours"]["bytes"] < rows["pillow"]["bytes"], "optimised Huffman tables"
    assert set(rows["ours-sums"]["inside_us"]) == {"sums"}
    assert set(rows["limit"]["inside_us"]) == {"decode", "encode"}
    assert result["left_out"].keys() == {"pyvips"}
    assert {"pillow", "numba", "turbojpeg"} <= set(result["versions"]["of the rows"]["ours"])
    assert [line["row"] for line in result["hours"]] == [line["row"] for line in result["linearity"]] == names[:-1]
    printed, said = capsys.readouterr()
    assert printed == table(result) + "\n"
    missing = "row pyvips is not measured: No module named 'pyvips'; install the peers with: make peers-shards"
    assert missing in said.splitlines()
    assert missing in printed
    written = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [(r["row"], float(r["per_core_median"])) for r in written] == [(r["row"], r["per_core"]["median"]) for r in result["rows"]]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    for text in (out.read_text(), out.with_suffix(".csv").read_text(), printed):
        assert str(tmp_path.parent) not in text, "the result names a folder of this machine"
        assert str(pictures) not in text


# --- what the rows do


def test_our_rows_are_what_make_shards_does(pictures: Path) -> None:
    given = read_pictures(pictures, None)
    rows: dict[str, dict[str, Any]] = {"ours": {}, "ours-full": {"decode": "full"}, "ours-444": {"subsampling": "4:4:4"}, "ours-q80": {"quality": 80}}
    for name, more in rows.items():
        row = OWN[name].make(given)
        assert [row.convert(jpeg) for jpeg in given] == [convert(jpeg, settings(**more)).jpeg for jpeg in given], name
        assert (OWN[name].quality, OWN[name].sampling) == (settings(**more).quality, settings(**more).subsampling)
    for name in ("ours-sums", "limit"):
        row = OWN[name].make(given)
        assert [row.convert(jpeg) for jpeg in given] == [convert(jpeg, settings()).jpeg for jpeg in given], name
        assert all(seconds > 0 for seconds in row.inside.values()), "its parts were clocked"


def test_the_limit_decodes_what_we_decode(pictures: Path) -> None:
    """Of the third picture, 1100 x 560, half the size and not much more than the central square."""
    eighths, columns = asked(read_pictures(pictures, None)[2], settings())[:2]
    left, right = columns.start, columns.stop
    assert eighths == 4
    assert 0 < left <= (550 - 280) / 2
    assert (550 + 280) / 2 <= right < 550
    file = io.BytesIO()
    Image.new("CMYK", (300, 300)).save(file, "JPEG")
    with pytest.raises(ValueError, match="decoded by Pillow"):
        asked(file.getvalue(), settings())
    passed = run(OWN["limit"].make([file.getvalue()]), [file.getvalue()])
    assert (passed["pictures"], passed["failed"]) == (1, 1)


def test_pillows_row_is_our_plain_form_without_reduced_decoding(pictures: Path) -> None:
    row = PEERS["pillow"].make([])
    for jpeg in read_pictures(pictures, None):
        ours = plain_pixels(jpeg, settings(decode="full"))
        file = io.BytesIO()
        Image.fromarray(ours).save(file, "JPEG", quality=90, subsampling="4:2:0")
        written = np.asarray(Image.open(io.BytesIO(row.convert(jpeg))))
        assert psnr(written, np.asarray(Image.open(file))) > 45, "the two axes may be resampled in another order"


def test_every_other_peer_is_named_by_the_library_that_is_missing(pictures: Path) -> None:
    libraries = {"img2dataset": "img2dataset", "torchvision": "torchvision", "opencv": "cv2", "pyvips": "pyvips"}
    assert {"pillow", *libraries} == set(PEERS)
    for name, library in libraries.items():
        if library == "torchvision" and torchvision_loads():
            continue
        with pytest.raises(ModuleNotFoundError) as missing:
            PEERS[name].make([])
        assert missing.value.name == library


@pytest.mark.skipif(not bench_shards_workers.PYTHON.exists(), reason="make peers-shards has not been run")
def test_every_peer_does_the_same_work(pictures: Path, tmp_path: Path) -> None:
    wanted = [references(jpeg) for jpeg in read_pictures(pictures, None)]
    workers = {name: Worker([name], True, pictures, None, tmp_path / f"{name}.log") for name in PEERS}
    for name, worker in workers.items():
        try:
            worker.wait_until_ready()
            (tmp_path / name).mkdir()
            failed = ask([worker], f"write {name} {tmp_path / name}")[0]["failed"]
        finally:
            worker.close()
        judged = judge(tmp_path / name, wanted, "4:2:0", failed)
        assert judged.failed == 0, judged
        assert judged.other_form == ({"256 x 256 L": 1} if name == "img2dataset" else {}), "img2dataset leaves grey pictures grey"
        assert judged.psnr_db is not None
        assert judged.psnr_db > 25, name


# --- the processes


def test_two_processes_work_at_the_same_time(pictures: Path, tmp_path: Path) -> None:
    workers = [Worker(["pillow"], True, pictures, 3, tmp_path / f"{number}.log") for number in range(2)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        answers = ask(workers, "pass pillow")
        assert [answer["pictures"] for answer in answers] == [3, 3]
        assert all(answer["seconds"] > 0 and answer["cpu_seconds"] > 0 for answer in answers)
        assert workers[0]._process.pid != workers[1]._process.pid
    finally:
        for worker in workers:
            worker.close()
    assert [worker._process.returncode for worker in workers] == [0, 0]


def test_a_killed_process_is_one_line(pictures: Path, tmp_path: Path) -> None:
    worker = Worker(["pillow"], True, pictures, 1, tmp_path / "log")
    worker.wait_until_ready()
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"^row pillow: its process ended with code -9: it said nothing; "):
        ask([worker], "pass pillow")
    worker.close()


def test_a_picture_that_cannot_be_converted_is_counted(pictures: Path, tmp_path: Path, own_environment: None) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((pictures / "0.jpg").read_bytes())
    (folder / "b.jpg").write_bytes((pictures / "0.jpg").read_bytes()[:5000])
    out = tmp_path / "x.json"
    assert main(["--pictures", str(folder), "--rounds", "1", "--processes", "1", "--rows", "ours,pillow", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    for row in result["rows"]:
        assert row["failed"] == 1
        assert row["psnr_db"] > 25, "of the other picture"
    lines = table(result).splitlines()
    assert any(line.startswith("  ours: 1 failed, the first because of PictureError: ") for line in lines), lines
    assert any(line.startswith("  pillow: 1 failed, the first because of OSError: image file is truncated") for line in lines), lines


def test_a_tar_and_a_folder_are_the_same_pictures(pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("4.JPEG", "3.jpg", "2.jpg", "1.jpg", "0.jpg", "notes.txt"):
            tar.add(pictures / name, f"some/{name}")
    assert read_pictures(tmp_path / "x.tar", None) == read_pictures(pictures, None)
    assert read_pictures(tmp_path / "x.tar", 2) == [(pictures / f"{k}.jpg").read_bytes() for k in (0, 1)]


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rows", "ours,theirs"), "--rows must be all, or different ones of ours, "),
        (("--processes", "1,1"), "--processes must be different numbers from 1 up"),
        (("--rounds", "0"), "--rounds must be at least 1, not 0"),
        (("--count", "0"), "--count must be at least 1, not 0"),
        (("--out", "x.txt"), "--out x.txt must end in .json"),
        (("--pictures", "no-such-folder"), "--pictures no-such-folder cannot be used"),
    ],
)
def test_a_wrong_argument_is_one_line(pictures: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--pictures", str(pictures), *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words}")
    assert said.count("\n") == 1


@pytest.fixture
def unusable(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
    return iter([tmp_path / "empty", tmp_path / "x.tar"])


def test_no_pictures_are_one_line(unusable: Iterator[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path, why in zip(unusable, ("it holds no JPEGs", "could not be opened"), strict=True):
        with pytest.raises(SystemExit):
            main(["--pictures", str(path)])
        assert f"--pictures {path} cannot be used ({'' if why.startswith('it') else 'file '}{why}" in capsys.readouterr().err


def test_nothing_to_measure_is_one_line(pictures: Path, tmp_path: Path, own_environment: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--pictures", str(pictures), "--rows", "opencv", "--out", str(tmp_path / "x.json")])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: none of the rows can be measured here: row opencv is not measured")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[1]", '{"rows": []}'])
def test_a_plot_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        bench_shards_plot.main(["--result", str(tmp_path / "x.json"), "--out", str(tmp_path / "x.png")])
    assert stopped.value.code == 2
    assert "x.json is no result of tools/bench_shards.py" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
