"""What napari calls to open a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.layer_data import read_layer
from mitoseg.viewers.napari_plugin.messages import show_mistake

NOTHING: list[Any] = [(None,)]
"""napari's word for: this was a file of ours, and there is no layer."""


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Any]] | None:
    """The reader of one path; None for a stack of files, which napari's own reader takes."""
    return None if not isinstance(path, str) and len(path) != 1 else read


def read(path: str | Sequence[str]) -> list[Any]:
    """The layers of a path; one message and none where it cannot be opened."""
    try:
        return [read_layer(path if isinstance(path, str) else path[0])]
    except UserError as error:
        show_mistake(error)
        return NOTHING
