"""libturbojpeg, libjpeg-turbo's own interface: the one that comes in the wheel `turbojpeg`, or else the system's."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from pathlib import Path

from pipeline.errors import InputError

INSTALL = "run: pip install turbojpeg==0.0.2"


def open_library() -> ctypes.CDLL:
    """Raises InputError when there is none."""
    place = _place()
    if place is None:
        raise InputError(f"libturbojpeg is not installed; {INSTALL}")
    try:
        return ctypes.CDLL(place)
    except OSError as error:
        raise InputError(f"{place} cannot be used ({error}); {INSTALL}") from None


def _place() -> str | None:
    """Path or name of the library. The wheel's Python module is not imported: another one, PyTurboJPEG, bears its name."""
    module = importlib.util.find_spec("turbojpeg")
    if module and module.origin:
        for path in sorted((Path(module.origin).parent / "turbojpeg.libs").glob("libturbojpeg*.so*")):
            return str(path)
    return ctypes.util.find_library("turbojpeg")
