"""What every engine does; worker ranks, and functions that are made once in each worker."""

from __future__ import annotations

import math
import pickle
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from threading import Lock
from typing import Any, Generic, Self, TypeVar

from mitoseg.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
LANES = 2
"""Items that a worker has at the same time, so that one is read or written while another one is computed."""
DEATHS = 3
"""Workers that may die over one item before it is given up."""
MEMORY = "perhaps memory is short: give less of it, or use fewer workers"


class EngineError(UserError):
    """The workers are gone, or an item kills every worker; nothing more can be done with this engine."""


class Engine(ABC):
    """Does the same thing with many items; a context manager that starts and ends its workers.

    Attributes:
        in_process: Whether items are done by the caller itself, so that nothing has to be picklable.
        item_bytes: Memory that one item may take where it is done; who maps parts of arrays cuts them accordingly.
    """

    in_process = False
    item_bytes: float = math.inf

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
        """Call a function once in each worker that there is now; one that dies is replaced, and asked again.

        Raises:
            EngineError: Workers died over it again and again.
        """

    @abstractmethod
    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], on_done: Callable[[Item, Result], None]
    ) -> None:
        """Call a function with each item.

        Args:
            function: Picklable, unless `in_process`; its first exception ends the run, after what was begun has ended.
                It may be called twice with an item whose worker has died.
            items: Taken as workers get free.
            on_done: Called by the caller's thread with each item and its result, once, in the order of completion.

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
