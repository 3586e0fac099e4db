"""Machine, versions and date of a benchmark; no names of hosts or folders."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numba
import numpy as np
import nvidia.dali
import PIL
import torch


def where(device: torch.device) -> dict[str, Any]:
    """date, machine and versions, as they stand in the JSON of a result."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    libraries = {
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "dali": nvidia.dali.__version__,
        "numba": numba.__version__,
        "pillow": PIL.__version__,
    }
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu},
        "versions": {"python": platform.python_version(), **libraries, "commit": commit},
    }
