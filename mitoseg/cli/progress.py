"""Progress bars, on the error stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mitoseg.geometry import Box


@contextmanager
def progress_bar(title: str, total: int, done: int = 0, *, show: bool = True) -> Iterator[Callable[[Box], None]]:
    """A bar over voxels; what it yields is called with each box that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), disable=not show, transient=False) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="")

        def advance(box: Box) -> None:
            bar.update(task, advance=box.size)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed / 1e6:.2f} megavoxels/s" if speed and math.isfinite(speed) else "")

        yield advance
