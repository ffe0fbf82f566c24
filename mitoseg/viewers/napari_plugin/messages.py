"""A user's mistake as one line in a corner of napari, without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from mitoseg.errors import UserError


def show_mistake(error: UserError | str) -> None:
    """Show a mistake."""
    from napari.utils.notifications import show_error

    show_error(str(error))


def show_note(text: str) -> None:
    """Show what is worth knowing."""
    from napari.utils.notifications import show_warning

    show_warning(text)


def told(act: Callable[..., None]) -> Callable[..., None]:
    """An action of a panel whose `UserError` is shown; what Qt's signals add is left out."""

    @wraps(act)
    def shown(self: Any, *_: object) -> None:  # noqa: ANN401 (any panel)
        try:
            act(self)
        except UserError as error:
            show_mistake(error)

    return shown
