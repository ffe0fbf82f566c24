"""A function over many parts, here or in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Apply = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
_shared: list[Any] = []


@contextmanager
def mapping(workers: int, shared: object) -> Iterator[Apply]:
    """What it yields calls ``function(shared, *part)`` for each part; results come in the order of the parts.

    Args:
        workers: Processes that are started anew; 0: this one works.
        shared: Goes to each process once.
    """
    if workers == 0:
        yield lambda function, parts: (function(shared, *part) for part in parts)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_remember, initargs=(shared,)
    ) as pool:
        yield lambda function, parts: pool.map(_call, [function] * len(parts), parts)


def _remember(shared: object) -> None:
    _shared.append(shared)


def _call(function: Callable[..., Any], part: tuple[Any, ...]) -> object:
    return function(_shared[-1], *part)
