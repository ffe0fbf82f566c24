"""The command line of a benchmark: ``key=value`` words, which fill a dataclass."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def read_options(kind: type[T], words: Sequence[str]) -> T:
    """The words as an instance of a dataclass.

    Raises:
        SystemExit: They cannot be read.
    """
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist([*words])))
    except OmegaConfBaseException as error:
        sys.exit(f"error: {str(error).splitlines()[0]}; --help lists the options")
    assert isinstance(options, kind)
    return options
