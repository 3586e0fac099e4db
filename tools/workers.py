"""Tasks on worker processes, of this machine or of a Dask cluster, through `concurrent.futures`."""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.errors import InputError

DEATHS = 5  # of workers in one run; more, and it is the machine
PATIENCE = 5  # seconds that a Dask scheduler may take to answer
TICK = 0.2  # seconds between looks at the progress


class Named(Protocol):
    """A task: `path` is the file that it makes."""

    @property
    def path(self) -> Path: ...


Work = TypeVar("Work", bound=Named)


@dataclass(frozen=True)
class Workers:
    """open: an executor of so many processes. count: tasks that run at once. where: for messages. pictures_done: so far, where
    workers can say so while a task runs. killed: what a task raises whose worker died too often, where the engine tries again
    itself. elsewhere: they may be on other machines; agree: raises InputError for one of those on which a call does not return
    what it returns here."""

    open: Callable[[int], AbstractContextManager[Executor]]
    count: int
    where: str
    pictures_done: Callable[[], int] | None = None
    killed: tuple[type[Exception], ...] = ()
    elsewhere: bool = False
    agree: Callable[[Callable[[], object]], None] = lambda call: None

    def run(self, function: Callable[[Work], Any], tasks: Iterable[Work], done: Callable[[Any], None], tick: Callable[[], None]) -> None:
        """function over all tasks; done with each result, in the order in which they end, tick several times a second.

        A worker that dies takes the tasks under way with it: each of them is tried again, alone, and once more, so that the one
        that kills its worker is known by name. Raises InputError for it.
        """
        queue, deaths, suspects = iter(tasks), 0, list[Work]()
        while True:
            suspects = self._run(function, queue, self.count, done, tick)
            if not suspects:
                return
            deaths += 1
            for task in suspects:
                if self._run(function, iter([task]), 1, done, tick) and self._run(function, iter([task]), 1, done, tick):
                    raise InputError(
                        f"{task.path.name}: the worker that makes it died twice (out of memory?); run the same command again to go on, "
                        "with fewer --workers"
                    )
            if deaths == DEATHS:
                raise InputError(
                    f"workers died {deaths} times over different shards (out of memory?); run the same command again to go on, with fewer --workers"
                )

    def _run(
        self, function: Callable[[Work], Any], queue: Iterator[Work], count: int, done: Callable[[Any], None], tick: Callable[[], None]
    ) -> list[Work]:
        """Until the queue is empty, or a worker dies: then the tasks that were under way."""
        under_way: dict[Future[Any], Work] = {}
        try:
            with self.open(count) as executor:
                try:
                    while True:
                        while len(under_way) <= count and (task := next(queue, None)) is not None:  # one waits, so that no worker does
                            under_way[_submitted(executor, function, task, under_way)] = task
                        if not under_way:
                            return []
                        ended, _ = wait(under_way, timeout=TICK, return_when=FIRST_COMPLETED)
                        for future in ended:
                            done(self._result(future, under_way[future]))
                            del under_way[future]
                        tick()
                except BaseException:
                    for future in under_way:  # Dask's executor has no cancel_futures
                        future.cancel()
                    executor.shutdown(wait=False)
                    raise
        except _TaskLostError as lost:
            _end_workers()
            return [*under_way.values(), lost.task]
        except BrokenExecutor:
            _end_workers()
            return list(under_way.values())

    def _result(self, future: Future[Any], task: Named) -> Any:
        try:
            return future.result()
        except self.killed:
            raise InputError(f"{task.path.name}: every worker that made it died (out of memory?); run the same command again to go on") from None
        except CancelledError:
            raise InputError(f"{self.where}: the connection was lost; start it anew, and run the same command again to go on") from None


def _end_workers() -> None:
    """A pool that breaks while it starts a process forgets to end that one, and then waits for it for ever."""
    for process in multiprocessing.active_children():
        process.kill()  # what it had under way is tried again


class _TaskLostError(Exception):
    """The executor had broken before the task could be handed in."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task


def _submitted(executor: Executor, function: Callable[[Work], Any], task: Work, under_way: dict[Future[Any], Work]) -> Future[Any]:
    try:
        return executor.submit(function, task)
    except BrokenExecutor:
        raise _TaskLostError(task) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _TaskLostError(task) from None  # "handle is closed": the pool broke while it was starting a process for this task


_counter: Any = None


def start_worker(counter: Any, parent: int) -> None:
    """parent: its process number."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a killed parent and writes on
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


def count_one() -> None:
    """For the progress bar, where workers are of this machine. Without a lock, which a killed worker would keep for ever."""
    if _counter is not None:
        _counter.value += 1


def local_workers(count: int) -> Workers:
    """Processes of this machine."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0, lock=False)

    def open_pool(processes: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(processes, context, start_worker, (counter, os.getpid()))

    return Workers(open_pool, count, f"{count} process{'es' * (count != 1)} of this machine", lambda: counter.value)


def _nothing() -> None:
    """Can be called only where this module is."""


@contextmanager
def dask_workers(address: str) -> Iterator[Workers]:
    """Threads of the workers of a Dask cluster, which must see the source and the output under the same paths. Raises InputError."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError("--dask needs Dask: run: pip install 'alexnet-imagenet[dask]', here and on the workers, at the same version") from None
    for name in ("distributed.client", "distributed.core", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # of a lost scheduler their tracebacks say no more than our one line
    client, why = None, ""
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TypeError, TimeoutError) as error:
        why = str(error)
    if client is None:
        gc.collect()  # what was half made is tied in circles: collected on the thread of a later client, it waits for that one's lock
        raise InputError(f"no Dask scheduler answers at {address} ({why}); start one with: dask scheduler")

    def agree(call: Callable[[], object]) -> None:
        here = call()
        for worker, there in client.run(call, on_error="return").items():
            if there != here:
                why = " ".join(str(there).split()) if isinstance(there, Exception) else "another file is there, or a picture becomes another JPEG"
                raise InputError(f"Dask worker {worker}: {why}; all need the same versions, and source and output under the same paths")

    with client:
        try:
            client.run_on_scheduler(_nothing)
        except Exception as error:
            raise InputError(f"the Dask scheduler at {address} lacks this program ({error}); install the same version there") from None
        threads = sum(client.nthreads().values())
        if not threads:
            raise InputError(f"the Dask scheduler at {address} has no workers; start them with: dask worker {address} --nworkers CORES --nthreads 1")
        yield Workers(
            lambda count: client.get_executor(pure=False, retries=0),
            threads,
            f"{threads} threads of the Dask cluster at {address}",
            killed=(KilledWorker,),
            elsewhere=True,
            agree=agree,
        )
