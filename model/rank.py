"""One rank of several: how its work ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch.distributed as dist

from model.launch import BAD_INPUT, LOST_CONTACT, lost_contact
from pipeline import InputError, line_of_place


def on_rank(work: Callable[[], int]) -> int:
    """One rank's work: a user's mistake ends it with one line, another rank's end with LOST_CONTACT; the exit code."""
    try:
        code = work()
    except (InputError, OSError) as error:
        line = str(error) if isinstance(error, InputError) else line_of_place(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(BAD_INPUT)  # at once: an orderly exit takes so long that a rank that lost contact would be blamed
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        print(f"rank {os.environ['RANK']}: another rank has gone", file=sys.stderr, flush=True)
        os._exit(LOST_CONTACT)  # collectives still pending would keep an orderly exit waiting
    dist.destroy_process_group()
    return code
