r"""Paths, boxes and colours as people type them, put into quotes before Hydra's grammar sees them.

Hydra reads ``input=scan (1),b=2.tif`` as a function call, a sweep and an assignment, and cannot read ``#800000``. Most
values of the keys below
are paths, so each becomes one quoted string that Hydra takes as it is. Quoting twice changes nothing: further ranks
and the jobs of a sweep see command lines that went through here before.

To sweep over paths write ``choice(a.tif,b.tif)``, since even with ``-m`` a comma in a path is part of the path. Keys
that take several files read ``[a.tif,b.tif]`` as a list. In both, an element with a comma is quoted by its writer, and
a file of that very name comes first. ``null``, an empty value and what is quoted already are left alone; a file that
really is called ``null`` is written ``./null``.

``${...}`` in a path is refused, since it cannot be told from an interpolation; inside quotes it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException

from mitoseg.errors import UserError

PATH_KEYS = (
    *("input", "output", "checkpoint", "prediction", "truth", "image", "probability", "uncertainty"),
    *("run", "mask", "instances"),
    *("save_instances", "meshes", "skeletons", "scene"),
    *("data.root", "resume", "init_from"),
)
FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_SWITCHES = {"instances": {"true", "false"}}
"""Keys that take a path in one command and are switched on or off in another, and what switches them."""
_LIST_KEY = re.compile(r"data\.\w+\.(image|label)|checkpoints|input")
_OTHER_PATH_KEY = re.compile(r"methods\.[\w-]+\.checkpoint")
_WORDS_KEY = re.compile(r"methods\.[\w-]+\.(train|small)")
_BOX_KEY = re.compile(r"crop|figure_box|data\.\w+\.box")
_BOX = re.compile(r"\s*\d*:\d*\s*(,\s*\d*:\d*\s*)*")
_COLOUR_KEY = re.compile(r"(.*\.)?(prediction_)?foreground")
_COLOUR = re.compile(r"""(?<!["'])#[0-9a-fA-F]{6}\b(?!["'])""")
_SIZE_KEY = re.compile(r"(.*\.)?voxel_size")
_NUMBERS = re.compile(r"\s*[\d.]+\s*(,\s*[\d.]+\s*)+")
_HEAD = re.compile(r"(\+{0,2})([^=+~][^=]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_parser = OverridesParser.create()


def quote_overrides(overrides: Iterable[str]) -> list[str]:
    """Quote every word of a command line that needs it; see the module for the rules.

    Args:
        overrides: Words as typed, ``key=value`` or anything else.

    Returns:
        As many words, acceptable to Hydra; quoting them again changes nothing.

    Raises:
        UserError: A path holds ``${``.
    """
    return [quote_override(word) for word in overrides]


def quote_override(word: str) -> str:
    """Quote one word of a command line if its key takes a path, a box, a voxel size or a colour, else hand it back.

    Raises:
        UserError: The path holds ``${``.

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
    elif _WORDS_KEY.fullmatch(key):
        value = _quote_words(value)
    elif may_list or _is_path_key(key):
        value = _quote_path(key, value, may_list)
    elif key in FOLDER_KEYS and value and _element(value) is None:
        value = quote(value)
    return f"{prefix}{key}={value}"


def requote_override(word: str) -> str:
    r"""Quote a word that Hydra or a sweeper has written, in which odd characters carry backslashes.

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


def _is_path_key(key: str) -> bool:
    return key in PATH_KEYS or _OTHER_PATH_KEY.fullmatch(key) is not None


def quote(text: str) -> str:
    r"""Text in double quotes, escaped so that Hydra's grammar gives it back unchanged.

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
    """Text that OmegaConf resolves to itself, though it holds ``${``."""
    return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", text)


def unquote(value: str) -> str:
    """The text that Hydra reads from a value: the inside of quotes, else the value itself.

    >>> unquote('"a, b"'), unquote("a, b")
    ('a, b', 'a, b')
    """
    element = _element(value)
    return _text(element) if isinstance(element, QuotedString) else value


def _text(element: object) -> str:
    return element.text if isinstance(element, QuotedString) else str(element)


def _element(value: str) -> object:
    """What Hydra's grammar makes of a value, quoted strings as such; None if it cannot be read."""
    try:
        return _parser.parse_override(f"k={value}")._value  # value() drops the difference that quotes make
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
            return _quote_parts(key, bare[len("choice(") : -1])  # choice() itself would lose the quotes
        if may_list and bare.startswith("[") and bare.endswith("]"):
            return f"[{_quote_parts(key, bare[1:-1])}]"
    return _quote_one(key, value)


def _quote_parts(key: str, text: str) -> str:
    """Quote each path of a comma-separated run, leaving the parts that are quoted already."""
    spans = [m.span() for m in _QUOTED.finditer(text)]
    commas = [i for i, c in enumerate(text) if c == "," and not any(a <= i < b for a, b in spans)]
    starts, stops = [0, *(i + 1 for i in commas)], [*commas, len(text)]
    parts = [text[a:b].strip() for a, b in zip(starts, stops, strict=True)]
    return ",".join(part if _is_ready(_element(part), False) else _quote_one(key, part) for part in parts)


def _quote_one(key: str, path: str) -> str:
    if "${" in path:
        remedy = f"rename the file, or quote the value where an interpolation is meant: '{key}=\"...\"'"
        raise UserError(f"a path with ${{ in it cannot be told from an interpolation, {key}", path, remedy)
    if path.startswith("~/") and not _exists(path):  # a shell leaves the ~ of key=~/file alone
        path = str(Path(path).expanduser())
    return quote(path)


def _quote_box(value: str) -> str:
    bare = value.strip()
    inner = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
    inner = re.sub(r"""(["'])(.*?)\1""", r"\2", inner)
    if not _BOX.fullmatch(inner):
        return value
    return "[" + ",".join(quote(part.strip()) for part in inner.split(",")) + "]"


def _quote_words(value: str) -> str:
    """Quote the words in a list of words, which hold an equals sign and brackets of their own; see the example.

    >>> print(_quote_words("[epochs=1,data.tile=[1,32,32]]"))
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
