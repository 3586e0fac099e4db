"""The page that shows what a net sees: right answers, used from the command line and in a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import ABSENT, BROWSER
from conftest import ROOT, one_line
from devtools import Page, a_page
from serving import JPEG, arguments, ask, served
from serving import port as port
from serving import prepared as prepared
from training import here

from model import serve
from model.alexnet import AlexNet
from model.design import Design
from model.evaluate import evaluate, load_net
from model.layout import Layout
from model.pictures import Source, augmentation, validation_loader
from model.recipe import check_recipe
from model.retrieve_features import Origin, checkpoint_digest, write_features
from model.serve_answer import see
from model.serve_pictures import map_sheet, picture_address
from model.serve_upload import square_of
from pipeline import ImageLoader, ShardSet, mean_image, views_of

# --- the same answers as the evaluation's


def test_a_picture_is_seen_as_the_loader_shows_it(made_shards: Path, finished: Path) -> None:
    """To the last bit: its window, and both kinds of views."""
    shards, recipe = ShardSet(made_shards, "val"), check_recipe(json.loads((finished / "run.json").read_text())["recipe"], "run.json")
    mean, settings = mean_image(shards), augmentation(recipe)
    loaders: dict[str, Any] = {"centre": {"views": "centre"}, "ten": {"views": "ten"}, "window": {"views": "centre", "out": "uint8"}}
    found = {name: next(iter(ImageLoader(made_shards, "val", batch=4, augmentation=settings, threads=1, **more))) for name, more in loaders.items()}
    for row, number in enumerate(found["ten"].ids.tolist()):
        square = square_of(shards.read(number)[0].tobytes(), len(mean))
        start = (len(mean) - settings.crop) // 2
        window = square[start : start + settings.crop, start : start + settings.crop]
        assert np.array_equal(window, found["window"].images[row].permute(1, 2, 0).numpy())
        assert np.array_equal(views_of(square, mean, settings, "centre")[0], found["centre"].images[row].numpy())
        assert np.array_equal(views_of(square, mean, settings, "ten"), found["ten"].images[row].numpy())


@pytest.mark.parametrize(("views", "count"), [("centre", 1), ("ten", 10)])
def test_answers_are_those_of_the_evaluation(prepared: Any, port: int, finished: Path, made_shards: Path, views: str, count: int) -> None:
    recipe = check_recipe(json.loads((finished / "run.json").read_text())["recipe"], "run.json")
    layout = Layout(device=torch.device("cpu"))
    loader = validation_loader(Source(str(made_shards), 1), recipe, layout, count, 8)
    result = evaluate(prepared[0].net, loader, layout)
    prepared[0].net.eval()
    shards = ShardSet(made_shards, "val")
    names = [entry.words for entry in shards.manifest.classes]
    assert len(result.predictions) > 4
    for number, _, best in result.predictions:
        status, answer = ask(port, "POST", f"/answer?views={views}", shards.read(number)[0].tobytes())
        assert status == 200
        assert [one["name"] for one in answer["best"]] == [names[label] for label, _ in best]
        assert [one["probability"] for one in answer["best"]] == pytest.approx([value for _, value in best], abs=1e-5)
        assert len(answer["maps"]) == 2


def test_maps_and_features_are_of_the_centre_view() -> None:
    net = AlexNet(6, Design(maps=(4, 8, 8, 8, 8), hidden=(16, 16), input=99), seed=3).eval()
    views = torch.randn(10, 3, 99, 99, generator=torch.Generator().manual_seed(1)).numpy() * 50
    seen = see(net, views, 4)
    with torch.no_grad():
        assert np.allclose(seen.maps, net.conv1(torch.from_numpy(views[4:5])).relu()[0].numpy(), atol=1e-4)
        assert np.allclose(seen.probabilities, net(torch.from_numpy(views)).softmax(1).mean(0).numpy(), atol=1e-6)
    assert np.allclose(seen.features["fc7"], see(net, views[4:5], 0).features["fc7"], atol=1e-5)
    assert seen.features["fc7"].shape == (16,)
    assert net.look is None


def test_a_sheet_of_maps() -> None:
    maps = np.zeros((48, 5, 5), np.float32)
    maps[0, 0, 0], maps[0, 1, 1], maps[9] = 4, 2, 0.1
    sheet = map_sheet(maps)
    assert sheet.shape == (6 * 7 - 2, 8 * 7 - 2, 2)
    assert sheet[0, 0].tolist() == [255, 255]
    assert sheet[1, 1].tolist() == [128, 255]
    assert sheet[7, 7].tolist() == [255, 255]  # scaled to its own largest
    assert sheet[0, 7].tolist() == [0, 255]  # silent
    assert sheet[0, 5].tolist() == [0, 0]  # between two: nothing


def test_neighbours_are_the_nearest(prepared: Any, made_shards: Path, finished: Path, tmp_path: Path) -> None:
    """Of features that model.retrieve wrote: a stored picture is nearest to itself, and the others come by their distances."""
    net, recipe, content = load_net(finished / "checkpoints" / "best")
    layout, shards = Layout(device=torch.device("cpu")), ShardSet(made_shards, "val")
    origin = Origin("val", "fc7", checkpoint_digest(content), shards.digest)
    values = write_features(net, validation_loader(Source(str(made_shards), 1), recipe, layout, 1, 8), tmp_path, origin)[0].values
    answerer, about = serve.prepare(serve.read_arguments(arguments(finished, "--features", tmp_path)))
    assert f"{len(shards)} pictures of the val split" in about["neighbours"]
    for number in (0, 7):
        jpeg = shards.read(number)[0].tobytes()
        found = answerer.answer(jpeg, "ten")["neighbours"]
        apart = np.sort(np.linalg.norm(values - values[number], axis=1))
        assert [one["distance"] for one in found] == pytest.approx(apart[:6].tolist(), abs=1e-4)
        assert found[0]["picture"] == picture_address(jpeg, "jpeg")
        assert found[0]["name"] == prepared[0].names[shards.read(number)[1]]
    refused_features(finished, tmp_path, "shards", "of other shards")
    refused_features(finished, tmp_path, "checkpoint", "of another checkpoint")
    one_line(here(serve.main, arguments(finished, "--port", 0, "--features", tmp_path / "none")), "has no features")


def refused_features(run: Path, folder: Path, what: str, words: str) -> None:
    """Features of something else."""
    whole = (folder / "val-fc7.json").read_text()
    told = json.loads(whole)
    told["of"][what] = "0" * 64
    (folder / "val-fc7.json").write_text(json.dumps(told))
    one_line(here(serve.main, arguments(run, "--port", 0, "--features", folder)), words)
    (folder / "val-fc7.json").write_text(whole)


# --- the command


def test_the_command_serves_until_ctrl_c(finished: Path) -> None:
    command = [sys.executable, "-m", "model.serve", *arguments(finished, "--port", 0)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert ": open http://127.0.0.1:" in said, process.communicate()
    port = int(said.rsplit(":", 1)[1].split("/")[0])
    assert "<h1>" in ask(port, "GET", "/")[1]["text"]
    taken = here(serve.main, arguments(finished, "--port", port))
    assert taken.returncode == 2
    one_line(taken, f"port {port} of 127.0.0.1 is taken", "--port 0")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, errors.split()) == ("", ["ended", "by", "Ctrl-C"])


def test_bad_arguments_are_one_line(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    free = ("--port", 0)
    one_line(here(serve.main, arguments(finished, "--port", 70000)), "0 to 65535")
    one_line(here(serve.main, arguments(finished, "--host", "no such host", *free)), "no address or name")
    one_line(here(serve.main, arguments(finished, "--host", "203.0.113.7", *free)), "cannot listen at 203.0.113.7")
    one_line(here(serve.main, arguments(tmp_path, *free)), "there is no checkpoint")
    one_line(here(serve.main, arguments(finished, "--shards", tmp_path, *free)), "holds no shards")


def test_who_can_reach_it_is_known() -> None:
    for host, alone, name in (("127.0.0.1", True, "127.0.0.1"), ("localhost", True, ""), ("0.0.0.0", False, "localhost")):
        with serve.listen(host, 0) as listening:
            address, found = serve.address_of(listening)
        assert found is alone
        assert name in address


# --- the page

NO_PICTURE = "this is not a JPEG, PNG, WebP or GIF picture; save it as one of them"
ROWS = """[...document.querySelectorAll('#best li')].map((row) =>
  [row.querySelector('span').firstChild.textContent, row.querySelector('b').textContent, Number(row.querySelector('rect').getAttribute('width'))])"""


def _is_fine(page: Page, port: int) -> None:
    assert page.said == []
    assert all(address.startswith((f"http://127.0.0.1:{port}/", "data:")) for address in page.asked), page.asked
    assert page.find("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert page.find("[...document.images].every((image) => !image.src || (image.complete && image.naturalWidth > 0))")


@pytest.mark.skipif(BROWSER is None, reason=ABSENT)
def test_the_page_works_in_a_browser(prepared: Any, tmp_path: Path) -> None:
    """Drop a picture, choose one by the keyboard's place, change the views, send what is none; also on a phone and in the dark."""
    hostile = replace(prepared[0], names=["<img src=x onerror=document.title='ran'>, b", "two", "three", "four"])
    good, bad = tmp_path / "<b>good.jpg", tmp_path / "<img src=x>.jpg"
    good.write_bytes(JPEG)
    bad.write_bytes(b"no picture")
    with served(hostile, prepared[1]) as port, a_page(tmp_path) as page:
        page.open(f"http://127.0.0.1:{port}/", dark=True)
        page.drop(good, 100, 150)
        page.wait("!document.getElementById('answer').hidden")
        rows = page.find(ROWS)
        best = ask(port, "POST", "/answer?views=ten", JPEG)[1]["best"]
        assert [row[0] for row in rows] == [one["name"].split(", ")[0] for one in best]
        assert [row[2] for row in rows] == pytest.approx([100 * one["probability"] for one in best], abs=0.006)
        assert page.find("document.querySelectorAll('#maps img').length") == 2
        assert "no features were given" in page.find("document.getElementById('whence').textContent")
        _is_fine(page, port)
        page.press("Tab", 9)
        assert page.find("document.activeElement.id") == "file"
        page.press("Tab", 9)
        page.press("ArrowDown", 40)
        page.wait("document.querySelector('input[value=centre]').checked && !document.body.classList.contains('waits')")
        centre = [f"{100 * one['probability']:.1f} %" for one in ask(port, "POST", "/answer?views=centre", JPEG)[1]["best"]]
        assert [row[1] for row in page.find(ROWS)] == centre
        _is_fine(page, port)
        page.choose("#file", bad)
        page.wait("document.getElementById('fault').textContent")
        assert page.find("document.getElementById('fault').textContent") == NO_PICTURE
        assert page.find("document.getElementById('answer').hidden")
        assert page.find("document.title") == "What the net sees"
