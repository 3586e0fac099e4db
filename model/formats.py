"""Weights in other programs' files, read as the whole net's parameters by canonical name. Nothing is read through pickle's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model import checkpoint
from model.design import Design
from model.net_design import NetDesign
from model.vgg_design import FROM_A, VggDesign
from pipeline import InputError

BGR = [2, 1, 0]
PTH = (".pth", ".pt")

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


def torchvision_places(design: NetDesign) -> dict[str, str]:
    """Where torchvision's net of this kind has each layer. Raises InputError for a design that none of its nets is."""
    if isinstance(design, Design):
        check_torchvision(design)
        return TORCHVISION
    assert isinstance(design, VggDesign), "there are two kinds"
    if design.vgg in ("A-LRN", "C"):
        raise InputError(f"torchvision has no VGG net {design.vgg}, only A, B, D and E (vgg11, 13, 16 and 19)")
    if design.last_side() != 7:
        raise InputError(f"torchvision's VGG nets read 224 pixels, and the recipe's {design.input}; give a net of model.input: 224")
    place, places = 0, {}
    for stage in design.stages():
        for layer in stage:
            places[layer], place = f"features.{place}", place + 2  # with its ReLU
        place += 1  # the pooling
    return {**places, "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


def read_weights(path: Path, design: NetDesign, classes: int | None, *, new_last_layer: bool = False) -> dict[str, torch.Tensor]:
    """Parameters by canonical name, float32, in the shapes of `design`, from any file that model.export writes or a run's checkpoint.

    classes: None for as many as the file has. new_last_layer: whatever fc8 the file has, or none, is left out.
    A .pth with Caffe's names has the first layer in BGR; one with torchvision's must be a net without LRN, of AlexNets one whose second,
    fourth and fifth convolutions keep to their column. Of a VGG net A, a deeper one takes the layers that the paper gives it (section
    3.1: the first four convolutions, by name, and the fully connected ones). Raises InputError: damaged, another net, another number of classes.
    """
    found = _read(path)
    pth = path.is_file() and path.suffix in PTH
    places = torchvision_places(design) if pth and "features.0.weight" in found else None
    layers = design.layers()[:-1] if new_last_layer else design.layers()
    if isinstance(design, VggDesign) and places is None and is_net_a(found) and not is_net_a(dict.fromkeys(names_of(design))):
        found = {name: value for name, value in found.items() if name.split(".")[0] in FROM_A}
        layers = tuple(layer for layer in layers if layer in FROM_A)
    elif isinstance(design, VggDesign) and "conv1_1.weight" in found and not set(names_of(design)[:-2]) <= set(found) <= set(names_of(design)):
        raise InputError(f"{path} is another VGG net than {design.vgg}; only net A gives its layers to deeper ones")
    whole = _checked(found, path, _wanted(design, classes, found, places), layers)
    first = f"{design.layers()[0]}.weight"
    if places is not None:
        return _from_torchvision(whole, path, design)
    return {**whole, first: whole[first][:, BGR].contiguous()} if pth else whole


def names_of(design: NetDesign) -> list[str]:
    """Canonical names of all parameters."""
    return [f"{layer}.{kind}" for layer in design.layers() for kind in ("weight", "bias")]


def is_net_a(found: Mapping[str, object]) -> bool:
    """Whether parameters of these names are those of a VGG net A (or A-LRN)."""
    return set(found) == set(names_of(VggDesign(vgg="A")))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """What a file holds, in its own form."""
    if path.is_dir():
        model: dict[str, torch.Tensor] = checkpoint.load(path)["model"]
        return model
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PTH:
        return _read_pth(path)
    if path.suffix == ".onnx":
        return _read_onnx(path)
    what = "is not there" if not path.exists() else "is of no kind that is known"
    raise InputError(f"{path} {what}; give a checkpoint's folder, .safetensors, .pth or .onnx")


def _wanted(
    design: NetDesign, classes: int | None, found: dict[str, torch.Tensor], places: dict[str, str] | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Canonical name -> the name and shape that a file's own form has for it. places: of torchvision's form."""
    last = found.get("fc8.bias" if places is None else "classifier.6.bias")
    if classes is None:
        classes = last.numel() if last is not None else 0
    wanted = {}
    for layer, shape in design.shapes(classes).items():
        place = layer if places is None else places[layer]
        out, maps, *kernel = shape
        wanted[f"{layer}.weight"] = f"{place}.weight", (out, 2 * maps if places and layer in grouped(design) else maps, *kernel)
        wanted[f"{layer}.bias"] = f"{place}.bias", (out,)
    return wanted


def _checked(
    found: dict[str, torch.Tensor], path: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], layers: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """The parameters of `layers` by canonical name, still in the file's own form. Raises InputError unless it holds this net and no more."""
    unknown = set(found) - {name for name, _ in wanted.values()}
    if unknown:
        raise InputError(f"{path} has {min(unknown, key=str)}, which this net has not; give the weights of a net of this recipe")
    whole = {}
    for ours, (name, shape) in wanted.items():
        if ours.split(".")[0] in layers:
            if name not in found:
                raise InputError(f"{path} has no {name}; it is not a net of this recipe")
            _check_one(found[name], path, name, shape, last=ours.startswith("fc8."))
            whole[ours] = found[name].detach().float().contiguous()
    return whole


def _check_one(value: torch.Tensor, path: Path, name: str, shape: tuple[int, ...], last: bool) -> None:
    there = tuple(value.shape)
    if last and there != shape and there[1:] == shape[1:]:
        what = f"{path} is a net of {there[0]} classes, and the shards have {shape[0]}"
        raise InputError(f"{what}: its {name} does not fit; give weights trained on these classes")
    if there != shape:
        raise InputError(f"{path}: {name} is {there}, and the recipe's {shape}; give the recipe that it was trained with")
    if not value.is_floating_point() or value.layout != torch.strided or value.device.type != "cpu":
        raise InputError(f"{path}: {name} is no plain table of floating-point numbers ({value.dtype}); save the net's state_dict() in float32")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from None


def _read_pth(path: Path) -> dict[str, torch.Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a checkpoint's folder, .safetensors, .pth or .onnx") from None
    except Exception as error:  # torch.load has no error of its own
        raise InputError(f"{path} cannot be read as tensors alone ({type(error).__name__}); copy it again, or save its state_dict()") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds no table of tensors; save the net's state_dict()")
    if not {"features.0.weight", "conv1.weight", "conv1_1.weight"} & set(found):
        raise InputError(f"{path} has neither Caffe's names (conv1.weight) nor torchvision's (features.0.weight); give one that model.export wrote")
    return found


def _read_onnx(path: Path) -> dict[str, torch.Tensor]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise InputError(f"{path} needs the package onnx to be read; pip install onnx") from None
    try:
        constants = [one for one in onnx.load(path).graph.initializer if one.name.endswith((".weight", ".bias"))]
        return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in constants}
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a checkpoint's folder, .safetensors, .pth or .onnx") from None
    except Exception as error:  # protobuf's own, or of a constant that contradicts itself or is of a type that NumPy has not
        raise InputError(f"{path} cannot be read as ONNX with float32 weights ({type(error).__name__}); copy or export it again") from None


def grouped(design: NetDesign) -> list[str]:
    """Convolutions whose two columns read their own maps only."""
    return [layer for layer in design.map_sides() if not design.reads_all(layer)]


def check_torchvision(design: Design) -> None:
    """Whether torchvision's alexnet can be this net. Raises InputError with what differs."""
    differs = [
        what
        for what, same in (
            (f"maps {list(design.maps)}, not [64, 192, 384, 256, 256]", design.maps == (64, 192, 384, 256, 256)),
            (f"hidden {list(design.hidden)}, not [4096, 4096]", design.hidden == (4096, 4096)),
            (f"input {design.input} with conv1_padding {list(design.conv1_padding)}, not 224 with [2, 2]", _torchvision_window(design)),
            ("LRN, which that net has not (lrn: null)", design.lrn is None or (design.lrn.alpha == 0 and design.lrn.k == 1)),
            (f"no {', no '.join(design.without)}", not design.without),
            ("a sixth convolution", design.conv6 is None),
            ("fc6 or fc7 that read their own column only", design.reads_all("fc6") and design.reads_all("fc7")),
            (f"pooling windows of {design.pool}, not 3", design.pool == 3),
            (f"{design.activation} for ReLU", design.activation == "relu"),
            ("a second normalisation in conv2", not design.within_map_norm),
        )
        if not same
    ]
    if differs:
        raise InputError(f"torchvision's alexnet is another net: the recipe has {'; '.join(differs)}")


def _torchvision_window(design: Design) -> bool:
    return design.input == 224 and design.conv1_padding == (2, 2)


def _from_torchvision(whole: dict[str, torch.Tensor], path: Path, design: NetDesign) -> dict[str, torch.Tensor]:
    """Canonical names and torchvision's form -> ours."""
    for layer in grouped(design):
        whole[f"{layer}.weight"] = _own_columns(whole[f"{layer}.weight"], f"{path}: {TORCHVISION[layer]}.weight")
    first = f"{design.layers()[0]}.weight"
    whole[first] = whole[first] / torchvision_scale()
    return whole


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
