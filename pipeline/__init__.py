"""Shards on disk -> batches of images on the device. What is named here is all that other packages use."""

from typing import TYPE_CHECKING, Any

from pipeline.atomic import atomic_file
from pipeline.check import check_folder
from pipeline.errors import InputError, one_line_errors
from pipeline.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from pipeline.augment import Augmentation
    from pipeline.loader import Batch, ImageLoader

__all__ = ["Augmentation", "Batch", "ImageLoader", "InputError", "Manifest", "atomic_file", "check_folder", "one_line_errors", "read_manifest"]


def __getattr__(name: str) -> Any:
    """Load torch and DALI with the first name that needs them: the tools that make shards need neither."""
    if name == "Augmentation":
        from pipeline.augment import Augmentation

        return Augmentation
    if name in ("Batch", "ImageLoader"):
        from pipeline import loader

        return getattr(loader, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
