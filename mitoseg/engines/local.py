r"""This machine: the caller's own process, or worker processes, each at the other end of a pipe.

    this process     -- number, function, item -->      worker 0: two threads
                     <-- number, fine, result  --
                     -- number, function, item -->      worker 1: two threads
                     <-- number, fine, result  --

`concurrent.futures` has such a pool, but it breaks as a whole when one process is killed, and runs one item at a time.
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
from typing import Any

from mitoseg.engines.base import (
    DEATHS,
    LANES,
    MEMORY,
    Engine,
    EngineError,
    Item,
    Result,
    interrupts_blocked,
    portable,
    set_worker_rank,
)
from mitoseg.errors import UserError

log = logging.getLogger(__name__)
_GONE = (EOFError, ConnectionError, BrokenPipeError, OSError)
_SPAWN = multiprocessing.get_context("spawn")  # a forked process may not use the threads that torch has started


def check_workers(workers: object) -> int:
    """A number of workers."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError("not a number of workers", workers, "give 1 or more")
    return workers


class LocalEngine(Engine):
    """One worker is the caller itself; more are processes of their own."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = check_workers(workers)
        self.in_process = self.workers == 1
        self._processes: list[_Worker] = []

    def start(self) -> None:
        """See `Engine.start`."""
        if not self.in_process:
            self._processes = [_Worker(rank) for rank in range(self.workers)]

    def close(self) -> None:
        """See `Engine.close`."""
        processes, self._processes = self._processes, []
        for worker in processes:
            worker.end()

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        if not self._processes:
            return [function()]
        for worker in self._processes:
            worker.send(0, _call, function)
        answers = [self._answer(rank, function) for rank in range(len(self._processes))]
        for fine, value in answers:
            if not fine:
                raise value
        return [value for _, value in answers]

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], on_done: Callable[[Item, Result], None]
    ) -> None:
        """See `Engine.map`."""
        if not self._processes:
            for item in items:
                on_done(item, function(item))
            return
        coming: Iterator[tuple[int, Item]] = enumerate(items)
        again: deque[tuple[int, Item]] = deque()
        deaths: Counter[int] = Counter()
        failure: Exception | None = None
        while True:
            for worker in self._processes if failure is None else ():
                while len(worker.items) < LANES and (chosen := again.popleft() if again else next(coming, None)):
                    worker.send(chosen[0], function, chosen[1])
            if not any(worker.items for worker in self._processes):
                break
            ready = wait([worker.connection for worker in self._processes])
            try:
                for worker in [worker for worker in self._processes if worker.connection in ready]:
                    self._take(worker, on_done, again, deaths)
            except Exception as error:  # what was begun shall end, and leave the pipes empty
                failure = failure or error
        if failure is not None:
            raise failure

    def _take(
        self,
        worker: _Worker,
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

    def _replace(self, worker: _Worker) -> None:
        worker.end()
        self._processes[self._processes.index(worker)] = _Worker(worker.rank)

    def _answer(self, rank: int, function: Callable[[], object]) -> tuple[bool, Any]:
        """What the worker of a rank answers to the one message that it was sent, or one that replaces it."""
        for death in range(DEATHS):
            worker = self._processes[rank]
            if death:
                worker.send(0, _call, function)
            try:
                _, fine, value = pickle.loads(worker.connection.recv_bytes())
            except _GONE:
                self._replace(worker)
                log.warning("a worker process was killed; another one takes its place")
            else:
                worker.items.clear()
                return fine, value
        return False, EngineError(f"{DEATHS} worker processes were killed before the work began", None, MEMORY)


class _Worker:
    """One process; ``items`` are those that it was given and has not answered, by number."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.items: dict[int, Any] = {}
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, rank), daemon=True, name=f"worker {rank}")
        with interrupts_blocked():
            self._process.start()
        theirs.close()

    def send(self, number: int, function: Callable[[Item], object], item: Item) -> None:
        """Hand an item over; one that does not arrive shows as a worker that is gone."""
        message = pickle.dumps((number, pickle.dumps((function, item))))
        self.items[number] = item
        with suppress(*_GONE):
            self.connection.send_bytes(message)

    def end(self) -> None:
        """Have it end, or kill it."""
        self.connection.close()
        self._process.join(0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(connection: Connection, rank: int) -> None:
    """What a worker process does: answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user has started
    set_worker_rank(rank)
    lock = Lock()

    def answer(message: bytes) -> None:
        number, work = pickle.loads(message)
        try:
            function, item = pickle.loads(work)
            reply = pickle.dumps((number, True, function(item)))
        except BaseException as error:
            reply = pickle.dumps((number, False, portable(error)))
        with lock, suppress(*_GONE):
            connection.send_bytes(reply)

    with ThreadPoolExecutor(LANES) as lanes:
        with suppress(*_GONE):
            while True:
                lanes.submit(answer, connection.recv_bytes())
        os._exit(1)  # nobody wants what the threads are still about, which may take minutes


def _call(function: Callable[[], Result]) -> Result:
    return function()
