"""Reading, computing and writing at the same time.

    read      | 1 | 2 | 3 | 4 |
    compute       |  1  |  2  |  3  |  4  |
    write               | 1 |   | 2 |   | 3 |   | 4 |

Each stage has a thread of its own (the middle one the caller's) and is one item ahead of the next at most, so that no
more than a few items are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Source = TypeVar("Source")
Result = TypeVar("Result")


def run_overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Source],
    compute: Callable[[Item, Source], Result],
    write: Callable[[Item, Result], None],
) -> None:
    """Read, compute and write every item, in order.

    The first exception of any stage ends the run; what was handed to the writer before it is still written.
    """
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        written: Future[None] | None = None
        for item, source in _read_ahead(items, read, reader):
            result = compute(item, source)
            if written is not None:
                written.result()
            written = writer.submit(write, item, result)
        if written is not None:
            written.result()


def _read_ahead(
    items: Iterable[Item], read: Callable[[Item], Source], reader: ThreadPoolExecutor
) -> Iterator[tuple[Item, Source]]:
    """Items with what was read for them; the next one is read while the caller works."""
    ahead: tuple[Item, Future[Source]] | None = None
    for item in items:
        coming = (item, reader.submit(read, item))
        if ahead is not None:
            yield ahead[0], ahead[1].result()
        ahead = coming
    if ahead is not None:
        yield ahead[0], ahead[1].result()
