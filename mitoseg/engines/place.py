"""Where a function runs: which worker this process is, and how its two lanes keep out of each other's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Place:
    """A worker.

    Attributes:
        index: Its number among the workers that were started together; the n-th takes the n-th device.
    """

    index: int = 0


_here = Place()
_lock = Lock()


def here() -> Place:
    """The worker that this process is."""
    return _here


def stand_at(place: Place) -> None:
    """Make this process a worker; for engines."""
    global _here
    _here = place


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Computing happens inside this: reading and writing of another item goes on meanwhile."""
    with _lock:
        yield
