"""Starting one process per device through torch's elastic launcher, and saying in one line how they ended."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import uuid

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOST_CONTACT = 70  # exit code of a rank that ended because another one did


def under_launcher() -> bool:
    """Whether torchrun, or launch() below, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def end_with_parent() -> None:
    """Get SIGTERM when the launcher dies (Linux), even by SIGKILL: ranks left alone would go on writing to the run."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def launch(ranks: int, arguments: list[str]) -> int:
    """Run `python -m model.train ARGUMENTS` on `ranks` processes of this machine; the exit code.

    When a rank ends before its work is done, the launcher ends the others, and its name is printed.
    """
    for name in [*logging.root.manager.loggerDict, "torch.distributed.elastic"]:
        if name.startswith("torch.distributed"):  # its pages of text say what one line below says
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "model.train", *arguments)
    except ChildFailedError as error:
        return _report(error)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _report(error: ChildFailedError) -> int:
    """Name the rank that failed first: one killed by a signal, else one that did not just lose contact with another."""

    def blame(failure: ProcessFailure) -> tuple[bool, bool, bool, float]:
        return (
            failure.exitcode not in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT),
            failure.exitcode == -signal.SIGTERM,  # the launcher itself stopped it
            failure.exitcode == LOST_CONTACT,
            failure.timestamp,
        )

    first = min(error.failures.values(), key=blame)
    if first.exitcode == 2:
        return 2  # bad input: the rank that met it has said so in its one line
    if first.exitcode < 0:
        how = f"was ended by {signal.Signals(-first.exitcode).name}"
    elif first.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return int(first.exitcode)  # stopped on request, and said so
    else:
        how = f"ended with exit code {first.exitcode}"
    global_rank = next((rank for rank, failure in error.failures.items() if failure is first), first.local_rank)
    print(
        f"error: rank {global_rank} {how}; the other ranks were stopped; the same command with --resume goes on from the last checkpoint",
        file=sys.stderr,
    )
    return first.exitcode if first.exitcode > 0 else 1


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error means that another rank has gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error)
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "Broken pipe"))
