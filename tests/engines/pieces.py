"""Functions that the tests have engines call; workers import them by name."""

import os
import signal
import time
from pathlib import Path

from mitoseg.engines import worker_rank
from mitoseg.errors import UserError


def square(number):
    return number * number


def where(_=None):
    return os.getpid(), worker_rank()


def slow_where(_):
    time.sleep(0.05)
    return os.getpid()


def refuse_three(number):
    if number == 3:
        raise UserError("no such number", number, "choose another")
    return number


class OddError(Exception):
    """Cannot be made of its own arguments again."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def raise_odd(number):
    raise OddError(number, "x")


class KillOnce:
    """Kills its worker at one number, the first time, after leaving a note."""

    def __init__(self, folder, number):
        self.note, self.number = Path(folder) / "killed", number

    def __call__(self, number):
        if number == self.number and not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number, os.getpid()


def die(_=None):
    os.kill(os.getpid(), signal.SIGKILL)


class Making:
    """Leaves a note for each time that it makes the function."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self):
        (self.folder / f"{os.getpid()}.{time.monotonic_ns()}").touch()
        return square
