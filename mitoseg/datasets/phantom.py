"""The synthetic phantom as a data set: made on first use, kept in the cache, split like real data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pooch
from filelock import FileLock

from mitoseg.datasets.base import Validation
from mitoseg.datasets.files import Files, Named
from mitoseg.datasets.synthetic import VERSION, generate_phantom, get_preset
from mitoseg.datasets.synthetic.generate import checked_shape, seed_sequences
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import progress
from mitoseg.storage import atomic_output
from mitoseg.volumes import create_volume

_log = logging.getLogger(__name__)
_SPLITS = ("train", "test")
_FILES = {"image.tif": "image", "label.tif": "mask", "instances.tif": "instances"}  # and the kind of each


class Phantom(Files):
    """Synthetic EM with exact truth, for trying things out where no real data is at hand.

    Training and testing are volumes of different seeds, which share no object. Each lies in ``root`` (None: the cache)
    in a folder of its own, named by everything it depends on, as ``image.tif``, ``label.tif`` (0, 1) and
    ``instances.tif``. Presets are ``fibsem`` (5 nm isotropic) and ``sbem`` (30 x 6 x 6 nm, charging, shifted
    sections); shapes (z, y, x) are at least (3, 64, 64).
    """

    name: ClassVar[str] = "phantom"
    licence: ClassVar[str] = "CC0-1.0"
    default_validation: ClassVar[Validation] = Validation(share=0.2, gap=2)

    def __init__(
        self,
        *,
        root: str | None = None,
        preset: str = "fibsem",
        seed: int = 0,
        train_shape: Sequence[int] = (24, 1280, 1280),
        test_shape: Sequence[int] = (12, 768, 768),
        validation: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(root=root, validation=validation)
        self.folder = self.root or Path(pooch.os_cache("mitoseg")) / self.name
        self.preset, self.seed = get_preset(preset), seed
        shapes = {"train": train_shape, "test": test_shape}
        self.shapes = {name: checked_shape(shape, f"data.{name}_shape") for name, shape in shapes.items()}
        seed_sequences(seed)  # refuses a negative one

    def prepare(self) -> None:
        """Make the volumes that are not there yet; each appears whole or not at all."""
        for split in _SPLITS:
            folder = self.volume_folder(split)
            if folder.is_dir():
                continue
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                what = f"the folder of the data cannot be made ({error.strerror})"
                raise UserError(what, str(self.folder), "give data.root=FOLDER where you may write") from error
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    self._make(split, folder)

    def volume_seed(self, split: str) -> int:
        """Seed of the volume of a split: no two splits of any two phantoms have the same."""
        return 2 * self.seed + _SPLITS.index(split)

    def volume_folder(self, split: str) -> Path:
        """Where the volume of a split (``train`` or ``test``) lies, named by all it depends on."""
        z, y, x = self.shapes[split]
        digest = hashlib.sha256(repr(asdict(self.preset)).encode()).hexdigest()[:8]
        return self.folder / f"{self.preset.name}_{z}x{y}x{x}_seed{self.volume_seed(split)}_v{VERSION}_{digest}"

    def named(self, key: str) -> Named:
        """Image and labels of a split."""
        folder = self.volume_folder(key)
        return Named((str(folder / "image.tif"),), (str(folder / "label.tif"),))

    def paths(self, key: str) -> Named:
        """Image and labels of a split, which `prepare` must have made."""
        missing = [name for name in _FILES if not (self.volume_folder(key) / name).is_file()]
        if missing:
            remedy = "remove that folder if it exists; the next training run generates the phantom again"
            raise UserError(f"the phantom lacks {', '.join(missing)}", str(self.volume_folder(key)), remedy)
        return super().paths(key)

    def facts_for_provenance(self) -> dict[str, object]:
        """Licence, generator version, preset, seeds and shapes."""
        return {
            "name": self.name,
            "title": f"synthetic phantom like {self.preset.name}",
            "licence": self.licence,
            "generator_version": VERSION,
            "preset": asdict(self.preset),
            "seed": self.seed,
            "volume_seeds": {split: self.volume_seed(split) for split in _SPLITS},
            "shapes": {split: list(shape) for split, shape in self.shapes.items()},
        }

    def _make(self, split: str, folder: Path) -> None:
        shape, seed = self.shapes[split], self.volume_seed(split)
        _log.info("making the %s phantom, %s voxels, seed %d, in %s", split, "x".join(map(str, shape)), seed, folder)
        with progress(f"making the {split} phantom ({self.preset.name}, {' x '.join(map(str, shape))} voxels)"):
            arrays: Iterable[npt.NDArray[np.unsignedinteger]] = generate_phantom(shape, seed, self.preset)
            with atomic_output(folder) as temporary:
                temporary.mkdir()
                for (name, kind), array_zyx in zip(_FILES.items(), arrays, strict=True):
                    size, about = self.preset.voxel_nm, {"kind": kind}
                    path, dtype = temporary / name, array_zyx.dtype
                    with create_volume(path, shape, dtype, voxel_size=size, metadata=about) as writer:
                        writer.write(Box.of_shape(shape), array_zyx)
