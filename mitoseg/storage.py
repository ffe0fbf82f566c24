"""Outputs that appear whole or not at all: written under a temporary name beside the final one, and renamed at last.

    .out.5e0d41c7-4711-6a2b90f4.3f9c2a1b.partial.tif   (removed on any exception)
         machine  process, start  chance

A process that is killed leaves its temporary file; the next one that writes the same output removes it (`sweep`).
Where a folder is replaced, the old one steps aside under the same name and ``.old`` for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from mitoseg.errors import UserError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_OWNER = re.compile(r"([0-9a-f]{8})-(\d+)-([0-9a-f]+)\.[0-9a-f]{8}\.partial")
_CLOCK_SECONDS = 3600
"""By which the start of a process may seem to move when the clock is set."""
_FORGOTTEN_SECONDS = 7 * 24 * 3600
"""After which a temporary file of another machine, whose processes cannot be asked for, is nobody's any more."""
_SHOWN = 3


def check_output(path: Path | str, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done; remove what killed processes left of it."""
    path = Path(path)
    try:
        sweep(path)
        with contextlib.suppress(FileNotFoundError):  # other errors, as of a name too long, pass on
            path.lstat()
            if not overwrite:
                raise UserError("the output exists", str(path), "choose another name or give overwrite=true")
        folder = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), None)
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, "no such drive", str(path))
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
        with tempfile.TemporaryFile(dir=folder):  # asking os.access is not reliable for root and on Windows
            pass
    except OSError as error:
        raise explain_storage_error(error, path) from error


def check_folder(folder: Path | str, marker: str, overwrite: bool) -> None:
    """Refuse to write a folder over anything but an empty one, or an earlier one, which holds a file ``marker``."""
    folder = Path(folder)
    check_output(folder, overwrite)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / marker).is_file())):
        raise UserError("the folder contains other files", str(folder), "give a new name: it would be replaced")


@contextlib.contextmanager
def atomic_output(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file or a folder that appears under its name only when the block ends without an exception.

    Yields a free temporary name beside the final one, with the same suffix: write a file or make a folder there.
    """
    path = Path(path)
    check_output(path, overwrite)
    temporary = _temporary(path)
    made: list[Path] = []
    try:
        made += make_folders(path.parent)
        yield temporary
        move_into_place(temporary, path, overwrite=overwrite)
    except BaseException as error:
        remove(temporary)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, Exception) and not isinstance(error, UserError) and is_storage_error(error):
            raise explain_storage_error(error, path) from error
        raise


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside an output, which need not exist, for what is needed until the end of the block."""
    sweep(path)
    folder = _temporary(path)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def _temporary(path: Path) -> Path:
    """A free name beside an output that tells which process writes it."""
    owner = f"{_machine()}-{os.getpid()}-{int(psutil.Process().create_time()):x}"
    return path.with_name(f"{_prefix(path)}{owner}.{secrets.token_hex(4)}.partial{path.suffix}")


def _prefix(path: Path) -> str:
    """How the temporary names of an output begin; a long name is cut, and told from others by its checksum."""
    name = os.fsencode(path.stem)
    stem = path.stem if len(name) <= 120 else f"{path.stem[:20]}-{hashlib.sha256(name).hexdigest()[:8]}"
    return f".{stem}."


@cache
def _machine() -> str:
    """Tells the process numbers of this machine, or container, from those of another one."""
    space = ""
    with contextlib.suppress(OSError):  # Linux
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def sweep(path: Path) -> None:
    """Remove temporary files of an output whose processes are gone, and put an old folder back that stepped aside.

    Whether a process of another machine runs cannot be told: its files stay for a week after the last change.
    """
    start, left = _prefix(path), []
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        left = [entry.name for entry in entries if entry.name.startswith(start)]
    for name in sorted(left, key=lambda name: not name.endswith(".old")):
        owner, file = _OWNER.match(name, len(start)), path.with_name(name)
        if owner is None or not _is_gone(file, owner[1], int(owner[2]), int(owner[3], 16)):
            continue
        if name.endswith(".old") and not os.path.lexists(path):
            os.replace(file, path)
        else:
            remove(file)


def _is_gone(file: Path, machine: str, process: int, start: int) -> bool:
    try:
        if machine != _machine():
            files = [file, *file.rglob("*")]  # of a folder, else there are none
            return time.time() - max(f.lstat().st_mtime for f in files) > _FORGOTTEN_SECONDS
        found = psutil.Process(process)
        return abs(found.create_time() - start) > _CLOCK_SECONDS or found.status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, OSError) as error:
        return not isinstance(error, OSError)  # else it is being removed by somebody


def check_own_folder(folder: Path) -> None:
    """Refuse a folder under a name that others can guess, if it is a link or not made by this user."""
    state = folder.lstat()
    with tempfile.TemporaryFile(dir=folder.parent) as own:  # some network folders give all files one owner
        user = os.fstat(own.fileno()).st_uid
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != user:
        what = "belongs to another user" if stat.S_ISDIR(state.st_mode) else "is a link or a file"
        raise UserError(f"the folder of the unfinished output {what}", str(folder), "remove it, or write elsewhere")


def open_own(path: str, flags: int) -> int:
    """Opener, for `open`, of a file under a name that others can guess: a link that was put there is not followed."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_text(path: Path | str, text: str, *, overwrite: bool = True) -> None:
    """Write UTF-8 text atomically; line ends, and bytes of names that are no UTF-8, are written as given."""
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def write_json(path: Path | str, data: object) -> None:
    """Write plain data, see `plain`, as indented JSON, atomically."""
    text = json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    escaped = text.encode(errors="backslashreplace").decode()  # of names that are no UTF-8, as JSON writes such
    write_text(path, escaped + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plain(data: object) -> Any:  # noqa: ANN401 (JSON's own type is recursive)
    """Data as JSON knows it: dict, list, str, int, float, bool, None; NaN and infinities become None.

    >>> plain({"shape": (1, 2), "score": float("nan")})
    {'shape': [1, 2], 'score': None}
    """
    if hasattr(data, "tolist"):  # numpy arrays and scalars, torch tensors
        data = data.tolist()
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if data is None or isinstance(data, str | int):
        return data
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if isinstance(data, Iterable):
        return [plain(value) for value in data]
    raise TypeError(f"no JSON form of {type(data).__name__}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as one, its keys joined by dots.

    >>> flatten({"train": {"image": "a.tif"}, "seed": 0})
    {'train.image': 'a.tif', 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two trees of options differ, in words; empty if they do not.

    >>> changes({"a": {"b": 1}, "c": 2}, {"a": {"b": None}, "c": 2})
    'a.b was 1, is now null'
    """
    old, new = flatten(plain(before)), flatten(plain(now))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    words = [f"{key} was {_short(old.get(key))}, is now {_short(new.get(key))}" for key in keys[:_SHOWN]]
    return "; ".join([*words, *([f"and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else [])])


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:26]} ... {text[-29:]}"


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; what was made, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished file or folder onto its final name; an old folder steps aside and comes back if that fails."""
    if temporary.is_file():
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems report a full disk only then
    if not overwrite and os.path.lexists(path):
        raise UserError("the output appeared while it was being written", str(path), "choose another name")
    if not (path.is_dir() or temporary.is_dir()) or not os.path.lexists(path):
        os.replace(temporary, path)
        return
    old = temporary.with_name(temporary.name + ".old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder; that it is gone or held by somebody is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_storage_error(error: BaseException) -> bool:
    """Whether an exception tells of a full disk or of missing rights."""
    return _errno(error) in _FULL | _DENIED


def _errno(error: BaseException) -> int | None:
    """The error number of an exception or of its causes; HDF5 and safetensors hide it in the text."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"(?:errno =|os error) (\d+)", str(error))):
        number = int(match[1])
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error) and "unexpected pos" in str(error):
        number = errno.ENOSPC  # torch, whose writer got a part of its bytes to the disk
    cause = error.__cause__ or error.__context__
    return number if number is not None or cause is None else _errno(cause)


def explain_storage_error(error: BaseException, path: Path | None) -> UserError:
    """The one line for an operating system's refusal."""
    place = None if path is None else str(path)
    if _errno(error) in _FULL:
        return UserError("the disk is full or the file too large for it", place, "free some space or write elsewhere")
    if _errno(error) in _DENIED:
        return UserError(
            "the output cannot be written", place, "check the permissions, and that no other program holds it"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"the output cannot be written ({reason})", place, "check the path")


@contextlib.contextmanager
def held(lock: Path, busy: str, remedy: str = "wait for it") -> Iterator[None]:
    """Hold a folder while the block runs, so that no second process writes into it; a killed process holds nothing.

    ``busy`` is what to say if another process holds the file ``lock``.
    """
    file = FileLock(lock, timeout=0)
    try:
        make_folders(lock.parent)
        file.acquire()
    except Timeout as error:
        raise UserError(busy, str(lock.parent), remedy) from error
    except NotImplementedError:  # a file system without locks, as Lustre is often mounted
        pass
    except OSError as error:
        raise explain_storage_error(error, lock.parent) from error
    try:
        yield
    finally:
        file.release()


def explain(error: BaseException) -> str | None:
    """The line for an error that the user can mend; None if it is a bug.

    A `UserError` counts wherever it is the cause of another one: ``hydra.utils.instantiate`` wraps what is raised.
    """
    if type(error).__name__ == "DistBackendError" or (isinstance(error, RuntimeError) and "by peer" in str(error)):
        return "another rank has stopped; its own message tells why"
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return str(link)
        if type(link).__name__ == "ConfigAttributeError":  # OmegaConf's: a group was given an empty list
            key = getattr(link, "full_key", None)
            return f"nothing is chosen for {key}; give {key}=NAME"
        if type(link).__name__ == "MissingMandatoryValue":  # OmegaConf's
            key = getattr(link, "full_key", None)
            return f"{key} has no value; add {key}=... to the command"
        if type(link).__name__ == "MisconfigurationException":  # Lightning's
            return " ".join(str(link).split())
        if isinstance(link, OSError) and is_storage_error(link):
            return str(explain_storage_error(link, Path(os.fsdecode(link.filename)) if link.filename else None))
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            what = str(link).partition(" GPU ")[0]  # how much of what was asked for
            return f"there is not enough memory ({what}); give smaller volumes or batches".replace(" ()", "")
        link = link.__cause__
    return None
