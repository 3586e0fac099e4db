"""Weights in other programs' files, read as the whole net's parameters by canonical name. Nothing is read through pickle's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model import checkpoint
from model.design import LAYERS, Design
from pipeline import InputError

GROUPED = ("conv2", "conv4", "conv5")  # layers whose two columns read their own maps only
BGR = [2, 1, 0]

# torchvision's alexnet: where its layers stand in its two sequences.
TORCHVISION = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
TORCHVISION_STD = (0.229, 0.224, 0.225)  # of pixels in [0, 1]; its nets read pictures divided by these


def read_weights(path: Path, design: Design, classes: int) -> dict[str, torch.Tensor]:
    """Parameters by canonical name, float32, in the shapes of `design`, from any file that model.export writes or a run's checkpoint.

    A .pth with Caffe's names has conv1 in BGR; one with torchvision's must be a net without LRN whose second, fourth and
    fifth convolutions keep to their column. Raises InputError: damaged, another net, another number of classes.
    """
    if path.is_dir():
        found = checkpoint.load(path)["model"]
    elif path.suffix == ".safetensors":
        found = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        found = _read_pth(path, design)
    elif path.suffix == ".onnx":
        found = _read_onnx(path)
    else:
        what = "is not there" if not path.exists() else "is of no kind that is known"
        raise InputError(f"{path} {what}; give a checkpoint's folder, .safetensors, .pth or .onnx")
    return _checked(found, path, design, classes)


def _checked(found: dict[str, torch.Tensor], path: Path, design: Design, classes: int) -> dict[str, torch.Tensor]:
    whole = {}
    for layer, shape in design.shapes(classes).items():
        for name, wanted in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            if name not in found:
                raise InputError(f"{path} has no {name}; it is not an AlexNet of this recipe")
            there = tuple(found[name].shape)
            if there != wanted and layer == "fc8" and there[1:] == wanted[1:]:
                raise InputError(f"{path} is a net of {there[0]} classes, and the shards have {wanted[0]}; give weights trained on these classes")
            if there != wanted:
                raise InputError(f"{path}: {name} is {there}, and the recipe's {wanted}; give the recipe that it was trained with")
            whole[name] = found[name].float().contiguous()
    return whole


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from None


def _read_pth(path: Path, design: Design) -> dict[str, torch.Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a checkpoint's folder, .safetensors, .pth or .onnx") from None
    except Exception as error:  # torch.load has no error of its own
        raise InputError(f"{path} cannot be read as tensors alone ({type(error).__name__}); copy it again, or save its state_dict()") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds no table of tensors; save the net's state_dict()")
    if "features.0.weight" in found:
        return _from_torchvision(found, path, design)
    if "conv1.weight" in found:  # Caffe's
        return {name: value[:, BGR] if name == "conv1.weight" else value for name, value in found.items()}
    raise InputError(f"{path} has neither Caffe's names (conv1.weight) nor torchvision's (features.0.weight)")


def _read_onnx(path: Path) -> dict[str, torch.Tensor]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError(f"{path} needs the package onnx to be read; pip install onnx") from None
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a checkpoint's folder, .safetensors, .pth or .onnx") from None
    except Exception as error:  # protobuf's own
        raise InputError(f"{path} cannot be read as ONNX ({type(error).__name__}); copy it again") from None
    return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer if one.name.split(".")[0] in LAYERS}


def check_torchvision(design: Design) -> None:
    """Whether torchvision's alexnet can be this net. Raises InputError with what differs."""
    differs = [
        what
        for what, same in (
            (f"maps {list(design.maps)}, not [64, 192, 384, 256, 256]", design.maps == (64, 192, 384, 256, 256)),
            (f"hidden {list(design.hidden)}, not [4096, 4096]", design.hidden == (4096, 4096)),
            (f"input {design.input} with conv1_padding {list(design.conv1_padding)}, not 224 with [2, 2]", _torchvision_window(design)),
            ("LRN, which that net has not (lrn: {k: 1, alpha: 0} is none)", design.lrn.alpha == 0 and design.lrn.k == 1),
            ("a second normalisation in conv2", not design.within_map_norm),
        )
        if not same
    ]
    if differs:
        raise InputError(f"torchvision's alexnet is another net: the recipe has {'; '.join(differs)}")


def _torchvision_window(design: Design) -> bool:
    return design.input == 224 and design.conv1_padding == (2, 2)


def _from_torchvision(found: dict[str, torch.Tensor], path: Path, design: Design) -> dict[str, torch.Tensor]:
    check_torchvision(design)
    ours = {}
    for layer, place in TORCHVISION.items():
        for kind in ("weight", "bias"):
            if f"{place}.{kind}" not in found:
                raise InputError(f"{path} has no {place}.{kind}; it is not torchvision's alexnet")
            ours[f"{layer}.{kind}"] = found[f"{place}.{kind}"]
    for layer in GROUPED:
        ours[f"{layer}.weight"] = _own_columns(ours[f"{layer}.weight"], f"{path}: {TORCHVISION[layer]}.weight")
    ours["conv1.weight"] = ours["conv1.weight"] / torchvision_scale()
    return ours


def _own_columns(dense: torch.Tensor, name: str) -> torch.Tensor:
    """(out, in, k, k) that is zero between the columns -> (out, in / 2, k, k)."""
    (first, across), (back, second) = (half.chunk(2, dim=1) for half in dense.chunk(2))
    if across.any() or back.any():
        raise InputError(f"{name} reads both columns, and this net's layer only its own; such weights have no place in it")
    return torch.cat((first, second))


def dense_columns(grouped: torch.Tensor) -> torch.Tensor:
    """The inverse: (out, in / 2, k, k) -> (out, in, k, k), zero between the columns."""
    first, second = grouped.chunk(2)
    nothing = torch.zeros_like(first)
    return torch.cat((torch.cat((first, nothing), dim=1), torch.cat((nothing, second), dim=1)))


def torchvision_scale() -> torch.Tensor:
    """(1, 3, 1, 1): grey levels in one unit of torchvision's input, by channel."""
    return 255 * torch.tensor(TORCHVISION_STD).view(1, 3, 1, 1)
