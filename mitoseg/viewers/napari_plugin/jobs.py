"""One long computation at a time, in a thread of its own, with a bar and a button that stops it.

A user's mistake becomes one line in a corner of napari, without a traceback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from mitoseg.errors import UserError

STEPS = 1000  # of the progress bar
LOOK_MS = 50  # how often progress is looked at


class Cancelled(Exception):  # noqa: N818 (no mistake was made)
    """The user has changed her mind; nothing is kept."""


Progress = Callable[[float, str], None]
"""Takes the share of a job that is done, from 0 to 1, and what is being done; raises `Cancelled` to stop."""


def show_mistake(error: UserError | str) -> None:
    """Show what the user can mend."""
    from napari.utils.notifications import show_error

    show_error(str(error))


def showing_mistakes(act: Callable[..., None]) -> Callable[..., None]:
    """An action of a panel whose `UserError` is shown; what Qt's signals add is left out."""

    @wraps(act)
    def shown(self: Any, *_: object) -> None:  # noqa: ANN401 (any panel)
        try:
            act(self)
        except UserError as error:
            if not self.main.tasks.busy:
                self.main.tasks.status.setText(str(error))
            show_mistake(error)

    return shown


class Notice(QLabel):
    """Text that wraps and can be copied; what does not fit is in its tooltip."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)  # long words widen no panel
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802 (Qt's own)
        """Qt's: show a text."""
        super().setText(text)
        self.setToolTip(text)


class TaskBar(QWidget):
    """Status, bar and button; `start` runs one job, and ``running`` is emitted with every change.

    The job's thread is looked at now and then, and sends no signals: PySide6 6.12 loses a reference to True with each,
    which Python 3.11 does not survive for long.
    """

    running = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._job: Future[Any] | None = None
        self._then: Callable[[Any], str] = str
        self._stop, self._latest = threading.Event(), (0.0, "")
        self.status = Notice("ready")
        self.bar = QProgressBar()
        self.bar.setRange(0, STEPS)
        self.bar.setToolTip("How much of the computation is done")
        self.clock = QTimer(self)
        self.clock.timeout.connect(self._look)
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop the computation; nothing of it is kept")
        self.cancel.clicked.connect(self.stop)
        row = QHBoxLayout()
        row.addWidget(self.bar, 1)
        row.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.status)
        layout.addLayout(row)
        self._show_running(False)

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._job is not None

    def start(self, job: Callable[[Progress], Any], then: Callable[[Any], str]) -> None:
        """Run a job in a thread; `Cancelled` out of its progress stops it.

        ``then`` gets the result, in the window's thread, and returns what the status says.
        """
        if self.busy:
            raise UserError("another computation is running", None, "wait, or cancel it")
        self._stop, self._then, self._latest = threading.Event(), then, (0.0, "starting")
        self.destroyed.connect(self._stop.set)
        pool = ThreadPoolExecutor(1)
        self._job = pool.submit(job, partial(self._progress, self._stop))
        pool.shutdown(wait=False)
        self._show_running(True)

    def stop(self, *_: object) -> None:
        """Ask the job to stop."""
        if self._job is not None:
            self.status.setText("stopping after this step …")
            self.cancel.setEnabled(False)
            self._stop.set()

    def _progress(self, stop: threading.Event, share: float, text: str) -> None:
        if stop.is_set():
            raise Cancelled
        self._latest = (share, text)

    def _look(self) -> None:
        if self._job is None:
            return
        if not self._job.done():
            share, text = self._latest
            self.bar.setValue(round(STEPS * share))
            if self.cancel.isEnabled():
                self.status.setText(f"{text} …")
            return
        job = self._job
        self._show_running(False)
        self.status.setText("failed")
        try:
            self.status.setText(self._then(job.result()))
        except Cancelled:
            self.status.setText("cancelled")
        except UserError as error:  # any other is a defect: napari shows it with its traceback
            self.status.setText(f"failed: {error}")
            show_mistake(error)

    def _show_running(self, running: bool) -> None:
        if not running:
            self._job = None
        self.cancel.setEnabled(running)
        self.bar.setEnabled(running)
        if running:
            self.clock.start(LOOK_MS)
        else:
            self.clock.stop()
        self.bar.setValue(0)
        self.running.emit(running)
