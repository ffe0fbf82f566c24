"""``resume=RUN``: the command line of a run, taken up again in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from mitoseg.cli.quoting import literal, requote_override, unquote
from mitoseg.errors import UserError

SAVED = Path(".hydra", "overrides.yaml")


def resume_overrides(overrides: Sequence[str]) -> list[str]:
    """The saved words of the resumed run, then the given ones, all in the folder of that run.

    Args:
        overrides: Quoted words of the command line. Without ``resume=`` among them they come back as they are.

    Returns:
        What Hydra is to parse. A word given now replaces the saved one of the same key.

    Raises:
        UserError: ``resume`` names neither a run's folder nor a file in one.
    """
    values = [unquote(word.partition("=")[2]) for word in overrides if _key(word) == "resume"]
    if not values or values[-1] in {"", "null"}:
        return list(overrides)
    folder = find_run(Path(values[-1]))
    given = {_key(word) for word in overrides}
    words: list[str] = yaml.safe_load((folder / SAVED).read_text(encoding="utf-8")) or []
    saved = [word for word in words if _key(word) not in given]
    return [*map(requote_override, saved), *overrides, f"hydra.run.dir={literal(str(folder))}"]


def find_run(path: Path) -> Path:
    """The run's folder that ``path`` is or lies in.

    Raises:
        UserError: There is none.
    """
    if not path.exists():
        raise UserError("no run to resume", str(path), "name a folder under outputs/train, or a checkpoint in one")
    for folder in (path, *path.parents, *path.resolve().parents):
        if (folder / SAVED).is_file():
            return folder
    raise UserError("not a run, it has no .hydra/overrides.yaml", str(path), "name a folder under outputs/train")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")
