"""Neighbours and the page for a VGG net: one column, and a first layer of another name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from serving import JPEG
from training import here

from model import retrieve, serve
from model.checkpoint import VELOCITY
from model.evaluate import load_net
from model.nets import make_net
from model.pictures import augmentation
from model.recipe import read_recipe
from model.retrieve_features import open_features
from model.saving import Saver
from pipeline import ImageLoader, ShardSet

SMALL = ["model.maps=[4, 4, 8, 8, 8]", "model.hidden=[16, 12]", "model.input=32", "data.scale=[40, 40]", "train.batch=8"]


@pytest.fixture(scope="module")
def run(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a net that has learned nothing yet."""
    folder, recipe = tmp_path_factory.mktemp("vgg") / "run", read_recipe("vgg", SMALL)
    wnids = [entry.wnid for entry in ShardSet(made_shards, "val").manifest.classes]
    tensors = {name: value.detach() for name, value in make_net(len(wnids), recipe.model).named_parameters()}
    tensors |= {VELOCITY + name: torch.zeros_like(value) for name, value in tensors.items()}
    state = {"step": 3, "recipe": recipe.model_dump(mode="json"), "classes": len(wnids), "wnids": wnids}
    state |= {"schedule": {}, "loader": {}, "unvalidated": False, "metrics_bytes": 0}
    saver = Saver(folder / "checkpoints", None, True)
    assert saver.begin(3, tensors, state, best=True) is None
    assert saver.settle() is None
    return folder


def test_features_and_page_of_a_vgg_net(run: Path, made_shards: Path) -> None:
    words = ["--checkpoint", str(run / "checkpoints" / "best"), "--shards", str(made_shards)]
    ran = here(retrieve.main, [*words, "--codes", "8"])
    assert ran.returncode == 0, ran.stderr
    net, recipe, _ = load_net(run / "checkpoints" / "best")
    batch = next(iter(ImageLoader(made_shards, "val", batch=20, views="centre", augmentation=augmentation(recipe))))
    fired: list[torch.Tensor] = []
    net.get_submodule("fc7").register_forward_hook(lambda module, given, out: fired.append(out))
    with torch.no_grad():
        net.eval()(batch.images)
    features, _ = open_features(run / "retrieval", "val", "fc7")
    torch.testing.assert_close(torch.tensor(features.values), F.relu(fired[0]), rtol=1e-4, atol=1e-6)

    threads = torch.get_num_threads()
    answerer, about = serve.prepare(serve.read_arguments([*words, "--features", str(run / "retrieval")]))
    torch.set_num_threads(threads)
    assert (about["layer"], about["columns"]) == ("conv1_1", 1)
    answer = answerer.answer(JPEG, "ten")
    assert len(answer["maps"]) == 1
    assert len(answer["neighbours"]) == 6
    assert np.all(np.diff([one["distance"] for one in answer["neighbours"]]) >= 0)
    assert sum(one["probability"] for one in answer["best"]) == pytest.approx(1, abs=1e-4)  # all four classes
