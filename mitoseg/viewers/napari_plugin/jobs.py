"""What a long computation is told and tells, without a window."""

from __future__ import annotations

from typing import Protocol


class Cancelled(Exception):  # noqa: N818 (no mistake was made)
    """The user has changed her mind; nothing is kept."""


class Tell(Protocol):
    """Told how far a job is; raises `Cancelled` where it is to stop."""

    def __call__(self, share: float, text: str = "", /) -> None:
        """Take the share of the work that is done, from 0 to 1, and what is being done."""


def tell_nobody(share: float, text: str = "", /) -> None:
    """For jobs that nobody watches."""
