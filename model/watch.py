"""Which rank stands still: a collective only says that it waits, not for whom."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from model.launch import LOST_CONTACT, STANDS_STILL

PATIENCE = timedelta(seconds=20)  # for the store that the ranks write to


ENDED, SEEN = "ended", "seen"  # keys of the store: training is over; how many spares know it


def meeting_store() -> dist.PrefixStore:
    """Where the ranks of this life of the job leave words for each other. All of them call it, spares too.

    Its name is the first rank's, for hosts that came later count the lives of a job otherwise.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    name: list[object] = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, src=0)
    return dist.PrefixStore(f"watch/{name[0]}", dist.TCPStore(address, port, is_master=False, timeout=PATIENCE, wait_for_workers=False))


def wait_as_spare(store: dist.PrefixStore) -> int:
    """Do nothing until the ranks that train have ended."""
    while not store.check([ENDED]):
        time.sleep(1)
    store.add(SEEN, 1)
    return 0


def dismiss_spares(store: dist.PrefixStore, spares: int) -> None:
    """Tell the spares that they may go, and wait until they know: the store may end with this process."""
    store.set(ENDED, "yes")
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while store.add(SEEN, 0) < spares and time.monotonic() < deadline:
        time.sleep(0.1)


class Watch:
    """Ends this process with STANDS_STILL or LOST_CONTACT when its training has not moved for `timeout` seconds.

    Each rank tells the others, through the store that they met at, where it is; a thread does so, so a process that the
    system holds falls silent. The first rank to lose patience names those that are silent, else those that are least far.
    """

    def __init__(self, store: dist.PrefixStore, rank: int, world: int, timeout: float) -> None:
        self._store, self._rank, self._world, self._timeout = store, rank, world, timeout
        self._place: tuple[int, str] = (0, "start")
        self._moved, self._moves, self._beats = time.monotonic(), 0, 0
        self._ended = threading.Event()
        self._tell()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()

    def at(self, step: int, stage: str) -> None:
        """The training has come to a stage of a step."""
        self._place, self._moves, self._moved = (step, stage), self._moves + 1, time.monotonic()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        pause = min(2.0, self._timeout / 4)
        while not self._ended.wait(pause):
            try:
                self._tell()
                if time.monotonic() - self._moved > self._timeout:
                    self._give_up(pause)
            except (RuntimeError, ValueError, KeyError) as error:  # the store has gone, and so will we: with the collective that waits
                if time.monotonic() - self._moved > self._timeout:
                    print(f"error: nothing moves, and the ranks' store does not answer ({' '.join(str(error).split())[:120]})", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(LOST_CONTACT)

    def _tell(self) -> None:
        self._beats += 1
        word = {"beats": self._beats, "moves": self._moves, "step": self._place[0], "stage": self._place[1]}
        self._store.set(str(self._rank), json.dumps({**word, "host": socket.gethostname(), "pid": os.getpid()}))

    def _read(self) -> list[dict[str, Any]]:
        """The last word of each rank; of one that never said any, the beginning."""
        keys = [str(rank) for rank in range(self._world)]
        nothing = {"beats": 0, "moves": -1, "step": 0, "stage": "start", "host": "?", "pid": 0}
        return [json.loads(self._store.get(key)) if self._store.check([key]) else nothing for key in keys]

    def _give_up(self, pause: float) -> None:
        before = self._read()
        for _ in range(2):
            time.sleep(pause)
            self._tell()
        now = self._read()
        silent = [rank for rank in range(self._world) if now[rank]["beats"] == before[rank]["beats"]]
        least = min(word["moves"] for word in now)
        blamed = silent or [rank for rank in range(self._world) if now[rank]["moves"] == least]
        if self._store.add("said", 1) != 1:  # another rank has said it
            os._exit(LOST_CONTACT)
        how = "does not answer" if silent else "is the least far"
        if len(blamed) == self._world:
            how = "is no further than the others"
        names = "; ".join(f"rank {rank} {how} (process {now[rank]['pid']} on {now[rank]['host']}; last seen {_where(now[rank])})" for rank in blamed)
        print(
            f"error: training has not moved for {self._timeout:g} s: {names}; --resume goes on from the last checkpoint", file=sys.stderr, flush=True
        )
        os._exit(STANDS_STILL)


def _where(word: dict[str, Any]) -> str:
    return f"{word['stage']}, step {word['step'] + 1}"
