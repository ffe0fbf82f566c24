"""``resume=RUN``: the command line of a run, taken up again in its folder.

The saved words come from a folder that somebody else may have made, and a config is code: ``hydra.utils.instantiate``
runs whatever ``_target_`` names. So saved words that touch such keys are refused unless ``trust=true`` is given now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from mitoseg.cli.quoting import literal, requote_override, unquote
from mitoseg.errors import UserError
from mitoseg.storage import write_text

SAVED = Path(".hydra", "overrides.yaml")
ACCEPTED = Path(".hydra", "accepted.yaml")
"""Of a command that may refuse to take up a run, the words of the last call that it did not refuse."""
_ONCE = {"resume", "extend", "trust", "overwrite"}  # said for one call, not for the run
_CODE = re.compile(r"[+~]*hydra\b|.*(_(target|args|partial|recursive|convert)_|\$\{)", re.DOTALL)


def resume_overrides(overrides: Sequence[str]) -> list[str]:
    """The saved words of the resumed run, then the given ones, all in the folder of that run.

    Args:
        overrides: Quoted words of the command line. Without ``resume=`` among them they come back as they are.

    Returns:
        What Hydra is to parse. A word given now replaces the saved one of the same key.

    Raises:
        UserError: ``resume`` names neither a run's folder nor a file in one, or the saved words may run code.
    """
    values = [unquote(word.partition("=")[2]) for word in overrides if _key(word) == "resume"]
    if not values or values[-1] in {"", "null"}:
        return list(overrides)
    folder = find_run(Path(values[-1]))
    given = {_key(word) for word in overrides}
    saved = [word for word in read_saved(folder) if _key(word) not in given | _ONCE]
    if "trust=true" not in [word.lower() for word in overrides]:
        refuse_code(saved, folder)
    return [*map(requote_override, saved), *overrides, f"hydra.run.dir={literal(str(folder))}"]


def read_saved(folder: Path) -> list[str]:
    """The words that a run was started with.

    Raises:
        UserError: The file is no list of words.
    """
    try:
        words = yaml.safe_load((folder / SAVED).read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError("the run's saved words cannot be read", str(folder / SAVED), "start a new run") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError("the run's saved words are no list of words", str(folder / SAVED), "start a new run")
    return words


def refuse_code(words: Sequence[str], folder: Path) -> None:
    """Raise if a saved word could make Hydra run something of its writer's choice.

    Raises:
        UserError: One does.
    """
    for word in words:
        if _CODE.match(word):
            what = f"{folder / SAVED} holds a word that can run code"
            raise UserError(what, word, "give trust=true if you know who made this run")


def replace_saved_words(folder: Path, values: Mapping[str, object], drop: Sequence[str] = ()) -> None:
    """Put values that a run has found out itself among its words, so that it is resumed with them.

    Args:
        folder: The run's folder; without saved words (a further rank) nothing is done.
        values: By key.
        drop: Keys to take out.
    """
    if (folder / SAVED).is_file():
        kept = [word for word in read_saved(folder) if _key(word) not in {*values, *drop}]
        write_text(folder / SAVED, yaml.safe_dump([*kept, *(f"{key}={value}" for key, value in values.items())]))


@contextmanager
def words_kept(folder: Path) -> Iterator[None]:
    """Keep the words of a run when a call that would take it up is refused inside the block.

    Hydra has already put the words of this call in their place.
    """
    saved, accepted = folder / SAVED, folder / ACCEPTED
    try:
        yield
    except BaseException:
        if accepted.is_file():
            write_text(saved, accepted.read_text(encoding="utf-8"))
        raise
    if saved.is_file():
        write_text(accepted, saved.read_text(encoding="utf-8"))


def find_run(path: Path) -> Path:
    """The run's folder that ``path`` is or lies in.

    Raises:
        UserError: There is none.
    """
    if not path.exists():
        raise UserError("no run to resume", str(path), "name a run's folder under outputs, or a checkpoint in one")
    for folder in (path, *path.parents, *path.resolve().parents):
        if (folder / SAVED).is_file():
            return folder
    raise UserError("not a run, it has no .hydra/overrides.yaml", str(path), "name a run's folder under outputs")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")
