"""This machine: the caller's own process, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mitoseg.engines.base import Engine, Item, Result
from mitoseg.engines.pool import Pool
from mitoseg.errors import UserError


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
