"""One long computation at a time, in a thread of its own, with a bar and a button that stops it.

A user's mistake becomes one line in a corner of napari, without a traceback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget
from superqt.utils import WorkerBase

from mitoseg.errors import UserError

STEPS = 1000  # of the progress bar
LOOK_MS = 100  # how often progress is looked at


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
            show_mistake(error)

    return shown


class Task(WorkerBase[Any]):
    """A job in a thread.

    Its last share and text are looked at now and then, not sent with a signal: PySide6 6.12 loses a reference to True
    with each, which Python 3.11 does not survive for long.
    """

    def __init__(self, job: Callable[[Progress], Any]) -> None:
        super().__init__()
        self._job, self._stop = job, threading.Event()
        self.latest: tuple[float, str] = (0.0, "")

    def work(self) -> Any:  # noqa: ANN401 (superqt's own)
        """Do the job."""
        return self._job(self.progress)

    def progress(self, share: float, text: str) -> None:
        """Take progress, or stop the job."""
        if self._stop.is_set():
            raise Cancelled
        self.latest = (share, text)

    def quit(self) -> None:
        """Stop as soon as the job reports progress."""
        self._stop.set()


class TaskBar(QWidget):
    """Status, bar and button; `start` runs one job, and ``running`` is emitted with every change."""

    running = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._task: Task | None = None
        self._then: Callable[[Any], str] = str
        self.status = QLabel("ready")
        self.status.setWordWrap(True)
        self.bar = QProgressBar()
        self.bar.setRange(0, STEPS)
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._progress)
        self.cancel = QPushButton("Cancel")
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
        return self._task is not None

    def start(self, job: Callable[[Progress], Any], then: Callable[[Any], str]) -> None:
        """Run a job in a thread; `Cancelled` out of its progress stops it.

        ``then`` gets the result, in the window's thread, and returns what the status says.
        """
        if self.busy:
            raise UserError("another computation is running", None, "wait, or cancel it")
        task, self._then = Task(job), then
        self._task = task
        task.returned.connect(self._end)  # methods of this widget: Qt lets go of them when it is gone
        task.errored.connect(self._fail)
        self.destroyed.connect(task.quit)
        self._show_running(True)
        task.start()

    def stop(self, *_: object) -> None:
        """Ask the job to stop."""
        if self._task is not None:
            self.status.setText("stopping after this tile …")
            self.cancel.setEnabled(False)
            self._task.quit()

    def _progress(self) -> None:
        if self._task is None:
            return
        share, text = self._task.latest
        self.bar.setValue(round(STEPS * share))
        if self.cancel.isEnabled():
            self.status.setText(f"{text} …")

    def _end(self, result: object) -> None:
        self._show_running(False)
        try:
            self.status.setText(self._then(result))
        except UserError as error:
            self.status.setText("failed")
            show_mistake(error)

    def _fail(self, error: Exception) -> None:
        self._show_running(False)
        self.status.setText("cancelled" if isinstance(error, Cancelled) else "failed")
        if isinstance(error, UserError):
            show_mistake(error)
        elif not isinstance(error, Cancelled):
            raise error  # a defect: napari shows it with its traceback

    def _show_running(self, running: bool) -> None:
        if not running:
            self._task = None
        self.cancel.setEnabled(running)
        self.bar.setEnabled(running)
        if running:
            self._clock.start(LOOK_MS)
        else:
            self._clock.stop()
        self.bar.setValue(0)
        self.running.emit(running)
