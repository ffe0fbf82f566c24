"""Ctrl-C and a cluster's notice, heeded between two steps instead of in the middle of one.

A signal only raises a flag; `LastCheckpoint` looks at it where everything that a checkpoint holds is consistent.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

REQUEUE = getattr(signal, "SIGUSR1", None)
"""What SLURM is asked to send before a job's time is up."""

_HEEDED = (signal.SIGINT, signal.SIGTERM, *([REQUEUE] if REQUEUE else []))


class StopRequest:
    """Notes the first of the signals SIGINT, SIGTERM and SIGUSR1; a second SIGINT interrupts at once.

    Attributes:
        number: Of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals, in the main thread; one that is ignored (a background job's SIGINT) stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _HEEDED:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before.setdefault(number, before)
                signal.signal(number, self._note)

    def remove(self) -> None:
        """Give the signals back to whoever had them."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        log.info("%s: stopping after this step%s", signal.Signals(number).name, again)
