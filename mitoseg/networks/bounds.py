"""Bounds on building a stranger's network: no files, no servers, and no more memory than its weights call for."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mitoseg.errors import UserError

REMEDY = "do not use this file, or pass trust=true if you know who wrote it"
_FORBIDDEN = (
    *("socket.", "urllib.", "webbrowser.", "subprocess.", "_thread.start", "pickle.find_class", "shutil."),
    *("os.system", "os.exec", "os.posix_spawn", "os.startfile", "os.remove", "os.rename", "os.mkdir", "os.rmdir"),
    *("os.link", "os.symlink", "os.truncate", "os.ch"),
)
"""Prefixes of the names of Python's audit events that are refused."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SLACK = {"operations": 5000, "numbers": 2**24}  # what any network may take, even one without weights
_building = threading.local()


class Bounds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses tensors and modules that a network with such weights has no need of, before memory is taken.

    MONAI's networks make two to four times as many numbers as they have weights, with four operations a tensor.
    ``weights=None`` sets no bound.
    """

    def __init__(self, weights: Iterable[Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        stored = {  # once, whatever number of tensors share it
            weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() // max(2, weight.element_size())
            for weight in weights or ()
        }
        self.operations: float = _SLACK["operations"] + 50 * len(stored)
        self.modules: float = self.operations
        self.numbers: float = _SLACK["numbers"] + 8 * sum(stored.values())
        if weights is None:
            self.operations = self.modules = self.numbers = math.inf

    def count(self, *_: object) -> None:
        """Count a module that becomes part of another; a hook of torch, called in every thread."""
        self.modules -= getattr(_building, "on", False)
        self._check()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count an operation and the numbers that it makes."""
        self.operations -= 1
        if not any(returned.alias_info for returned in func._schema.returns):  # neither a view nor in place
            self.numbers -= _planned(func, args, kwargs or {})
        self._check()
        return func(*args, **(kwargs or {}))

    def _check(self) -> None:
        if min(self.modules, self.operations, self.numbers) < 0:
            raise UserError("the network is larger than its weights", None, REMEDY)


def _planned(func: Any, args: Any, kwargs: Any) -> int:  # noqa: ANN401 (of torch's dispatcher)
    """Count the numbers that an operation will make, by running it on meta tensors."""
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta")}
    args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
    try:
        made = func(*args, **kwargs)
    except (RuntimeError, TypeError):  # it has no such form, or gives a number
        return 0
    return sum(one.numel() for one in tree_leaves(made) if isinstance(one, Tensor))


def _without_numbers(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


@contextmanager
def within(bounds: Bounds) -> Iterator[None]:
    """Build a network inside; refuse to write a file, call a server, start a process or unpickle something."""
    _listen()
    before = getattr(_building, "on", False)
    _building.on, _building.refused = True, None
    counting = register_module_module_registration_hook(bounds.count)
    try:
        with bounds:
            yield
    except Exception as error:
        if _building.refused:
            what = "building the network would reach beyond its file"
            raise UserError(what, _building.refused, REMEDY) from error
        raise
    finally:
        counting.remove()
        _building.on = before


@cache
def _listen() -> None:
    sys.addaudithook(_judge)  # for good: Python takes no hook away


def _judge(event: str, args: tuple[Any, ...]) -> None:
    """Refuse an event in a thread that builds, except while a library is imported for the first time."""
    if not getattr(_building, "on", False):
        return
    if event == "open":
        if not (isinstance(args[2], int) and args[2] & _WRITING):
            return
    elif not event.startswith(_FORBIDDEN):
        return
    frame = sys._getframe().f_back
    while frame is not None and not str(module := frame.f_globals.get("__name__")).startswith("mitoseg."):
        if module == "importlib._bootstrap":
            return  # matplotlib, which MONAI imports, makes folders for its settings and its cache
        frame = frame.f_back
    _building.refused = event
    raise PermissionError(event)
