"""``resume=RUN``: the command line of a run, taken up again in its folder.

The saved arguments come from a folder that somebody else may have made, and a config is code:
``hydra.utils.instantiate`` runs whatever ``_target_`` names. Unless ``trust=true`` is given now, a saved argument may
therefore choose only among the options that a group of ``conf/`` lists, and `refuse_targets` judges the config that
all arguments compose to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mitoseg.arguments import SAVED, key_of, literal, read_saved, requote_override, value_of
from mitoseg.errors import UserError

_ONCE = {"resume", "extend", "trust", "overwrite"}  # said for one call, not for the run
_CODE = re.compile(r"_(target|args|partial|recursive|convert)_|\$\{|://")
"""What a saved argument may not hold: what `instantiate` heeds, an interpolation, a server that would be called."""
_TARGET = re.compile(r"""_target_["']?\s*[:=]\s*["']?([\w.]+)""")
_REMEDY = "give trust=true if you know who made this run"
_parser = OverridesParser.create()


def resume_overrides(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The saved arguments of the resumed run, then the given ones, which replace those of the same key.

    Args:
        overrides: Quoted. Without ``resume=`` among them they come back as they are.
        config_dirs: mitoseg's own folder of configs, then the one that the command line names.
    """
    values = [value_of(word) for word in overrides if key_of(word) == "resume"]
    if not values or values[-1] in {"", "null"}:
        return list(overrides)
    folder = _find_run(Path(values[-1]))
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
            what = f"{folder / SAVED} holds a word that can run code"
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
    """Every string in a value of Hydra's grammar, keys too."""
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


def _find_run(path: Path) -> Path:
    """The run's folder that ``path`` is or lies in."""
    if not path.exists():
        raise UserError("no run to resume", str(path), "name a run's folder under outputs, or a checkpoint in one")
    for folder in (path, *path.parents, *path.resolve().parents):
        if (folder / SAVED).is_file():
            return folder
    raise UserError("not a run, it has no .hydra/overrides.yaml", str(path), "name a run's folder under outputs")
