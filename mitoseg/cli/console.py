"""What the command line says: log lines, warnings, and errors in one line."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, ValidationError
from rich.console import Console

from mitoseg.storage import explain, is_storage_error

_TALKATIVE = {"lightning", "lightning_fabric", "pytorch_lightning", "distributed", "dask", "matplotlib", "tornado"}
"""Libraries whose warnings are about how they are called, which is our affair; what goes wrong they raise."""
_TALKATIVE_FILES = re.compile(r"[/\\](lightning\w*|pytorch_lightning|tensorboard|distributed|dask|torchmetrics)[/\\]")

# What to give, by what OmegaConf says of a value that it refuses.
_WANTED = {"Integer": "whole numbers", "Float": "numbers", "int, float": "numbers", "valid bool": "true or false"}
_WANTED |= {"not a ListConfig": "a list, such as [a,b,c]", "not Optional": "a value", "to string": "one value"}
_WANTED |= {"DictConfig with ListConfig": "a list, such as [a,b,c]"}


class LineFormatter(logging.Formatter):
    """Information as it is; everything above it with its level in front (``warning: ...``)."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class OwnInformation(logging.Filter):
    """Let through what mitoseg and Hydra log, and from other libraries only warnings and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class."""
        source = record.name.split(".")[0]
        least = logging.ERROR if source in _TALKATIVE else logging.WARNING
        return record.levelno >= least or source in {"mitoseg", "hydra", "HYDRA", "__main__"}


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Send warnings to the log, one line each, and let no odd character stop a print."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a Windows console's code page lacks most letters
    before, hook = warnings.showwarning, threading.excepthook

    def log_storage_error(failed: threading.ExceptHookArgs) -> None:
        """A full disk that a library's thread meets, such as TensorBoard's, which raises it again, in one line."""
        if failed.exc_value is not None and is_storage_error(failed.exc_value):
            logging.getLogger(__name__).warning(explain(failed.exc_value))
        else:
            hook(failed)

    logging.raiseExceptions = False  # a full disk stops the log, and nothing else
    warnings.showwarning, threading.excepthook = _log_warning, log_storage_error
    try:
        yield
    finally:
        warnings.showwarning, logging.raiseExceptions, threading.excepthook = before, True, hook


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning in one line; what concerns programmers alone only shows with ``hydra.verbose=true``."""
    for_programmers = issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
    quiet = for_programmers or _TALKATIVE_FILES.search(filename) or category.__module__.startswith("lightning")
    level = logging.DEBUG if quiet else logging.WARNING
    place = f"{category.__name__}, {Path(filename).name}:{lineno}"
    logging.getLogger("py.warnings").log(level, "%s (%s)", " ".join(str(message).split()), place)


def tell(what: object) -> None:
    """Print a line, whatever brackets are in it, or a table."""
    Console().print(what, soft_wrap=isinstance(what, str), markup=False)


def user_message(error: BaseException) -> str | None:
    """The line for an error that the user can mend, those of Hydra's among them; None if it is a bug."""
    line = explain(error)
    unknown = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument ('\w+')", str(error))
    if line is None and unknown and isinstance(error, InstantiationException):
        return f"{unknown[1]} has no option {unknown[2]}; --help lists the options"
    if line is not None or isinstance(error, InstantiationException):
        return line
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return "a group of options was given nothing; give a name, or a list of names in brackets"
    if isinstance(error, HydraException | ValidationError | InterpolationResolutionError):
        cause = f" {error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        refused = re.match(r"Error merging override (.*)", str(error))
        if refused and (wanted := [what for said, what in _WANTED.items() if said in cause]):
            word = refused[1].replace('"', "")  # that the command line was quoted with
            return f"the option takes other values: {word}; give {wanted[0]}"
        return " ".join(re.sub(r"\n\s*(full_key|object_type|reference_type)\b.*", "", f"{error}{cause}").split())
    return None


def unknown_option(error: BaseException, config_dir: Path, config_name: str, overrides: Sequence[str]) -> str | None:
    """A line with the nearest option, if the error is that a key does not exist."""
    match = re.match(r"Could not override '([^']*)'", str(error))
    if match is None:
        return None
    choices = [word for word in overrides if (config_dir / word.split("=")[0]).is_dir()]
    try:
        with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
            keys = list(_keys(hydra.compose(config_name, overrides=choices)))
    except (HydraException, OmegaConfBaseException):  # a second mistake in the same command
        keys = []
    if match[1] in keys:  # it is there, but what it is given has keys that it has not
        return f"{match[1]} has no such keys; --help lists the options"
    return f"no such option: {match[1]!r}; {nearest(match[1], keys, '--help lists the options')}"


def unknown_choice(error: BaseException, config_dirs: Sequence[Path]) -> str | None:
    """A line with the nearest name, if a list of options names one that is in none of the folders."""
    missing = getattr(error, "missing_cfg_file", None)
    if not isinstance(missing, str):
        return None
    group, _, name = missing.rpartition("/")
    listed = getattr(error, "options", None) or [path.stem for path in (config_dirs[0] / group).glob("*.yaml")]
    names = sorted(listed) if group else []
    if not names:
        return None
    otherwise = f"choose one of {', '.join(names)}"
    own = "" if len(config_dirs) > 1 else " (your own need --config-dir FOLDER)"
    return f"{group} has no {name!r}; {nearest(name, names, otherwise)}{own}"


def nearest(name: str, names: Iterable[str], otherwise: str) -> str:
    """Which of the names may have been meant; ``otherwise`` where none is like it."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key) else cfg[key]
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{key}.")
