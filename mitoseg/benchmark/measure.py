"""Time and memory of a stage, and its line on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mitoseg.progress import progress


@dataclass
class Cost:
    """Seconds on the clock and of the processor; added up over stages."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both stages."""
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def record(self, stage: str) -> dict[str, float]:
        """As a record holds it, such as ``training_seconds``."""
        return {f"{stage}_seconds": round(self.seconds, 6), f"{stage}_cpu_seconds": round(self.cpu_seconds, 6)}


@contextmanager
def stage(title: str, *, show: bool = True) -> Iterator[Cost]:
    """Measure what is done inside, and show how long it has been going on.

    Args:
        title: For the terminal.
        show: Whether to.

    Yields:
        The cost, which is set when the block ends.
    """
    cost = Cost()
    with progress(title, show=show):
        clock, processor = time.perf_counter(), time.process_time()
        yield cost
        cost.seconds, cost.cpu_seconds = time.perf_counter() - clock, time.process_time() - processor
