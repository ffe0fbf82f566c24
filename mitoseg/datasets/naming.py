"""The volumes that a user names for a split, and where they lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mitoseg.datasets.checksums import file_of
from mitoseg.errors import UserError

_SEARCH_DEPTH = 4
"""Levels of folders in which official names are looked for: an unpacked archive has up to so many."""
_SEARCH_ENTRIES = 50_000
"""Files that are looked at before giving up: data.root may be somebody's whole disk."""


@dataclass(frozen=True)
class Named:
    """Images, their labels, and the part of each that is annotated (None: all of it); one entry a volume.

    ``foreground`` holds the label values of mitochondria as the user gives them; see `foreground_labels`.
    """

    image: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    box: tuple[object, ...] = ()
    foreground: object = None

    @classmethod
    def of(cls, options: Mapping[str, object] | None, key: str) -> Named:
        """Read ``image``, ``label``, ``box`` and ``foreground`` of ``data.<key>``: a value, a list or None each.

        Raises:
            UserError: Another key, or lists whose lengths do not fit.
        """
        given = dict(options or {})
        image, label = _texts(given.pop("image", None)), _texts(given.pop("label", None))
        box, foreground = given.pop("box", None), given.pop("foreground", None)
        if given:
            remedy = "the keys are image, label, box and foreground"
            raise UserError(f"unknown keys in data.{key}", sorted(given), remedy)
        if image and label and len(image) != len(label):
            remedy = f"name as many in data.{key}.label as in data.{key}.image, in the same order"
            raise UserError(f"{len(image)} images but {len(label)} labels", [*image, *label], remedy)
        return cls(image, label, _boxes(box), foreground)

    def boxes(self, key: str) -> tuple[object, ...]:
        """One entry a volume: what `mitoseg.geometry.Box.parse` reads, or None for all of it.

        Raises:
            UserError: There are boxes, but not one for each volume.
        """
        if self.box and len(self.box) != len(self.image):
            example = f'data.{key}.box=["[0:20,:,:]",null]'
            remedy = f"give one for each volume, null where all of it is annotated, such as {example}"
            raise UserError(f"{len(self.box)} boxes for {len(self.image)} volumes", list(self.box), remedy)
        return self.box or (None,) * len(self.image)

    def foreground_labels(self, key: str) -> tuple[object, ...]:
        """One entry a volume: the label values that are mitochondria, one or a list; None where none are named.

        Raises:
            UserError: There are entries, but not one for each volume.
        """
        given, count = self.foreground, len(self.label)
        if given is None or isinstance(given, str) or not isinstance(given, Sequence):
            return (given,) * count
        nested = any(item is None or not isinstance(item, str | int) for item in given)
        if count == 1 and not nested:
            return (given,)
        if len(given) != count:
            remedy = f"give one for each volume, such as data.{key}.foreground=[[3,4],null]"
            raise UserError(f"{len(given)} entries of foreground for {count} volumes", given, remedy)
        return tuple(given)


def resolve(name: str, root: Path | None) -> str | None:
    """The path of a named volume: absolute, or in ``root``, or in the working directory; None if there is none."""
    for candidate in [os.path.join(root, name)] if root is not None else []:
        if file_of(candidate).exists():
            return candidate
    return name if file_of(name).exists() else None


def find(root: Path, name: str, *, deep: bool) -> str | None:
    """Look for a file or folder by its official name, in any letter case.

    A name of two parts, such as ``stack1/raw``, is found by both parts, or by the last alone right in ``root``.

    Args:
        root: Where to look.
        name: Official name, its parts separated by ``/``.
        deep: Look also a few folders further down, where archives keep their files.
    """
    parts = name.lower().split("/")
    for path in islice(_walk(root, _SEARCH_DEPTH if deep else 1), _SEARCH_ENTRIES):
        tail = [part.lower() for part in path.relative_to(root).parts]
        if tail == parts[-1:] or tail[-len(parts) :] == parts:
            return str(path)
    return None


def _walk(root: Path, depth: int) -> Iterator[Path]:
    """Files and folders level by level, hidden ones left out."""
    level = [root]
    for _ in range(depth):
        deeper = []
        for folder in level:
            try:
                entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            except OSError:  # no folder, or closed to us
                continue
            yield from entries
            deeper += entries
        level = deeper


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(str(item) for item in value)
    return (str(value),)


def _boxes(value: object) -> tuple[object, ...]:
    """Entries for `Box.parse`: one box may come as text or as a list of its axes, several as a list of either."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return (value,)
    one_box = value and all(isinstance(item, str) and re.fullmatch(r"\s*\d*:\d*\s*", item) for item in value)
    return (tuple(value),) if one_box else tuple(value)
