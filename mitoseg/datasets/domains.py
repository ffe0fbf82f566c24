"""Data sets of many tissues and microscopes combined, to train a network that generalises to unseen tissue.

Each set is a volume, or a stack of single images, of known pixel size, and belongs to a domain. Whole domains can be
held out for testing. The others are for training, except a strip of rows at the end, behind a gap, for validation:

    y  0                                    gap            Y
       |              train                |   |  validate |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.datasets.base import Region, Splits
from mitoseg.datasets.download import fingerprint
from mitoseg.datasets.files import Files
from mitoseg.datasets.phantom import Phantom
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import measure_normalization
from mitoseg.volumes.base import Array, DerivedVolume, ElementwiseVolume, Volume
from mitoseg.volumes.resampling import resampled, resampled_length

_log = logging.getLogger(__name__)
KEYS = ("image", "label", "phantom", "domain", "axes", "voxel_size", "foreground", "unknown", "unlabelled", "licence")
"""The options of a set."""
SHAPE = (8, 1024, 1024)  # voxels (z, y, x) of a phantom that is one of the sets


class Domains:
    """A recipe that combines many sets; ``conf/data/domains.yaml`` explains every option.

    Grey values are normalised per image (mean 0, standard deviation 1). Training regions keep their stored pixel size,
    and tiles are resampled from them; validation and test regions are resampled to square pixels of ``pixel_size`` nm.
    """

    def __init__(
        self,
        *,
        sets: Mapping[str, Any],
        root: str | None = None,
        more: Mapping[str, Any] | None = None,
        leave_out: Sequence[str] | str = (),
        pixel_size: float = 8.0,
        validation: Mapping[str, float] | None = None,
    ) -> None:
        found = {**sets, **(more or {})}
        self.root = root
        self.sets: dict[str, dict[str, Any]] = {name: _checked(name, found[name]) for name in found if found[name]}
        self.leave_out = leave_out.split(",") if isinstance(leave_out, str) else list(leave_out)
        domains = {options["domain"] for options in self.sets.values()}
        for name in self.leave_out:
            if name not in domains:
                raise UserError("data.leave_out names no domain", name, f"choose among {', '.join(sorted(domains))}")
        if not domains - set(self.leave_out):
            raise UserError("data.leave_out leaves nothing to train on", self.leave_out, "name fewer domains")
        if not pixel_size > 0:
            raise UserError("data.pixel_size is not a length", pixel_size, "give nm, such as 8")
        self.pixel_size = float(pixel_size)
        rule = {"share": 0.2, "gap": 1000.0, "slices": 8, **(validation or {})}
        self.share, self.gap, self.slices = rule["share"], rule["gap"], int(rule["slices"])
        self._splits: Splits | None = None

    def prepare(self) -> None:
        """Generate the phantoms that do not exist yet."""
        for name in self.sets:
            self._files(name).prepare()

    def splits(self) -> Splits:
        """Open the sets and split them; this reads all grey values, to normalise them."""
        if self._splits is not None:
            return self._splits
        regions: dict[str, list[Region]] = {"train": [], "validation": [], "test": []}
        files: list[dict[str, Any]] = []
        for name, options in self.sets.items():
            left_out = options["domain"] in self.leave_out
            found, role = self.annotated(name), "test" if left_out else "train"
            for region in found:
                files += [
                    {"role": f"{role}.{kind}", **fingerprint(volume.path)}
                    for kind, volume in (("image", region.image), ("label", region.label))
                ]
                self._cut(region, name, options["domain"], left_out, regions)
        size = (self.pixel_size,) * 3
        provenance = {
            "name": "domains",
            "sets": self.sets,
            "left_out": self.leave_out,
            "licence": "; ".join(
                f"{name}: {options['licence'] or 'not said'}"
                for name, options in self.sets.items()
                if options["domain"] not in self.leave_out
            ),
            "files": files,
            "regions": {key: [region.name for region in found] for key, found in regions.items()},
            "voxel_size": list(size),
        }
        train, validation, test = (tuple(found) for found in regions.values())
        self._splits = Splits(train, validation, test, size, provenance)
        return self._splits

    def annotated(self, name: str) -> list[Region]:
        """The images of a set with their labels, at their stored pixel size."""
        try:
            files = self._files(name)
            found = files.annotated(files.paths("train"), "train")
            for region in found:
                if region.image.voxel_size is None:
                    raise UserError("the image has no pixel size", region.image.path, "give voxel_size=[z,y,x] in nm")
        except UserError as error:
            remedy = f"correct data.sets.{name}, or leave it out: data.sets.{name}=null"
            raise UserError(f"set {name}: {error}", None, remedy) from error
        return found

    def _files(self, name: str) -> Files:
        options = self.sets[name]
        if options["phantom"]:
            return Phantom(preset=options["phantom"], train_shape=SHAPE, test_shape=(3, 64, 64))
        return Files(
            root=self.root,
            train={"image": options["image"], "label": options["label"]},
            axes=options["axes"],
            voxel_size=options["voxel_size"],
            foreground=options["foreground"],
            ignore_label=options["unknown"],
            ignore_empty_slices=bool(options["unlabelled"]),
        )

    def _cut(self, region: Region, name: str, domain: str, left_out: bool, regions: dict[str, list[Region]]) -> None:
        normalization = measure_normalization([(region.image, region.box)])
        image = ElementwiseVolume(region.image, normalization.apply, dtype=np.dtype(np.float32))
        called = f"{name} {PurePath(region.image.path).name}"
        if left_out:
            regions["test"].append(self._seen(image, region.label, region.box, called, domain))
            return
        box, strip = self.cut(region)
        regions["train"].append(Region(image, region.label, box, called, domain))
        if strip.size:
            regions["validation"].append(self._seen(image, region.label, strip, called, domain))
        else:
            _log.warning("%s is too small to hold out rows for validation: all of it is used for training", called)

    def cut(self, region: Region) -> tuple[Box, Box]:
        """The training and the validation box of an image; the latter is empty if strip and gap exceed half of it."""
        assert region.image.voxel_size is not None
        (z0, y0, x0), (z1, y1, x1) = region.box.start, region.box.stop
        held, gap = round(self.share * (y1 - y0)), math.ceil(self.gap / region.image.voxel_size[1])
        if held + gap > (y1 - y0) / 2:
            held = gap = 0
        return Box((z0, y0, x0), (z1, y1 - held - gap, x1)), Box((z0, y1 - held, x0), (z1, y1, x1))

    def _seen(self, image: Volume, label: Volume, box: Box, name: str, domain: str) -> Region:
        """Evenly spaced slices of a box, resampled to square pixels of ``pixel_size`` nm."""
        assert image.voxel_size is not None
        thin = np.linspace(0, box.shape[0] - 1, min(self.slices, box.shape[0])).round().astype(np.int64)
        size = (image.voxel_size[0], self.pixel_size, self.pixel_size)
        own = [np.arange(n) for n in box.shape[1:]]
        ratios = [self.pixel_size / old for old in image.voxel_size[1:]]
        nearest = [
            np.minimum((np.arange(resampled_length(n, ratio)) + 0.5) * ratio, n - 1).astype(np.int64)
            for n, ratio in zip(box.shape[1:], ratios, strict=True)
        ]
        seen = resampled(ChosenVolume(image, box, [thin, *own]), size)
        return Region(seen, ChosenVolume(label, box, [thin, *nearest]), seen.box, name, domain)


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a set, with None for those that are not given."""
    unknown = sorted(set(options) - set(KEYS))
    if unknown:
        raise UserError(f"unknown keys in data.sets.{name}", unknown, f"the keys are {', '.join(KEYS)}")
    found = {key: options.get(key) for key in KEYS}
    if not found["phantom"] and not (found["image"] and found["label"]):
        raise UserError(f"set {name} lacks image or label", dict(options), f"give both in data.sets.{name}")
    found["domain"] = found["domain"] or name
    for key in ("voxel_size", "foreground"):  # OmegaConf's lists become plain ones
        value = found[key]
        found[key] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return found


class ChosenVolume(DerivedVolume):
    """The voxels of a box at the given indices along z, y and x, each in ascending order; indices may repeat."""

    def __init__(self, volume: Volume, box: Box, places: Sequence[npt.NDArray[np.int64]]) -> None:
        z, y, x = map(len, places)
        super().__init__(volume, shape=(z, y, x))
        self.padding = None
        self._places = [start + place for start, place in zip(box.start, places, strict=True)]

    def _read(self, box: Box) -> Array:
        if not box.size:
            return np.empty(box.shape, self.dtype)
        places = [p[a:b] for p, a, b in zip(self._places, box.start, box.stop, strict=True)]
        whole = Box(tuple(int(p[0]) for p in places), tuple(int(p[-1]) + 1 for p in places))
        return self.volume.read(whole)[np.ix_(*(p - p[0] for p in places))]
