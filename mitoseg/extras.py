"""Libraries that only some installations have, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from mitoseg.errors import UserError


def import_extra(module: str, library: str, extra: str) -> ModuleType:
    """Import a module of an extra, such as ``classical``; ``library`` is the name that it is installed by.

    Some of these libraries are GPL or LGPL (PyMaxflow, kimimaro, zmesh): they are imported nowhere but here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError("this needs a library", library, f'run pip install "mitoseg[{extra}]"') from error
