"""What ``measure`` measures: the volumes that a config names, and instances of what has none yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mitoseg.cli.labelling import chosen_labelling
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.instances import label_prediction
from mitoseg.segmentation import Labelling, Sources
from mitoseg.segmentation.storing import store
from mitoseg.storage import scratch_folder
from mitoseg.volumes import Volume, VoxelSize
from mitoseg.volumes.integers import IntegerVolume
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
    with scratch_folder(Path(cfg.output)) as scratch:
        if decision.kind != "instances":
            found = label_prediction(given, decision, sized_labelling(cfg), voxel_size=size, engine=engine)
            labels = store(found, found.block, scratch / "instances.zarr", engine=engine)
        else:
            labels = IntegerVolume(given) if given.dtype.kind == "f" else given
        sources = Sources(labels, size, volumes.get("image"), probability, volumes.get("uncertainty"), scale)
        yield sources, scratch


def sized_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for, without objects that ``min_volume`` would leave out: they are no neighbours."""
    labelling = chosen_labelling(cfg)
    least = max(labelling.min_volume or 0.0, cfg.min_volume or 0.0)
    return replace(labelling, min_volume=least or None)
