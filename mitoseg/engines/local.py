r"""What every engine does, and the engine of this machine: the caller's own process, or workers at the end of a pipe.

    this process     -- number, function, item -->      worker 0: two threads
                     <-- number, fine, result  --
                     -- number, function, item -->      worker 1: two threads
                     <-- number, fine, result  --

`concurrent.futures` has such a pool, but it breaks as a whole when one process is killed, and runs one item at a time.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import secrets
import signal
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from operator import call
from threading import Lock
from typing import Any, Generic, Self, TypeVar

from mitoseg.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
LANES = 2
"""Items that a worker has at the same time, so that one is read or written while another one is computed."""
DEATHS = 3
"""Workers that may die over one item before it is given up."""
MEMORY = "perhaps memory is short: give less of it, or use fewer workers"
_GONE = (EOFError, ConnectionError, BrokenPipeError, OSError)
_SPAWN = multiprocessing.get_context("spawn")  # a forked process may not use the threads that torch has started


class EngineError(UserError):
    """The workers are gone, or an item kills every worker; nothing more can be done with this engine."""


class Engine(ABC):
    """Does the same thing with many items; a context manager that starts and ends its workers."""

    in_process = False
    """Whether items are done by the caller itself, so that nothing has to be picklable."""
    item_bytes: float = math.inf
    """Memory that one item may take where it is done; who maps parts of arrays cuts them accordingly."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fit(self, block: tuple[int, int, int], voxel_bytes: int) -> tuple[int, int, int]:
        """The largest part of a block (z, y, x) that one item may hold, found by halving its longest axis.

        >>> from mitoseg.engines import LocalEngine
        >>> engine = LocalEngine()
        >>> engine.item_bytes = 10**7
        >>> engine.fit((64, 512, 512), 16)
        (64, 64, 128)
        """
        sides = list(block)
        while math.prod(sides) * voxel_bytes > self.item_bytes and max(sides) > 1:
            longest = sides.index(max(sides))
            sides[longest] = (sides[longest] + 1) // 2
        return sides[0], sides[1], sides[2]

    @abstractmethod
    def start(self) -> None:
        """Start the workers, or find them."""

    @abstractmethod
    def close(self) -> None:
        """End the workers that were started; may be called again."""

    @abstractmethod
    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """Call a function once in each worker that there is now; one that dies is replaced, and asked again."""

    @abstractmethod
    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], on_done: Callable[[Item, Result], None]
    ) -> None:
        """Call a picklable function with each item, and ``on_done`` in the caller's thread with item and result.

        Items are taken as workers get free, and done in any order; one whose worker has died is done again. The first
        exception ends the run, after what was begun has ended.

        Raises:
            EngineError: The workers are gone, or died again and again over one item.
        """


def portable(error: BaseException) -> Exception:
    """What a worker sends back of an exception, which may not be picklable, and must not end the other process."""
    with suppress(Exception):
        if isinstance(pickle.loads(pickle.dumps(error)), Exception):
            return error  # type: ignore[return-value]
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes and threads started inside are spared Ctrl-C, which is for the process that the user has started."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started inside, it would let this thread hear again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_rank = 0
_lock = Lock()
_made: dict[str, Any] = {}


def worker_rank() -> int:
    """The number of this process among the workers that were started together; the n-th takes the n-th device."""
    return _rank


def set_worker_rank(rank: int) -> None:
    """Make this process a worker; for engines."""
    global _rank
    _rank = rank


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Computing happens inside this: reading and writing of another item goes on meanwhile."""
    with _lock:
        yield


@dataclass(frozen=True)
class Prepared(Generic[Item, Result]):
    """A function as `Engine.map` takes it, made by ``make`` on first use in each worker, which keeps the last one."""

    make: Callable[[], Callable[[Item], Result]]
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, item: Item) -> Result:
        """Call the function with an item."""
        with _lock:
            if self.key not in _made:
                _made.clear()  # what the one before holds must be free before the next is made
                _made[self.key] = self.make()
            function: Callable[[Item], Result] = _made[self.key]
        return function(item)


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
            worker.send(0, call, function)
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
            self._processes[worker.rank] = worker.replace()
            deaths.update(lost.keys())
            again.extend(lost.items())
            if deadly := [item for number, item in lost.items() if deaths[number] >= DEATHS]:
                what = f"{DEATHS} worker processes were killed over the same part"
                raise EngineError(what, str(deadly[0]), MEMORY) from None
            log.warning("a worker process was killed; another one repeats its part")
            return
        item = worker.items.pop(number)
        if not fine:
            raise value
        on_done(item, value)

    def _answer(self, rank: int, function: Callable[[], object]) -> tuple[bool, Any]:
        """What the worker of a rank answers to the one message that it was sent, or one that replaces it."""
        for death in range(DEATHS):
            worker = self._processes[rank]
            if death:
                worker.send(0, call, function)
            try:
                _, fine, value = pickle.loads(worker.connection.recv_bytes())
            except _GONE:
                self._processes[rank] = worker.replace()
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

    def replace(self) -> _Worker:
        """End it, and start another one of the same rank."""
        self.end()
        return _Worker(self.rank)


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
