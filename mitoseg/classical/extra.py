"""Libraries of the extra ``[classical]``, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from mitoseg.errors import UserError


def import_extra(module: str, library: str) -> ModuleType:
    """Import a module of the extra.

    PyMaxflow is GPL: mitoseg neither contains nor needs it, and imports it nowhere but here.

    Args:
        module: Such as ``sklearn.ensemble``.
        library: The name that it is installed by.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError("this method needs a library", library, 'run pip install "mitoseg[classical]"') from error
