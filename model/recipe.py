"""Recipes: every number of a training run, in YAML, checked to the last key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from model.design import Design
from model.vgg_design import VggDesign
from model.ways import Precision
from pipeline import InputError

RECIPES = Path(__file__).parent / "recipes"


class Data(BaseModel):
    """What is done to pictures; the names are those of pipeline.Augmentation. colour_stop_epoch: no colour noise from it on.

    order, window: of the training pictures, global or windowed over so many shards. decoder: see pipeline.ImageLoader.
    cache: of decoded training pictures, in the memory of the machine or of the devices; cache_pixels: rgb, or yuv420 for
    half the memory; cache_limit_gb: 10^9 bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_window: Literal["same", "centre", "channel"] = "same"
    colour: Literal["eigenvalue", "stddev", "none"] = "eigenvalue"
    sigma: float = Field(default=0.1, ge=0)
    divisor: float = Field(default=1.0, gt=0)
    window_shared_by: int = Field(default=1, ge=1)
    crops: bool = True
    flips: bool = True
    scale: tuple[int, int] | None = None
    colour_stop_epoch: int | None = Field(default=None, ge=0)
    order: Literal["global", "windowed"] = "global"
    window: int = Field(default=16, ge=1)
    decoder: Literal["dali", "turbojpeg"] = "dali"
    cache: Literal["none", "host", "device"] = "none"
    cache_pixels: Literal["rgb", "yuv420"] = "rgb"
    cache_limit_gb: float | None = Field(default=None, gt=0, lt=1e9)


class Training(BaseModel):
    """How it is trained. batch: pictures a step over all devices; rate: of the first epoch; log_every: steps a log line.

    deterministic: the same bits each time also on GPUs, where that costs speed; on CPUs they are the same anyway. precision: what
    layers compute in, auto: bfloat16 on GPUs and float32 on CPUs; weights are kept in float32 either way. step: fast, or plain: PyTorch's
    own operators one behind the other, to compare with. last_rate_factor: of fc8 over the others,
    in the first last_rate_epochs epochs, or always.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(default=128, ge=1)
    epochs: int = Field(default=90, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0005, ge=0)
    bias_weight_decay: float = Field(default=0.0005, ge=0)
    bias_rate_factor: float = Field(default=1.0, gt=0)
    bias_rate_falls: bool = True
    schedule: Literal["plateau", "fixed"] = "plateau"
    patience: int = Field(default=4, ge=1)
    max_drops: int = Field(default=3, ge=0)
    drop_epochs: tuple[int, ...] = ()
    conv1_slow_epoch: int | None = Field(default=None, ge=0)
    conv1_freeze_epoch: int | None = Field(default=None, ge=0)
    last_rate_factor: float = Field(default=1.0, gt=0)
    last_rate_epochs: int | None = Field(default=None, ge=1)
    log_every: int = Field(default=20, ge=1)
    deterministic: bool = False
    precision: Precision = "auto"
    step: Literal["fast", "plain"] = "fast"

    @model_validator(mode="after")
    def _schedule_keys(self) -> Training:
        if self.schedule == "plateau" and self.drop_epochs:
            raise ValueError("drop_epochs belongs to schedule: fixed; with plateau leave it out")
        if list(self.drop_epochs) != sorted(set(self.drop_epochs)):
            raise ValueError(f"drop_epochs must rise, not {list(self.drop_epochs)}")
        return self


NETS: dict[str, type[Design] | type[VggDesign]] = {"alexnet": Design, "vgg": VggDesign}


def _kind(values: Any) -> str:
    """Of a recipe's table `model`."""
    named = "vgg" in values if isinstance(values, dict) else isinstance(values, VggDesign)
    return "vgg" if named else "alexnet"


class Recipe(BaseModel):
    """A training run; the defaults are the paper's. model: a VGG net if its table has the key vgg."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[Annotated[Design, Tag("alexnet")] | Annotated[VggDesign, Tag("vgg")], Discriminator(_kind)] = Design()
    data: Data = Data()
    train: Training = Training()

    @property
    def alexnet(self) -> Design:
        """The design, where only an AlexNet will do. Raises InputError."""
        if not isinstance(self.model, Design):
            raise InputError("this is about AlexNet's parts, and the recipe is of a VGG net; give an AlexNet's")
        return self.model

    @model_validator(mode="after")
    def _of_its_net(self) -> Recipe:
        slow = next((key for key in ("conv1_slow_epoch", "conv1_freeze_epoch") if getattr(self.train, key) is not None), None)
        if slow and isinstance(self.model, VggDesign):
            raise ValueError(f"train.{slow} is of AlexNet's first layer, and this is a VGG net; leave it out")
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for a word; here it is the number that everybody means."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def read_recipe(name: str, overrides: list[str]) -> Recipe:
    """A recipe by name (model/recipes/NAME.yaml) or path, with KEY=VALUE overrides such as train.rate=0.02. Raises InputError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe {name}; known are {known}, or give the path of a .yaml file")
    values = _parse(path.read_text("utf-8"), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a table of keys; begin it with model:, data: or train:")
    _override_all(values, overrides)
    return check_recipe(values, str(path))


# Keys that change no bit of a run, and may be set anew where it goes on: another machine has other memory and libraries.
OF_THE_MACHINE = frozenset({"train.deterministic", "data.decoder", "data.cache", "data.cache_pixels", "data.cache_limit_gb"})


def change_recipe(recipe: Recipe, overrides: list[str]) -> Recipe:
    """A recipe with KEY=VALUE overrides. Raises InputError."""
    values = recipe.model_dump(mode="json")
    _override_all(values, overrides)
    return check_recipe(values, "--set")


def _override_all(values: dict[str, Any], overrides: list[str]) -> None:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"--set {override}: expected KEY=VALUE, such as train.rate=0.02")
        _override(values, key.strip(), _parse(text, f"--set {override}"))


def check_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Values -> recipe; unknown key, wrong type or impossible value is an InputError that names the key. `where`: for the message."""
    try:
        return Recipe.model_validate_json(json.dumps(values), strict=True)  # of JSON, lists are tuples even when strict
    except TypeError as error:
        raise InputError(f"{where}: {error}; use numbers, words, lists and tables only") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"]
        if place[:1] == ("model",) and place[1:2] and place[1] in NETS:  # without the kind of the net
            place = ("model", *place[2:])
        key = ".".join(str(part) for part in place) or "the recipe"
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(_keys_beside(place, NETS[_kind(values.get("model"))]))
            raise InputError(f"{where}: unknown key {key}; known here: {allowed}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key}: {message[0].lower()}{message[1:]}, got {_short(first['input'])}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {key}: {table} is not a table of keys")
    values[last] = value


def _keys_beside(location: tuple[int | str, ...], net: type[BaseModel]) -> list[str]:
    """Keys that are allowed where an unknown one was found."""
    model: Any = Recipe
    for part in location[:-1]:
        annotation = net if part == "model" else model.model_fields[part].annotation
        model = next((one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation)  # of "a table, or null" the table
    return list(model.model_fields)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
