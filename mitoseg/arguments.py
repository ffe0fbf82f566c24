"""Command-line arguments: quoted for Hydra's grammar, saved with a run, and taken up again by ``resume=RUN``.

Hydra reads ``input=scan (1),b=2.tif`` as a function call, a sweep and an assignment. The values of the keys below,
most of them paths, are therefore quoted, so that Hydra takes them literally; quoting is idempotent. To sweep over
paths write ``choice(a.tif,b.tif)``; keys that take several files read ``[a.tif,b.tif]`` as a list. In both, an element
that contains a comma must be quoted. ``null``, empty and quoted values are unchanged. ``${...}`` in a path is refused,
since it looks like an interpolation; inside quotes it is one.

Saved arguments may come from somebody else, and a config is code: Hydra runs whatever ``_target_`` names. Unless
``trust=true`` is given, they may therefore select only the options that a group of ``conf/`` lists, and
`refuse_targets` checks the composed config.
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
from omegaconf import DictConfig, OmegaConf

from mitoseg.errors import UserError
from mitoseg.storage import write_text

PATH_KEYS = (
    *("input", "output", "checkpoint", "prediction", "truth", "image", "probability", "uncertainty"),
    *("run", "mask", "instances", "model"),
    *("save_instances", "meshes", "skeletons", "scene"),
    *("data.root", "resume", "init_from"),
)
SAVED = Path(".hydra", "overrides.yaml")
_ACCEPTED = Path(".hydra", "accepted.yaml")
"""The arguments of the last accepted call, for commands that may refuse to resume a run."""
_FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_SWITCHES = {"instances": {"true", "false"}}
"""Keys that take a path in one command and true or false in another."""
_LIST_KEY = re.compile(r"data\.\w+\.(image|label)|checkpoints|input|image|labels")
_OTHER_PATH_KEY = re.compile(r"methods\.[\w-]+\.checkpoint")
_ARGUMENTS_KEY = re.compile(r"methods\.[\w-]+\.(train|small)")
_BOX_KEY = re.compile(r"crop|figure_box|data\.\w+\.box")
_BOX = re.compile(r"\s*\d*:\d*\s*(,\s*\d*:\d*\s*)*")
_COLOUR_KEY = re.compile(r"(.*\.)?((prediction_)?foreground|background|unknown)")
_COLOUR = re.compile(r"""(?<!["'])#[0-9a-fA-F]{6}\b(?!["'])""")
_SIZE_KEY = re.compile(r"(.*\.)?voxel_size")
_NUMBERS = re.compile(r"\s*[\d.]+\s*(,\s*[\d.]+\s*)+")
_HEAD = re.compile(r"(\+{0,2})([^=+~][^=]*)=(.*)", re.DOTALL)
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|.', re.DOTALL)
"""Something in quotes, or one character."""
_ONCE = {"resume", "extend", "trust", "overwrite"}  # said for one call, not for the run
_CODE = re.compile(r"_(target|args|partial|recursive|convert)_|\$\{|://")
"""What a saved argument may not hold: what `instantiate` heeds, an interpolation, a server that would be called."""
_TARGET = re.compile(r"""_target_["']?\s*[:=]\s*["']?([\w.]+)""")
_REMEDY = "give trust=true if you know who made this run"
_parser = OverridesParser.create()


def key_of(word: str) -> str:
    """The key of an argument, without the signs of Hydra's grammar."""
    return word.partition("=")[0].strip().lstrip("+~")


def value_of(word: str) -> str:
    """The value of an argument, without quotes."""
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

    >>> print(quote_override("input=my scan, 2nd.tif"))
    input="my scan, 2nd.tif"
    >>> print(quote_override("crop=0:82,64:768"))
    crop=["0:82","64:768"]
    >>> print(quote_override("data.train.foreground=[#800000,'#008000',3]"))
    data.train.foreground=["#800000",'#008000',3]
    >>> print(quote_override("voxel_size=40,6,6"))
    voxel_size=[40,6,6]
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
    """Text in double quotes, escaped so that Hydra's grammar returns it unchanged."""
    return QuotedString(text, Quote.double).with_quotes()


def literal(text: str) -> str:
    """Like `quote`, and ``${`` stays ``${`` when OmegaConf resolves the value once."""
    return quote(escape(text))


def escape(text: str) -> str:
    """Text that OmegaConf resolves to itself, even if it contains ``${``."""
    return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", text)


def unquote(value: str) -> str:
    """The text that Hydra reads from a value: the inside of quotes, else the value itself."""
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


def _split(text: str, *, nested: bool = False) -> list[str]:
    """Cut a list at its commas, except those inside quotes and, if it is ``nested``, brackets."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += nested and (piece == "[") - (piece == "]")
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def _quote_parts(key: str, text: str) -> str:
    return ",".join(part if _is_ready(_element(part), False) else _quote_one(key, part) for part in _split(text))


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
    """Quote the elements of a list of arguments, which contain equals signs and brackets themselves."""
    bare = value.strip()
    if not (bare.startswith("[") and bare.endswith("]")) or _element(value) is not None:
        return value
    return f"[{','.join(map(quote, _split(bare[1:-1], nested=True)))}]"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or characters that no file name may have
        return False


def read_saved(folder: Path, file: Path = SAVED) -> list[str]:
    """The arguments that a run was started with."""
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
    """Add values that a run has determined itself to its saved arguments, and remove the keys ``drop``."""
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


def resume_overrides(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The saved arguments of the resumed run, then the given ones, which replace those of the same key.

    ``overrides`` are quoted; ``config_dirs`` are mitoseg's own folder of configs, then that of the command line.
    """
    values = [value_of(word) for word in overrides if key_of(word) == "resume"]
    if not values or values[-1] in {"", "null"}:
        return list(overrides)
    path = Path(values[-1])
    if not path.exists():
        raise UserError("no run to resume", str(path), "name a run's folder under outputs, or a checkpoint in one")
    above = (path, *path.parents, *path.resolve().parents)
    folder = next((folder for folder in above if (folder / SAVED).is_file()), None)
    if folder is None:
        raise UserError("not a run, it has no .hydra/overrides.yaml", str(path), "name a run's folder under outputs")
    given = {key_of(word) for word in overrides}
    saved = [word for word in read_saved(folder) if key_of(word) not in given | _ONCE]
    if "trust=true" not in [word.lower() for word in overrides]:
        refuse_code(saved, folder, config_dirs)
        for path in folder.rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UserError("the run's folder holds a link to another place", str(path), _REMEDY)
    return [*map(requote_override, saved), *overrides, f"hydra.run.dir={literal(str(folder))}"]


def refuse_code(words: Sequence[str], folder: Path, config_dirs: Sequence[Path]) -> None:
    """Raise if a saved argument could make Hydra run something of its writer's choice."""
    for word in words:
        if not _is_harmless(word, config_dirs):
            what = f"{folder / SAVED} holds an argument that can run code"
            raise UserError(what, word, f"{_REMEDY}, and --config-dir if it had one")


def refuse_targets(cfg: DictConfig, typed: Sequence[str], config_dirs: Sequence[Path]) -> None:
    """Raise if a resumed run would build anything that neither the yaml files nor the arguments of this call name.

    Only files of the groups that the first folder has count.
    """
    if cfg.get("resume") is None or cfg.get("trust") is True:
        return
    groups = [".", *(path.name for path in config_dirs[0].iterdir() if path.is_dir())]
    files = [file for root in config_dirs for group in groups for file in (root / group).glob("*.y*ml")]
    texts = [*typed, *(file.read_text(encoding="utf-8") for file in files)]
    known = {found for text in texts for found in _TARGET.findall(text)}
    for target in _targets(OmegaConf.to_container(cfg, resolve=True)):
        if target not in known:
            raise UserError("the resumed run names code that is not in the configs", target, _REMEDY)


def _is_harmless(word: str, config_dirs: Sequence[Path]) -> bool:
    """Whether a saved argument sets plain values, or chooses an option that is listed."""
    try:
        parsed = _parser.parse_override(word)
        value = parsed.value()
    except (HydraException, ValueError):
        return False
    group, package = parsed.key_or_group, parsed.package or ""
    if parsed.is_sweep_override() or group in _ONCE or any(map(_CODE.search, (word, *_strings(value)))):
        return False
    if any(re.match(r"hydra\b", name, re.IGNORECASE) for name in (group, package)):
        return False
    if group.partition(".")[0] == "methods" and not group.endswith((".checkpoint", ".title")):
        inner = [text for text in _strings(value) if "=" in text or text.startswith("-")]
        if not all(_is_harmless(text, config_dirs) for text in inner):  # arguments of a training
            return False
    if "/" not in group and not any((root / group).is_dir() for root in config_dirs):
        return not package
    listed = {file.stem for root in config_dirs for file in (root / group).glob("*.y*ml")}
    chosen = {text.removesuffix(".yaml") for text in _strings(value)}
    return isinstance(value, dict) or ((config_dirs[0] / group).is_dir() and chosen <= listed)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield str(value)
    for item in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(item)


def _targets(config: object) -> Iterator[object]:
    """The value of every ``_target_`` in a config."""
    pairs = config.items() if isinstance(config, dict) else enumerate(config if isinstance(config, list) else ())
    for key, item in pairs:
        if key == "_target_":
            yield item
        yield from _targets(item)
