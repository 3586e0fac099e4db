"""Shards on disk -> batches of images on the device. What is named here is all that other packages use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.atomic import atomic_file, fsync_folder
from pipeline.errors import InputError, line_of_place, one_line_errors
from pipeline.manifest import Manifest, read_manifest
from pipeline.times import STAGES

if TYPE_CHECKING:
    from pipeline.augment import Augmentation
    from pipeline.batch import Batch, LoadingGivenUp
    from pipeline.cache import CacheSettings
    from pipeline.check import check_folder
    from pipeline.cifar import read_cifar
    from pipeline.loader import ImageLoader
    from pipeline.one_picture import mean_image, views_of
    from pipeline.samples import Skipped
    from pipeline.shards import ShardSet
    from pipeline.whole_pictures import WholeBatch, WholePictures

_LATER = {
    "Augmentation": "augment",
    "Batch": "batch",
    "CacheSettings": "cache",
    "ImageLoader": "loader",
    "LoadingGivenUp": "batch",
    "ShardSet": "shards",
    "Skipped": "samples",
    "WholeBatch": "whole_pictures",
    "WholePictures": "whole_pictures",
    "check_folder": "check",
    "mean_image": "one_picture",
    "read_cifar": "cifar",
    "views_of": "one_picture",
}
__all__ = [
    "STAGES",
    "Augmentation",
    "Batch",
    "CacheSettings",
    "ImageLoader",
    "InputError",
    "LoadingGivenUp",
    "Manifest",
    "ShardSet",
    "Skipped",
    "WholeBatch",
    "WholePictures",
    "atomic_file",
    "check_folder",
    "fsync_folder",
    "line_of_place",
    "mean_image",
    "one_line_errors",
    "read_cifar",
    "read_manifest",
    "views_of",
]


def __getattr__(name: str) -> Any:
    """Load torch and DALI with the first name that needs them: the tools that make shards need neither."""
    if name in _LATER:
        return getattr(import_module(f"pipeline.{_LATER[name]}"), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
