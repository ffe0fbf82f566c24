"""A function that takes long to make, such as one with a network in it: made once in each worker, on first use."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic

from mitoseg.engines.base import Item, Result

_lock = Lock()
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Prepared(Generic[Item, Result]):
    """A function as `Engine.map` takes it; a worker keeps the last one that it made.

    Attributes:
        make: Picklable; makes the function that is called with the items.
        key: Tells this one from all others.
    """

    make: Callable[[], Callable[[Item], Result]]
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def __call__(self, item: Item) -> Result:
        """Call the function with an item."""
        with _lock:
            if self.key not in _made:
                _made.clear()  # what the one before holds must be free before the next is made
                _made[self.key] = self.make()
            function: Callable[[Item], Result] = _made[self.key]
        return function(item)
