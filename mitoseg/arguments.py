r"""Command-line arguments: quoted for Hydra's grammar, and saved with a run.

Hydra reads ``input=scan (1),b=2.tif`` as a function call, a sweep and an assignment, and cannot read ``#800000``. The
values of the keys below, most of them paths, are therefore quoted, so that Hydra takes them literally. Quoting is
idempotent: further ranks and the jobs of a sweep receive arguments that are already quoted.

To sweep over paths write ``choice(a.tif,b.tif)``: even with ``-m`` a comma in a path is part of the path. Keys that
take several files read ``[a.tif,b.tif]`` as a list. In both, an element that contains a comma must be quoted, unless a
file of exactly that name exists. ``null``, empty and quoted values are unchanged; a file called ``null`` is
``./null``. ``${...}`` in a path is refused, since it looks like an interpolation; inside quotes it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException

from mitoseg.errors import UserError
from mitoseg.storage import write_text

PATH_KEYS = (
    *("input", "output", "checkpoint", "prediction", "truth", "image", "probability", "uncertainty"),
    *("run", "mask", "instances"),
    *("save_instances", "meshes", "skeletons", "scene"),
    *("data.root", "resume", "init_from"),
)
SAVED = Path(".hydra", "overrides.yaml")
_ACCEPTED = Path(".hydra", "accepted.yaml")
"""The arguments of the last accepted call, for commands that may refuse to resume a run."""
_FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_SWITCHES = {"instances": {"true", "false"}}
"""Keys that take a path in one command and true or false in another."""
_LIST_KEY = re.compile(r"data\.\w+\.(image|label)|checkpoints|input")
_OTHER_PATH_KEY = re.compile(r"methods\.[\w-]+\.checkpoint")
_ARGUMENTS_KEY = re.compile(r"methods\.[\w-]+\.(train|small)")
_BOX_KEY = re.compile(r"crop|figure_box|data\.\w+\.box")
_BOX = re.compile(r"\s*\d*:\d*\s*(,\s*\d*:\d*\s*)*")
_COLOUR_KEY = re.compile(r"(.*\.)?(prediction_)?foreground")
_COLOUR = re.compile(r"""(?<!["'])#[0-9a-fA-F]{6}\b(?!["'])""")
_SIZE_KEY = re.compile(r"(.*\.)?voxel_size")
_NUMBERS = re.compile(r"\s*[\d.]+\s*(,\s*[\d.]+\s*)+")
_HEAD = re.compile(r"(\+{0,2})([^=+~][^=]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_parser = OverridesParser.create()


def key_of(word: str) -> str:
    """The key of an argument.

    >>> key_of("+a.b=1")
    'a.b'
    """
    return word.partition("=")[0].strip().lstrip("+~")


def value_of(word: str) -> str:
    """The value of an argument, without quotes.

    >>> value_of('input="a b.tif"')
    'a b.tif'
    """
    return unquote(word.partition("=")[2])


def as_typed(folder: Path) -> str:
    """A folder as the user would type it: relative if it is inside the current one."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into Hydra's options (``-m``, ``--cfg job``) and overrides, keeping the order of each.

    Hydra itself fails on ``train.py seed=1 -m epochs=2,3``, because argparse needs all overrides to be adjacent.
    """
    overrides: list[str] = list(get_args_parser().parse_intermixed_args(list(argv)).overrides)
    options, rest = [], list(overrides)
    for word in argv:
        if rest and word == rest[0]:
            rest.pop(0)
        else:
            options.append(word)
    return options, overrides


def quote_override(word: str) -> str:
    """Quote an argument if its key takes a path, a box, a voxel size or a colour; others are returned unchanged.

    Raises:
        UserError: A path contains ``${``.

    >>> print(quote_override("input=my scan, 2nd.tif"))
    input="my scan, 2nd.tif"
    >>> print(quote_override("crop=0:82,64:768"))
    crop=["0:82","64:768"]
    >>> print(quote_override("data.train.foreground=[#800000,'#008000',3]"))
    data.train.foreground=["#800000",'#008000',3]
    >>> print(quote_override("voxel_size=40,6,6"))
    voxel_size=[40,6,6]
    >>> print(quote_override("seed=1,2,3"))
    seed=1,2,3
    """
    match = _HEAD.fullmatch(word)
    if match is None:
        return word
    prefix, key, value = match.groups()
    may_list = _LIST_KEY.fullmatch(key) is not None
    if _BOX_KEY.fullmatch(key):
        value = _quote_box(value)
    elif _SIZE_KEY.fullmatch(key) and _NUMBERS.fullmatch(value):
        value = f"[{value}]"
    elif _COLOUR_KEY.fullmatch(key):
        value = _COLOUR.sub(lambda colour: quote(colour[0]), value)
    elif _ARGUMENTS_KEY.fullmatch(key):
        value = _quote_arguments(value)
    elif may_list or _is_path_key(key):
        value = _quote_path(key, value, may_list)
    elif key in _FOLDER_KEYS and value and _element(value) is None:
        value = quote(value)
    return f"{prefix}{key}={value}"


def requote_override(word: str) -> str:
    r"""Quote an argument written by Hydra or a sweeper, in which special characters are escaped by backslashes.

    >>> print(requote_override(r"input=a\ b.tif"))
    input="a b.tif"
    """
    match = _HEAD.fullmatch(word)
    if match is None or not (_is_path_key(match[2]) or _LIST_KEY.fullmatch(match[2])):
        return word
    element = _element(match[3])
    if isinstance(element, list):
        return f"{match[1]}{match[2]}=[{','.join(quote(_text(part)) for part in element)}]"
    return f"{match[1]}{match[2]}={quote(element)}" if isinstance(element, str) else word


def quote(text: str) -> str:
    r"""Text in double quotes, escaped so that Hydra's grammar returns it unchanged.

    >>> print(quote('a "b" \\'))
    "a \"b\" \\"
    """
    return QuotedString(text, Quote.double).with_quotes()


def literal(text: str) -> str:
    r"""Like :func:`quote`, and ``${`` stays ``${`` when OmegaConf resolves the value once.

    >>> print(literal("a${b}"))
    "a\${b}"
    """
    return quote(escape(text))


def escape(text: str) -> str:
    """Text that OmegaConf resolves to itself, even if it contains ``${``."""
    return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", text)


def unquote(value: str) -> str:
    """The text that Hydra reads from a value: the inside of quotes, else the value itself.

    >>> unquote('"a, b"'), unquote("a, b")
    ('a, b', 'a, b')
    """
    element = _element(value)
    return _text(element) if isinstance(element, QuotedString) else value


def _is_path_key(key: str) -> bool:
    return key in PATH_KEYS or _OTHER_PATH_KEY.fullmatch(key) is not None


def _text(element: object) -> str:
    return element.text if isinstance(element, QuotedString) else str(element)


def _element(value: str) -> object:
    """A value as parsed by Hydra's grammar, with quoted strings kept as such; None if it cannot be parsed."""
    try:
        return _parser.parse_override(f"k={value}")._value  # value() loses whether it was quoted
    except HydraException:
        return None


def _is_ready(element: object, may_list: bool) -> bool:
    """Whether the value consists of quoted strings: one, a list of them, or a sweep over them."""
    if isinstance(element, ChoiceSweep) and element.simple_form:
        return all(_is_ready(part, may_list) for part in element.list)
    if isinstance(element, list):
        return may_list and all(isinstance(part, QuotedString) for part in element)
    return isinstance(element, QuotedString)


def _quote_path(key: str, value: str, may_list: bool) -> str:
    bare = value.strip()
    if bare.lower() in {"", "null", *_SWITCHES.get(key, ())} or _is_ready(_element(value), may_list):
        return value
    if not _exists(value):
        if bare.startswith("choice(") and bare.endswith(")"):
            element = _element(value)
            if isinstance(element, ChoiceSweep) and any(isinstance(part, list) for part in element.list):
                return value
            return _quote_parts(key, bare[len("choice(") : -1])  # Hydra's choice() would lose the quotes
        if may_list and bare.startswith("[") and bare.endswith("]"):
            return f"[{_quote_parts(key, bare[1:-1])}]"
    return _quote_one(key, value)


def _quote_parts(key: str, text: str) -> str:
    """Quote each path in a comma-separated list, leaving those already quoted."""
    spans = [m.span() for m in _QUOTED.finditer(text)]
    commas = [i for i, c in enumerate(text) if c == "," and not any(a <= i < b for a, b in spans)]
    starts, stops = [0, *(i + 1 for i in commas)], [*commas, len(text)]
    parts = [text[a:b].strip() for a, b in zip(starts, stops, strict=True)]
    return ",".join(part if _is_ready(_element(part), False) else _quote_one(key, part) for part in parts)


def _quote_one(key: str, path: str) -> str:
    if "${" in path:
        remedy = f"rename the file, or quote the value where an interpolation is meant: '{key}=\"...\"'"
        raise UserError(f"a path with ${{ in it looks like an interpolation, {key}", path, remedy)
    if path.startswith("~/") and not _exists(path):  # the shell does not expand the ~ of key=~/file
        path = str(Path(path).expanduser())
    return quote(path)


def _quote_box(value: str) -> str:
    bare = value.strip()
    inner = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
    inner = re.sub(r"""(["'])(.*?)\1""", r"\2", inner)
    if not _BOX.fullmatch(inner):
        return value
    return "[" + ",".join(quote(part.strip()) for part in inner.split(",")) + "]"


def _quote_arguments(value: str) -> str:
    """Quote the elements of a list of arguments, which contain equals signs and brackets themselves.

    >>> print(_quote_arguments("[epochs=1,data.tile=[1,32,32]]"))
    ["epochs=1","data.tile=[1,32,32]"]
    """
    bare = value.strip()
    if not (bare.startswith("[") and bare.endswith("]")) or _element(value) is not None:
        return value
    words, depth = [""], 0
    for character in bare[1:-1]:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return f"[{','.join(quote(word.strip()) for word in words)}]"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or characters that no file name may have
        return False


def read_saved(folder: Path, file: Path = SAVED) -> list[str]:
    """The arguments that a run was started with.

    Raises:
        UserError: The file is not a list of arguments.
    """
    try:
        words = yaml.safe_load((folder / file).read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise UserError("the run's saved arguments cannot be read", str(folder / file), "start a new run") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError("the run's saved arguments are not a list of strings", str(folder / file), "start a new run")
    return words


def changed_arguments(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By key, the arguments of a run's last accepted call and of this one, as far as they differ."""
    if not (folder / _ACCEPTED).is_file():
        return {}, {}
    before, now = ({key_of(w): value_of(w) for w in read_saved(folder, file)} for file in (_ACCEPTED, SAVED))
    same = {key for key in before if now.get(key) == before[key]} | {"resume", "extend", "trust"}
    return {k: v for k, v in before.items() if k not in same}, {k: v for k, v in now.items() if k not in same}


def replace_saved_words(folder: Path, values: Mapping[str, object], drop: Sequence[str] = ()) -> None:
    """Add values that a run has determined itself to its saved arguments, and remove the keys ``drop``.

    Ranks other than 0 have saved none.
    """
    if (folder / SAVED).is_file():
        kept = [word for word in read_saved(folder) if key_of(word) not in {*values, *drop}]
        write_text(folder / SAVED, yaml.safe_dump([*kept, *(f"{key}={value}" for key, value in values.items())]))


@contextmanager
def words_kept(folder: Path) -> Iterator[None]:
    """Restore a run's saved arguments, already replaced by Hydra, if the block refuses to resume the run."""
    saved, accepted = folder / SAVED, folder / _ACCEPTED
    try:
        yield
    except BaseException:
        if accepted.is_file():
            write_text(saved, accepted.read_text(encoding="utf-8"))
        raise
    if saved.is_file():
        write_text(accepted, saved.read_text(encoding="utf-8"))
