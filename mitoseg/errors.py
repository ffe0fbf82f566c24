"""The one exception that a user is meant to see, and what checks need."""

import importlib
import os
from numbers import Real
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can mend, in one line: what is wrong, the value (unless None), and the remedy.

    The command line prints it as ``error: ...`` and exits with 1; from Python it is an ordinary exception.

    >>> print(UserError("no such file", "a.tif", "check the path"))
    no such file: 'a.tif'; check the path
    """

    def __init__(self, what: str, value: object = None, remedy: str = "") -> None:
        self.what, self.value, self.remedy = what, value, remedy
        line = what if value is None else f"{what}: {value!r}"
        super().__init__(" ".join((f"{line}; {remedy}" if remedy else line).split()))


def as_path(given: object) -> str:
    """A path as text; anything else is refused."""
    if not isinstance(given, str | os.PathLike):
        raise UserError("not a path", given, "give text or a pathlib.Path")
    return os.fsdecode(given)


def is_number(value: object) -> bool:
    """Whether this is a real number, of NumPy too, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def import_extra(module: str, library: str, extra: str) -> ModuleType:
    """Import a module of an extra, such as ``classical``; ``library`` is the name that it is installed by.

    Some of these libraries are GPL or LGPL (PyMaxflow, kimimaro, zmesh): they are imported nowhere but here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError("this needs a library", library, f'run pip install "mitoseg[{extra}]"') from error
