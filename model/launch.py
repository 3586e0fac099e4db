"""Starting one process per device through torch's elastic launcher, again after a fault, and saying in one line how they ended."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOST_CONTACT = 70  # exit code of a rank that ended because another one did
STANDS_STILL = 71  # exit code of a rank that has said which rank no longer moves
BAD_INPUT = 2
RESTART = "MODEL_RESTART"  # told to the ranks: how often they were started again, without progress in between
LAUNCHER = "MODEL_LAUNCHER_PID"
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def under_launcher() -> bool:
    """Whether torchrun, or launch() below, or a scheduler that sets the same names, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def end_with_parent() -> None:
    """Get SIGTERM when the launcher dies (Linux), even by SIGKILL: ranks left alone would go on writing to the run."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != int(os.environ.get(LAUNCHER, os.getppid())):  # it has died already, while this process was starting
        os._exit(LOST_CONTACT)


def launch(ranks: int, module: str, arguments: Callable[[], list[str]], restarts: int = 0, progress: Callable[[], object] = lambda: None) -> int:
    """Run `python -m MODULE ARGUMENTS` on `ranks` processes of this machine; the exit code.

    When a rank ends before its work is done, the launcher ends the others, its name is printed, and all are started again:
    at most `restarts` times in a row without `progress()`, the newest checkpoint, having changed. arguments: asked for at
    each start. Bad input and a signal to this process are not tried again.
    """
    for name in [*logging.root.manager.loggerDict, "torch.distributed.elastic"]:
        if name.startswith("torch.distributed"):  # its pages of text say what one line below says
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())
    tries, reached = 0, progress()
    while True:
        os.environ[RESTART] = str(tries)
        code, what = _launch_once(ranks, module, arguments())
        if code in (0, BAD_INPUT, *STOPPED):
            return code
        tries = 0 if progress() != reached else tries
        if tries == restarts:
            hint = "the same command with --resume goes on from the last checkpoint"
            if code != STANDS_STILL:  # of which the rank that saw it has told
                print(f"error: {what}; the other ranks were stopped; {hint}", file=sys.stderr, flush=True)
            return code
        tries, reached = tries + 1, progress()
        print(f"{what}; all ranks are started again ({tries} of {restarts} without progress)", file=sys.stderr, flush=True)


def _launch_once(ranks: int, module: str, arguments: list[str]) -> tuple[int, str]:
    """Exit code, and which rank ended it and how."""
    with tempfile.TemporaryDirectory(prefix="model-launch-") as place:  # the launcher's own would be left behind
        return _elastic(ranks, module, arguments, DefaultLogsSpecs(log_dir=place))


def _elastic(ranks: int, module: str, arguments: list[str], logs: DefaultLogsSpecs) -> tuple[int, str]:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        logs_specs=logs,
        max_restarts=0,  # its own restarts do not look at why a rank ended, and say nothing
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        return _verdict(error)
    except SignalException as stopped:
        return 128 + stopped.sigval, "stopped"
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, "stopped"
    return 0, ""


def _verdict(error: ChildFailedError) -> tuple[int, str]:
    """Name the rank that failed first: one killed by a signal, else one that did not just lose contact with another."""

    def blame(failure: ProcessFailure) -> tuple[bool, bool, bool, bool, float]:
        return (
            failure.exitcode != STANDS_STILL,
            failure.exitcode not in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT),
            failure.exitcode == -signal.SIGTERM,  # the launcher itself stopped it
            failure.exitcode == LOST_CONTACT,
            failure.timestamp,
        )

    first = min(error.failures.values(), key=blame)
    global_rank = next((rank for rank, failure in error.failures.items() if failure is first), first.local_rank)
    if first.exitcode == STANDS_STILL:
        return STANDS_STILL, "a rank stood still"
    if first.exitcode < 0:
        return 1, f"rank {global_rank} was ended by {signal.Signals(-first.exitcode).name}"
    return int(first.exitcode), f"rank {global_rank} ended with exit code {first.exitcode}"


def lost_contact(error: BaseException) -> bool:
    """Whether an error means that another rank has gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(error)
    return any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "Broken pipe", "Timed out waiting")
    )
