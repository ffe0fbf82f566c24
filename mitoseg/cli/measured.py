"""What ``measure`` measures: the volumes that a config names, and instances of what has none yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from mitoseg.cli.labelling import chosen_labelling
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.instances import label_prediction
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling, Sources
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.volumes import Array, Volume, VolumeInfo, VoxelSize, create_volume, open_volume
from mitoseg.volumes.units import check_voxel_size


def find_voxel_size(cfg: DictConfig, volumes: dict[str, Volume]) -> VoxelSize:
    """The voxel size that is given, else the first that a file knows.

    Raises:
        UserError: There is none.
    """
    if cfg.voxel_size is not None:
        given = OmegaConf.to_container(cfg.voxel_size) if OmegaConf.is_config(cfg.voxel_size) else cfg.voxel_size
        return check_voxel_size(given)  # type: ignore[arg-type]
    for volume in volumes.values():
        if volume.voxel_size is not None:
            return volume.voxel_size
    raise UserError("measuring needs the voxel size, and no file has one", cfg.input, "give voxel_size=[z,y,x] in nm")


@contextmanager
def find_sources(
    cfg: DictConfig,
    volumes: dict[str, Volume],
    size: VoxelSize,
    decision: Decision,
    engine: Engine,
) -> Iterator[tuple[Sources, Path]]:
    """The volumes to measure, and a folder beside the output; a mask and probabilities are numbered first, into it.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        volumes: ``input``, and those of ``image``, ``probability`` and ``uncertainty`` that are given.
        size: (z, y, x) in nm.
        decision: What the input is.
        engine: Started; numbers.

    Raises:
        UserError: Kinds or options are no good, or instances are no whole numbers.
    """
    given = volumes["input"]
    probability, scale = volumes.get("probability"), 1.0
    if probability is None and decision.kind == "probability":
        probability, scale = given, decision.scale
    elif probability is not None:
        scale = decide(probability, None, "probability").scale
    with tempfile.TemporaryDirectory(dir=Path(cfg.output).parent, prefix=".measuring.") as scratch:
        if decision.kind != "instances":
            found = label_prediction(given, decision, sized_labelling(cfg), voxel_size=size, engine=engine)
            labels = kept(found, Path(scratch), engine)
        else:
            floats = given.dtype.kind == "f"
            labels = kept(WholeNumbers(given, size), Path(scratch), engine, np.uint64) if floats else given
        yield (
            Sources(labels, size, volumes.get("image"), probability, volumes.get("uncertainty"), scale),
            Path(scratch),
        )


def sized_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for, without objects that ``min_volume`` would leave out: they are no neighbours."""
    labelling = chosen_labelling(cfg)
    least = max(labelling.min_volume or 0.0, cfg.min_volume or 0.0)
    return replace(labelling, min_volume=least or None)


def kept(labels: Volume, scratch: Path, engine: Engine, dtype: type[np.unsignedinteger[Any]] = np.uint32) -> Volume:
    """Instances in a folder, so that reading them again computes nothing, and any process can."""
    about, path = labels.info, str(scratch / "instances.zarr")
    options = {"voxel_size": about.voxel_size, "metadata": about.metadata, "chunks": (64, 128, 128)}
    with create_volume(path, about.shape, dtype, **options) as writer:  # type: ignore[arg-type]
        write_blocks(labels, BLOCK, writer, engine=engine)
    return open_volume(path)


class WholeNumbers(Volume):
    """Instances that a program has stored as floats."""

    def __init__(self, labels: Volume, size: VoxelSize) -> None:
        super().__init__(VolumeInfo(labels.path, labels.shape, np.dtype(np.uint64), size))
        self._labels = labels

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`.

        Raises:
            UserError: They are no whole numbers from 0 on.
        """
        values = self._labels.read(box)
        if not (np.isfinite(values).all() and values.min() >= 0 and (values == np.floor(values)).all()):
            raise UserError("instances are whole numbers from 0 on", self.path, "say kind=probability or kind=mask")
        return values.astype(np.uint64)
