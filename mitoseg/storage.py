"""Outputs that appear whole or not at all.

Everything is first written under a temporary name beside the final one and renamed at the end, so that a full disk,
an error or an interrupt leaves nothing behind that looks like a result.

    out.tif   <- rename -   .out.3f9c2a1b.partial.tif   (removed on any exception)
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mitoseg.errors import UserError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def check_output(path: Path | str, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Missing parent folders are fine: `atomic_output` makes them.

    Args:
        path: Where the output shall go, a file or a folder.
        overwrite: Whether an output that exists may be replaced.

    Raises:
        UserError: The output exists and may not be replaced, or its folder cannot be written.
    """
    path = Path(path)
    try:
        if _exists(path) and not overwrite:
            raise UserError("the output exists", str(path), "choose another name or give overwrite=true")
        folder = _nearest_folder(path)
        with tempfile.TemporaryFile(dir=folder):  # asking os.access is not reliable for root and on Windows
            pass
    except OSError as error:
        raise explain_storage_error(error, path) from error


@contextlib.contextmanager
def atomic_output(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file or a folder that appears under its name only when the block ends without an exception.

    Args:
        path: The final name; missing parent folders are made.
        overwrite: Whether an output that exists may be replaced.

    Yields:
        A free temporary name beside the final one, with the same suffix: write a file or make a folder there.

    Raises:
        UserError: As `check_output`; or the disk is full; or something may not be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_output(f"{folder}/a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     print([p.name for p in Path(folder).iterdir()])
        ['a.txt']
    """
    path = Path(path)
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")
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


def write_text(path: Path | str, text: str, *, overwrite: bool = True) -> None:
    """Write UTF-8 text atomically; the line ends are written as given.

    Raises:
        UserError: As `atomic_output`.
    """
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path | str, data: object, *, overwrite: bool = True) -> None:
    """Write plain data as indented JSON, atomically.

    Mappings, sequences, sets, paths and numpy scalars and arrays are taken; NaN and infinities become ``null``,
    because JSON has no such numbers.

    Raises:
        UserError: As `atomic_output`.
        TypeError: Something in ``data`` has no JSON form.
    """
    write_text(
        path, json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def plain(data: object) -> Any:  # noqa: ANN401 (JSON's own type is recursive)
    """Data as JSON knows it: dict, list, str, int, float, bool, None; NaN and infinities become None.

    Raises:
        TypeError: Something has no JSON form.

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


def _exists(path: Path) -> bool:
    """Whether something has that name, a dangling link too; other errors (a name too long) pass on."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _nearest_folder(path: Path) -> Path:
    """The deepest ancestor of ``path`` that exists; it must be a folder."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            return folder
        if os.path.lexists(folder):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
    raise FileNotFoundError(errno.ENOENT, "no such drive", str(path))


def make_folders(folder: Path) -> list[Path]:
    """Make ``folder`` with its parents; what was made, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _flush(path: Path) -> None:
    """Have a file on the disk: some file systems report a full disk only then."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished file or folder onto its final name; an old folder steps aside and comes back if that fails.

    Args:
        temporary: What is finished, on the same file system.
        path: Its final name.
        overwrite: Whether something of that name may be replaced.

    Raises:
        UserError: Something of that name exists and may not be replaced.
        OSError: The operating system refuses.
    """
    _flush(temporary)
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
    """Remove a file or a folder; that it is gone or held by somebody is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_storage_error(error: BaseException) -> bool:
    """Whether an exception tells of a full disk or of missing rights."""
    return _errno(error) in _FULL | _DENIED


def _errno(error: BaseException) -> int | None:
    """The error number of an exception or of its causes; HDF5 hides it in the text."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"errno = (\d+)", str(error))):
        number = int(match[1])
    cause = error.__cause__ or error.__context__
    return number if number is not None or cause is None else _errno(cause)


def explain_storage_error(error: BaseException, path: Path) -> UserError:
    """The one line for an operating system's refusal."""
    if _errno(error) in _FULL:
        return UserError(
            "the disk is full or the file too large for it", str(path), "free some space or write elsewhere"
        )
    if _errno(error) in _DENIED:
        return UserError(
            "the output cannot be written", str(path), "check the permissions, and that no other program holds it"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"the output cannot be written ({reason})", str(path), "check the path")
