r"""This machine: the caller's own process, or several.

Worker processes on this machine, each at the other end of a pipe.

    this process     -- number, function, item -->      worker 0: two threads
                     <-- number, fine, result  --
                     -- number, function, item -->      worker 1: two threads
                     <-- number, fine, result  --

`concurrent.futures` has such a pool, but it breaks as a whole when one process is killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import Any, Generic

from mitoseg.engines.base import (
    DEATHS,
    LANES,
    MEMORY,
    Engine,
    EngineError,
    Item,
    Place,
    Result,
    deaf_to_interrupts,
    portable,
    stand_at,
)
from mitoseg.errors import UserError

log = logging.getLogger(__name__)


def check_workers(workers: object) -> int:
    """A number of workers.

    Raises:
        UserError: It is none.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError("not a number of workers", workers, "give 1 or more")
    return workers


class LocalEngine(Engine):
    """One worker is the caller itself; more are processes of their own.

    Args:
        workers: How many.

    Raises:
        UserError: Not a number of workers.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = check_workers(workers)
        self.in_process = self.workers == 1
        self._pool: Pool | None = None

    def start(self) -> None:
        """See `Engine.start`."""
        if not self.in_process:
            self._pool = Pool(self.workers)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        return [function()] if self._pool is None else self._pool.ask(function)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        on_done: Callable[[Item, Result], None],
    ) -> None:
        """See `Engine.map`."""
        if self._pool is not None:
            self._pool.map(function, items, on_done)
            return
        for item in items:
            on_done(item, function(item))


_GONE = (EOFError, ConnectionError, BrokenPipeError, OSError)

_SPAWN = multiprocessing.get_context("spawn")  # a forked process may not use the threads that torch has started


class Worker(Generic[Item]):
    """One process.

    Attributes:
        items: What it was given and has not answered, by number.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.items: dict[int, Item] = {}
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(theirs, index), daemon=True, name=f"worker {index}")
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()

    def send(self, number: int, function: Callable[[Item], object], item: Item) -> None:
        """Hand an item over; one that does not arrive shows as a worker that is gone."""
        message = pickle.dumps((number, pickle.dumps((function, item))))
        self.items[number] = item
        with suppress(*_GONE):
            self.connection.send_bytes(message)

    def end(self, patience: float = 0) -> None:
        """Have it end; kill it after some seconds."""
        self.connection.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


class Pool:
    """See the module.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self._workers: list[Worker[Any]] = [Worker(index) for index in range(workers)]

    def close(self) -> None:
        """End the processes."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `mitoseg.engines.Engine.ask`."""
        for worker in self._workers:
            worker.send(0, _call, function)
        answers = [self._answer(index, function) for index in range(len(self._workers))]
        for fine, value in answers:
            if not fine:
                raise value
        return [value for _, value in answers]

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        on_done: Callable[[Item, Result], None],
    ) -> None:
        """See `mitoseg.engines.Engine.map`."""
        coming: Iterator[tuple[int, Item]] = enumerate(items)
        again: deque[tuple[int, Item]] = deque()
        deaths: Counter[int] = Counter()
        failure: Exception | None = None
        while True:
            for worker in self._workers if failure is None else ():
                while len(worker.items) < LANES and (chosen := again.popleft() if again else next(coming, None)):
                    worker.send(chosen[0], function, chosen[1])
            if not any(worker.items for worker in self._workers):
                break
            try:
                for worker in self._ready():
                    self._take(worker, on_done, again, deaths)
            except Exception as error:  # what was begun shall end, and leave the pipes empty
                failure = failure or error
        if failure is not None:
            raise failure

    def _ready(self) -> list[Worker[Any]]:
        """The workers that have answered or died."""
        ready = wait([worker.connection for worker in self._workers])
        return [worker for worker in self._workers if worker.connection in ready]

    def _take(
        self,
        worker: Worker[Item],
        on_done: Callable[[Item, Result], None],
        again: deque[tuple[int, Item]],
        deaths: Counter[int],
    ) -> None:
        """One answer of a worker; the items of one that died are put back."""
        try:
            number, fine, value = pickle.loads(worker.connection.recv_bytes())
        except _GONE:
            lost = dict(worker.items)
            self._replace(worker)
            deaths.update(lost.keys())
            again.extend(lost.items())
            if deadly := [item for number, item in lost.items() if deaths[number] >= DEATHS]:
                what = f"{DEATHS} worker processes were killed over the same part"
                raise EngineError(what, str(deadly[0]), MEMORY) from None
            log.warning("a worker process was killed; another one does its part again")
            return
        item = worker.items.pop(number)
        if not fine:
            raise value
        on_done(item, value)

    def _replace(self, worker: Worker[Any]) -> None:
        worker.end()
        self._workers[self._workers.index(worker)] = Worker(worker.index)

    def _answer(self, index: int, function: Callable[[], object]) -> tuple[bool, Any]:
        """What the worker at an index answers to the one message that it was sent, or one that replaces it."""
        for death in range(DEATHS):
            if death:
                self._workers[index].send(0, _call, function)
            try:
                _, fine, value = pickle.loads(self._workers[index].connection.recv_bytes())
            except _GONE:
                self._replace(self._workers[index])
                log.warning("a worker process was killed; another one takes its place")
            else:
                self._workers[index].items.clear()
                return fine, value
        return False, EngineError(f"{DEATHS} worker processes were killed before the work began", None, MEMORY)


def serve(connection: Connection, index: int) -> None:
    """What a worker process does: answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user has started
    stand_at(Place(index))
    lock = Lock()

    def answer(message: bytes) -> None:
        reply = _reply(message)
        with lock, suppress(*_GONE):
            connection.send_bytes(reply)

    with ThreadPoolExecutor(LANES) as lanes:
        with suppress(*_GONE):
            while True:
                lanes.submit(answer, connection.recv_bytes())
        os._exit(1)  # nobody wants what the threads are still about, which may take minutes


def _reply(message: bytes) -> bytes:
    """The answer to one message."""
    number, work = pickle.loads(message)
    try:
        function, item = pickle.loads(work)
        return pickle.dumps((number, True, function(item)))
    except BaseException as error:
        return pickle.dumps((number, False, portable(error)))


def _call(function: Callable[[], Result]) -> Result:
    return function()
