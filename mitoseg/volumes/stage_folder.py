r"""The folder beside an output in which it is made, and what lies in it.

out.tif                         appears at the very end, complete
.out.tif.unfinished/
    plan.json                   which command this is, what it decided, and whether the result is whole
    tiles.zarr/                 one chunk for each tile
    done.txt                    one line for each tile that is on the disk
    converted/                  the output in its own format
    lock                        held while a process works here
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import explain_storage_error, is_storage_error, make_folders, remove, write_json, write_text
from mitoseg.volumes.base import Volume

PATIENCE = 30.0
"""Seconds in which what another machine has written must appear here: network folders are looked at now and then."""


class StageFolder:
    """See the module.

    Args:
        output: The final file or folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f".{output.name}.unfinished")
        self.array = self.path / "tiles.zarr"
        self.converted = self.path / "converted" / output.name
        self._done, self._plan = self.path / "done.txt", self.path / "plan.json"
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Make the folder, and hold it against other processes.

        Raises:
            UserError: It cannot be made, or another process holds it.
        """
        with explained(self.output):
            self._made = make_folders(self.path.parent)
            try:
                self.path.mkdir(exist_ok=True)
                self._lock = FileLock(self.path / "lock")
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError("another process is writing this output", str(self.output), "wait for it") from error
            except BaseException:
                self._remove_folders()
                raise

    def release(self) -> None:
        """Let others in; a folder without a plan goes away, with the folders that were made for it and stay empty."""
        if self._plan.is_file():
            self._lock.release()
            return
        self.clear()
        self._lock.release()
        remove(self.path / "lock")
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in (self.path, *reversed(self._made)):
            with suppress(OSError):  # not empty, or somebody else was quicker
                folder.rmdir()

    def read_plan(self) -> dict[str, Any]:
        """What `write_plan` wrote, or nothing."""
        try:
            plan = json.loads(self._plan.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return plan if isinstance(plan, dict) and isinstance(plan.get("decisions"), dict) else {}

    def write_plan(self, identity: Mapping[str, Any], decisions: Mapping[str, Any], *, whole: bool = False) -> None:
        """Say which command this is, and whether its result is whole and about to get its name."""
        write_json(self._plan, {"identity": identity, "decisions": decisions, "whole": whole})

    def listed(self) -> set[str]:
        """The lines of the list of tiles that are done; a half line, left by a kill, does not count."""
        try:
            lines = self._done.read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError:
            return set()
        return {line.strip() for line in lines if line.endswith("\n")}

    def list_all(self, tiles: Iterable[Box]) -> None:
        """Make these the tiles that are listed."""
        write_text(self._done, "".join(f"{tile}\n" for tile in tiles))

    def list_one(self, tile: Box) -> None:
        """Add a tile."""
        with self._done.open("a", encoding="utf-8") as file:
            file.write(f"{tile}\n")

    def discard(self) -> None:
        """Remove everything but the lock, the plan first: nobody shall take up the half of it."""
        remove(self._plan)
        self.clear()

    def clear(self) -> None:
        """Remove everything but the lock, the plan last: it says that the output has its name already."""
        for path in self.path.iterdir():
            if path.name not in ("lock", self._plan.name):
                remove(path)
        remove(self._plan)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell of a full disk or missing rights in one line.

    Raises:
        UserError: The operating system refused.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_storage_error(error):
            raise explain_storage_error(error, path) from error
        raise


def readable(volume: Volume, box: Box) -> bool:
    """Whether a box can be read."""
    try:
        volume.read(box)
    except UserError:
        return False
    return True


def wait_for(file: Path, patience: float = PATIENCE) -> None:
    """Wait until a file that another process has written appears here.

    Raises:
        UserError: It does not.
    """
    end = time.monotonic() + patience
    while not file.is_file():
        if time.monotonic() > end:
            what = f"what a worker has written does not appear here within {patience:g} s"
            raise UserError(what, str(file), "put the output on storage that all machines share, under the same path")
        time.sleep(0.02)
        with suppress(OSError):
            next(iter(file.parent.iterdir()), None)  # has a network folder look again
