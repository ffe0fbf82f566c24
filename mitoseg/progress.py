"""How far a command is: a bar on a terminal, and elsewhere (``nohup``, a job's log) a plain line every half minute."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

Tell = Callable[[object], None]
"""Where a workflow says what it has made: a line of text, or a table of rich's."""
SECONDS = 30.0
"""Between two lines where there is no terminal."""
SOON = 1.5
"""Before the first line about something: what is done by then needs none."""
_SIZES = {"voxels": (1e6, "megavoxels"), "bytes": (1e6, "MB")}


@dataclass
class Task:
    """Something in progress; its unit is ``voxels``, ``bytes``, ``blocks``, or nothing for a share."""

    title: str
    total: float | None
    done: float = 0.0
    unit: str = ""
    pieces: int = 0
    changed: Callable[[], None] = lambda: None
    _before: float = field(init=False)
    _start: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self._before = self.done

    def advance(self, amount: float = 1.0) -> None:
        """So much more is done."""
        self.reach(self.done + amount)

    def reach(self, done: float) -> None:
        """Set how much is done in all."""
        self.done, self.pieces = done, self.pieces + 1
        self.changed()

    def speed(self) -> str:
        """Such as ``0.52 megavoxels/s``; empty where there is no unit or nothing done yet."""
        seconds, new = time.monotonic() - self._start, self.done - self._before
        if self.unit not in _SIZES or not seconds or not new:
            return ""
        size, name = _SIZES[self.unit]
        return f"{new / seconds / size:.2f} {name}/s"

    def line(self) -> str:
        """Such as ``predicting a.tif: 120 tiles, 25 %, 0.52 megavoxels/s, 0:03:20 left``."""
        seconds, new = time.monotonic() - self._start, self.done - self._before
        parts = [f"{self.pieces} tiles"] if self.unit == "voxels" else []
        if self.unit == "blocks":
            parts = [f"{self.done:.0f} of {self.total:.0f} blocks"]
        if self.total:
            parts.append(f"{100 * self.done / self.total:.0f} %")
        elif self.unit == "bytes":
            parts.append(f"{self.done / 1e6:.0f} MB")
        parts.append(self.speed())
        if self.total and new:
            parts.append(f"{clock(seconds * (self.total - self.done) / new)} left")
        else:
            parts.append(f"{clock(seconds)} so far")
        return f"{self.title}: {', '.join(filter(None, parts))}"


def on_terminal() -> bool:
    """Whether the error stream is a terminal that can redraw a line."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    except ValueError:  # it is closed
        return False


def clock(seconds: float) -> str:
    """A time as hours:minutes:seconds."""
    return str(timedelta(seconds=int(seconds)))


@contextmanager
def progress(
    title: str, total: float | None = None, *, done: float = 0.0, unit: str = "", show: bool = True
) -> Iterator[Task]:
    """Show how far something is until the block ends; report what is done to the task that it yields."""
    task = Task(title, total, done, unit)
    if not show:
        yield task
    elif not on_terminal():
        with lines(task.line):
            yield task
    else:
        name, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
        columns = (name, BarColumn(), TaskProgressColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            drawn = bar.add_task(escape(title), total=total, rate="")
            task.changed = lambda: bar.update(drawn, completed=task.done, rate=task.speed())
            task.changed()
            yield task
            bar.update(drawn, total=task.done or 1, completed=task.done or 1)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Log what is going on, should it take longer than `SOON`, and then every `SECONDS`, until the block ends."""
    start = time.monotonic()

    def say() -> str:
        seconds = time.monotonic() - start
        return f"{what} ..." if seconds < SECONDS else f"{what}: {clock(seconds)} so far"

    with lines(say):
        yield


@contextmanager
def lines(say: Callable[[], str]) -> Iterator[None]:
    """Log a line after `SOON`, then every `SECONDS`, from a thread: a single step may take long."""
    ended = threading.Event()

    def repeat() -> None:
        pause = min(SOON, SECONDS)
        while not ended.wait(pause):
            pause = SECONDS
            log.info("%s", say())

    thread = threading.Thread(target=repeat, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
