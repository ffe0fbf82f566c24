"""The methods of a benchmark, as their configs describe them, and the options that a result depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mitoseg.errors import UserError

SIZES = ("full", "small")
KEYS = ("title", "estimator", "train", "small", "checkpoint")
"""Of a file in ``conf/methods``."""


@dataclass(frozen=True)
class Method:
    """One method; it has either an estimator or words of ``train.py``.

    Attributes:
        name: Of its file in ``conf/methods``.
        title: For the table.
        estimator: ``_target_`` and keywords of a `mitoseg.benchmark.Estimator`.
        train: Words for ``train.py``.
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
    """The methods of a config, in its order.

    Args:
        configs: ``methods`` of the composed config, as plain data.
        size: One of `SIZES`.

    Raises:
        UserError: There are none, or one of them is not described as it should be.
    """
    if size not in SIZES:
        raise UserError("no such size", size, f"choose one of {', '.join(SIZES)}")
    if not configs:
        raise UserError("no methods to compare", [], "give some, such as methods=[forest,unet25d]")
    return [read_method(name, config, small=size == "small") for name, config in configs.items()]


def read_method(name: str, config: Mapping[str, Any], *, small: bool) -> Method:
    """One method.

    Args:
        name: Of its file.
        config: What the file holds.
        small: Whether its smaller settings count.

    Raises:
        UserError: The file has other keys than `KEYS`, or not one of estimator and train.
    """
    where = f"conf/methods/{name}.yaml"
    if not isinstance(config, Mapping) or set(config) - set(KEYS):
        raise UserError(f"a method has the keys {', '.join(KEYS)}; this one", _keys(config), f"see {where}")
    estimator, train, less = config.get("estimator"), config.get("train"), config.get("small")
    if (estimator is None) == (train is None):
        raise UserError("a method has either an estimator or words to train", name, f"see {where}")
    if estimator is not None:
        changed = {**estimator, **(_checked(less or {}, Mapping, f"{name}.small") if small else {})}
        return Method(name, str(config.get("title") or name), changed, None, config.get("checkpoint"))
    words = _checked(train, list, f"{name}.train") + (_checked(less or [], list, f"{name}.small") if small else [])
    return Method(name, str(config.get("title") or name), None, tuple(map(str, words)), config.get("checkpoint"))


def _checked(value: Any, kind: type, key: str) -> Any:  # noqa: ANN401 (what a yaml holds)
    """A value of the right kind.

    Raises:
        UserError: It is another.
    """
    if not isinstance(value, kind):
        what = "a list of words" if kind is list else "a mapping of options"
        raise UserError(f"methods.{key} is not {what}", value, "see the files in conf/methods")
    return value


def _keys(config: object) -> object:
    return sorted(map(str, config)) if isinstance(config, Mapping) else config
