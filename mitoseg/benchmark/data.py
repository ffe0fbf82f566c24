"""The data set of a benchmark: its split, without what only the training of networks needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate

from mitoseg.datasets import Recipe, Region, Splits
from mitoseg.errors import UserError
from mitoseg.storage import flatten

TRAINING_KEYS = frozenset(
    {
        *("tile", "batch_size", "positions", "label_rule", "purity", "block", "channels", "balance", "augment"),
        *("rotate_background", "interpolation", "epoch_blocks", "epoch_tiles", "foreground", "validation_stride"),
        "voxels_on",
    }
)
"""Keys of ``data`` that say how a network is trained (``conf/data/blocks.yaml``), not what the data are."""
_NOT_OPTIONS = TRAINING_KEYS | {"_target_", "recipe"}


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
    options = {key: value for key, value in config.items() if key not in _NOT_OPTIONS}
    changes = {key: value for key, value in flatten(less).items() if f"data.{key}" not in given}
    for key, value in changes.items():
        _set(options, key.split("."), value)
    return Source(name, config["recipe"], options)


def open_source(source: Source) -> Splits:
    """Download or make what is missing, and open the regions."""
    recipe: Recipe = instantiate(dict(source.recipe))(**source.options)
    recipe.prepare()
    return recipe.splits()


def scored_regions(splits: Splits, part: str) -> tuple[Region, ...]:
    """The regions that are scored.

    Raises:
        UserError: No such part, or it has no regions.
    """
    if part not in ("test", "validation"):
        raise UserError("no such part of the data to score", part, "give part=test or part=validation")
    regions: tuple[Region, ...] = getattr(splits, part)
    if not regions:
        remedy = "name one with data.test.image= and data.test.label=, give data.folds=, or part=validation"
        raise UserError("there is no test volume to score", None, remedy)
    return regions


def _set(tree: dict[str, Any], path: list[str], value: object) -> None:
    for key in path[:-1]:
        tree[key] = dict(tree.get(key) or {})
        tree = tree[key]
    tree[path[-1]] = value
