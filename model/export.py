"""Write a checkpoint's net for other programs.

python -m model.export --checkpoint runs/RUN/checkpoints/best --out alexnet.safetensors

The ending of --out chooses the form; all but torchvision's read the same pictures as the training: RGB (Caffe: BGR), grey levels
0 to 255 with the mean image subtracted, mean.npy of the shards.
  .safetensors   the parameters by canonical name (conv1.weight ... fc8.bias), recipe and classes beside them
  .pth           --style caffe (default): Caffe's names and shapes, conv1's channels in BGR; its LRN has to be set as the recipe's
                 --style torchvision: names and shapes of torchvision's alexnet or VGG net, for a recipe that is that net; the
                 columns' convolutions padded with zeros, and 255 * (0.229, 0.224, 0.225) multiplied into the first layer. The mean
                 is not folded in: give the net (grey levels - mean) / (255 * those)
  .onnx          the whole graph, columns' LRN included, for any number of pictures at a time
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

from model import checkpoint
from model.formats import BGR, dense_columns, grouped, torchvision_places, torchvision_scale
from model.net_design import NetDesign
from model.onnx_graph import to_onnx
from model.recipe import check_recipe
from pipeline import InputError, atomic_file, one_line_errors

FIRST = ("conv1.weight", "conv1_1.weight")


def _safetensors(weights: dict[str, torch.Tensor], state: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    words = {"recipe": state["recipe"], "wnids": state["wnids"], "step": state["step"]}
    written: bytes = save(weights, metadata={"format": "pt", **{name: json.dumps(value) for name, value in words.items()}})
    return written


def _pth(weights: dict[str, torch.Tensor]) -> bytes:
    whole = io.BytesIO()
    torch.save(weights, whole)
    return whole.getvalue()


def caffe(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Canonical parameters as Caffe has them: the first layer reads BGR."""
    return {name: value[:, BGR].contiguous() if name in FIRST else value for name, value in weights.items()}


def torchvision(weights: dict[str, torch.Tensor], design: NetDesign) -> dict[str, torch.Tensor]:
    """Canonical parameters as torchvision's alexnet, or its VGG net, has them. Raises InputError where that is another net."""
    places, found = torchvision_places(design), {}
    for name, value in weights.items():
        layer, kind = name.split(".")
        if kind == "weight" and layer in grouped(design):
            value = dense_columns(value)
        elif name in FIRST:
            value = value * torchvision_scale()
        found[f"{places[layer]}.{kind}"] = value
    return found


def written(path: Path, style: str | None, weights: dict[str, torch.Tensor], state: dict[str, Any]) -> bytes:
    """The file's content, by its ending. Raises InputError."""
    if style is not None and path.suffix != ".pth":
        raise InputError(f"--style {style} is a form of .pth, and {path} is none; leave --style out or end --out in .pth")
    design = check_recipe(state["recipe"], "the checkpoint").model
    if path.suffix == ".safetensors":
        return _safetensors(weights, state)
    if path.suffix == ".onnx":
        return to_onnx(weights, design)
    if path.suffix == ".pth":
        return _pth(torchvision(weights, design) if style == "torchvision" else caffe(weights))
    raise InputError(f"{path} ends in none of .safetensors, .pth and .onnx, which choose the form")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a run: runs/RUN/checkpoints/best, latest, or a step's")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--style", choices=("caffe", "torchvision"), help="of a .pth (default: caffe)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if not given.out.parent.is_dir():
            raise InputError(f"the folder {given.out.parent} of --out is not there; make it or name another")
        state = checkpoint.load(given.checkpoint)
        content = written(given.out, given.style, state["model"], state)
        with atomic_file(given.out) as file:
            file.write(content)
        print(f"{given.out}: step {state['step']}, {state['classes']} classes, {len(content) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
