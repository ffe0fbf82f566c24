"""Reading foreign files: what libraries throw or log becomes one line for the user."""

from __future__ import annotations

import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array

_UNKNOWN = ("UnknownCodecError", "not a known COMPRESSION", "> not supported")
"""What zarr and tifffile say of compressions that they do not know."""
_NOISY = ("tifffile", "zarr", "h5py", "imagecodecs", "nibabel.global", "PIL")
CACHE_BYTES = 128 * 2**20
"""Decoded voxels that a volume keeps, so that neighbouring boxes do not decode the same page twice."""


class _Collector(logging.Filter):
    """Keeps a library's log records from the user, for the caller to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        return False


def check_regular(path: str) -> None:
    """Refuse what is there and no file or folder: reading a pipe, a socket or a device may never end.

    Raises:
        UserError: It is one, or a link that leads nowhere.
    """
    if os.path.isfile(path) or os.path.isdir(path):
        return
    if os.path.exists(path):
        raise UserError("this is no file or folder but a pipe, a socket or a device", path, "give a file")
    if os.path.islink(path):
        raise UserError("the link leads nowhere", path, "mend it, or give the file itself")


@contextmanager
def reading(path: str) -> Iterator[list[logging.LogRecord]]:
    """Turn any failure of a library inside the block into a `UserError`, and keep its log to itself.

    Args:
        path: What is being read, for the message.

    Yields:
        What the libraries logged so far.

    Raises:
        UserError: The block failed.
    """
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in _NOISY]
    for logger in loggers:
        logger.addFilter(collector)
    try:
        yield collector.records
    except UserError:
        raise
    except MemoryError as error:
        remedy = "read smaller parts, or check the file: a damaged header may state absurd sizes"
        raise UserError("the memory is too small for a part of the file", path, remedy) from error
    except FileNotFoundError as error:
        raise UserError("no such file or folder", path, "check the path") from error
    except PermissionError as error:
        raise UserError("the file may not be read", path, "check its permissions") from error
    except Exception as error:  # whatever a decoder throws at a damaged file
        reason = f"{type(error).__name__}: {error}"[:160]
        if any(words in reason for words in _UNKNOWN):
            what = f"the voxels are compressed or stored in a way that is not read ({reason})"
            raise UserError(what, path, "write the volume again with another compression, such as gzip") from error
        raise UserError(
            f"the file cannot be read ({reason})", path, "it is damaged, incomplete or of another kind"
        ) from error
    finally:
        for logger in loggers:
            logger.removeFilter(collector)


@contextmanager
def opening(path: str) -> Iterator[list[logging.LogRecord]]:
    """As `reading`, and without the libraries' warnings (not for threads: the warning filters are global)."""
    with warnings.catch_warnings(), reading(path) as records:
        warnings.simplefilter("ignore")
        yield records


class PageCache:
    """The last decoded pages of a volume, up to a number of bytes; it travels to other processes empty.

    Args:
        capacity: Bytes to keep at most; the newest page stays in any case.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self.capacity = capacity
        self._pages: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._pid = os.getpid()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._pages

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The page of this key, decoded by ``decode`` where it is not at hand."""
        if self._pid != os.getpid():  # the lock may have been held when this process was forked
            self.__init__(self.capacity)  # type: ignore[misc]
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
        page = decode()
        with self._lock:
            if key not in self._pages:
                self._pages[key] = page
                self._bytes += page.nbytes
            while self._bytes > self.capacity and len(self._pages) > 1:
                self._bytes -= self._pages.popitem(last=False)[1].nbytes
        return page

    def __getstate__(self) -> dict[str, int]:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]
