"""What a benchmark compares: methods and data as their configs describe them, and what stands in its folder.

outputs/benchmark/<date>_<time>/
    table.md, table.csv, table.html, methods.png, provenance.json
    forest/     record.json, metrics.json, costs.json, model/, predictions/
    unet25d/    record.json, metrics.json, costs.json, train/ (a run of training), predictions/
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from mitoseg.datasets import Recipe, Region, Splits
from mitoseg.errors import UserError
from mitoseg.storage import changes, flatten, read_json, remove

SIZES = ("full", "small")
KEYS = ("title", "estimator", "train", "small", "checkpoint")
"""Of a file in ``conf/methods``."""
RECORD, METRICS, COSTS, MODEL, TRAIN = "record.json", "metrics.json", "costs.json", "model", "train"
LAST = Path(TRAIN, "checkpoints", "last.ckpt")
FINISHED = "finished"
TRAINING_KEYS = {
    *("tile", "batch_size", "positions", "label_rule", "purity", "block", "channels", "balance", "augment"),
    *("rotate_background", "interpolation", "epoch_blocks", "epoch_tiles", "foreground_share", "validation_stride"),
    "voxels_on",
}
"""Keys of ``data`` that say how a network is trained (``conf/data/blocks.yaml``), not what the data are."""


@dataclass(frozen=True)
class Method:
    """One method; it has either an estimator or arguments of ``train.py``.

    Attributes:
        name: Of its file in ``conf/methods``.
        title: For the table.
        estimator: ``_target_`` and keywords of a `mitoseg.benchmark.Estimator`.
        train: Arguments for ``train.py``.
        checkpoint: What is scored instead of training; None to train.
    """

    name: str
    title: str
    estimator: Mapping[str, Any] | None
    train: tuple[str, ...] | None
    checkpoint: str | None

    def record(self) -> dict[str, Any]:
        """What a result depends on."""
        if self.checkpoint is not None:
            return {"checkpoint": self.checkpoint}
        return {"train": list(self.train)} if self.train is not None else {"estimator": dict(self.estimator or {})}


def read_methods(configs: Mapping[str, Any] | None, size: str) -> list[Method]:
    """The methods of a config, in its order; `size` is one of `SIZES`."""
    if size not in SIZES:
        raise UserError("no such size", size, f"choose one of {', '.join(SIZES)}")
    if not configs:
        raise UserError("no methods to compare", [], "give some, such as methods=[forest,unet25d]")
    return [read_method(name, config, small=size == "small") for name, config in configs.items()]


def read_method(name: str, config: Mapping[str, Any], *, small: bool) -> Method:
    """One method from what its file holds, with its smaller settings where `small`."""
    where = f"conf/methods/{name}.yaml"
    if not isinstance(config, Mapping) or set(config) - set(KEYS):
        found = sorted(map(str, config)) if isinstance(config, Mapping) else config
        raise UserError(f"a method has the keys {', '.join(KEYS)}; this one", found, f"see {where}")
    estimator, train, less = config.get("estimator"), config.get("train"), config.get("small")
    if (estimator is None) == (train is None):
        raise UserError("a method has either an estimator or words to train", name, f"see {where}")
    title = str(config.get("title") or name)
    if estimator is not None:
        changed = {**estimator, **(_checked(less or {}, Mapping, f"{name}.small") if small else {})}
        return Method(name, title, changed, None, config.get("checkpoint"))
    words = _checked(train, list, f"{name}.train") + (_checked(less or [], list, f"{name}.small") if small else [])
    return Method(name, title, None, tuple(map(str, words)), config.get("checkpoint"))


def _checked(value: Any, kind: type, key: str) -> Any:  # noqa: ANN401 (what a yaml holds)
    if not isinstance(value, kind):
        what = "a list of words" if kind is list else "a mapping of options"
        raise UserError(f"methods.{key} is not {what}", value, "see the files in conf/methods")
    return value


@dataclass(frozen=True)
class Source:
    """A data set as the config names it.

    Attributes:
        name: Of the option in ``conf/data``.
        recipe: Config of the recipe, which takes ``options``.
        options: What the data are: files, shapes, the split.
    """

    name: str
    recipe: Mapping[str, Any]
    options: Mapping[str, Any]

    def leaves(self) -> dict[str, Any]:
        """Options by their full key, such as ``data.train.image``."""
        return {f"data.{key}": value for key, value in flatten(self.options).items()}

    def record(self) -> dict[str, Any]:
        """What a result depends on."""
        return {"name": self.name, **self.options}


def read_source(name: str, config: Mapping[str, Any], less: Mapping[str, Any], given: Collection[str]) -> Source:
    """The data set of a config.

    Args:
        name: The chosen option of the group ``data``.
        config: What it composes to, as plain data.
        less: Changes that make it small, none to leave it as it is.
        given: Keys that the user has set, which stay.
    """
    options = {key: value for key, value in config.items() if key not in TRAINING_KEYS | {"_target_", "recipe"}}
    for key, value in flatten(less).items():
        if f"data.{key}" not in given:
            tree, path = options, key.split(".")
            for part in path[:-1]:
                tree[part] = dict(tree.get(part) or {})
                tree = tree[part]
            tree[path[-1]] = value
    return Source(name, config["recipe"], options)


def open_source(source: Source) -> Splits:
    """Download or make what is missing, and open the regions."""
    recipe: Recipe = instantiate(dict(source.recipe))(**source.options)
    recipe.prepare()
    return recipe.splits()


def scored_regions(splits: Splits, part: str) -> tuple[Region, ...]:
    """The regions that are scored; `part` is test or validation."""
    if part not in ("test", "validation"):
        raise UserError("no such part of the data to score", part, "give part=test or part=validation")
    regions: tuple[Region, ...] = getattr(splits, part)
    if not regions:
        remedy = "name one with data.test.image= and data.test.label=, give data.folds=, or part=validation"
        raise UserError("there is no test volume to score", None, remedy)
    return regions


def prediction_path(folder: Path, part: str, index: int) -> Path:
    """Where the prediction of a region lies in a method's folder."""
    return folder / "predictions" / f"{part}_{index}.tif"


def is_finished(folder: Path) -> bool:
    """Whether a method's folder holds its scores."""
    return read_json(folder / RECORD).get("status") == FINISHED and (folder / METRICS).is_file()


def check_options(name: str, folder: Path, options: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """How the options given now differ from those that a method's folder was made with, if it is to be made anew.

    A result of other options is refused, unless it may be overwritten.
    """
    if not (folder / RECORD).is_file():
        return None
    before = read_json(folder / RECORD).get("options") or {}
    change = changes(before, known_before(before, options))
    if not change:
        return None
    holds = is_finished(folder) or (folder / MODEL).is_dir() or (folder / LAST).is_file()
    if holds and not overwrite:
        remedy = "give the options as they were, overwrite=true to run it again, or start a new benchmark"
        raise UserError(f"the method {name} is there with other options ({change})", str(folder), remedy)
    return change


def known_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of now without the checksums that a record of an earlier version does not tell."""
    return {key: value for key, value in now.items() if key in before or key not in ("files", "checkpoint_sha256")}


def clear(folder: Path) -> None:
    """Remove what a method of other options has left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            remove(path)
