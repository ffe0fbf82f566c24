"""Instances of stored masks and probabilities, for the commands that offer ``labelling=``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.evaluation.decision import decide
from mitoseg.segmentation import InstanceVolume, Labelling, label_volume, write_instances
from mitoseg.volumes import Volume, create_volume
from mitoseg.volumes.masks import MaskVolume


def chosen_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for.

    Raises:
        UserError: A value is out of range.
    """
    labelling: Labelling = instantiate(cfg.labelling)
    return labelling


def find_instances(
    prediction: Volume,
    labelling: Labelling,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
) -> InstanceVolume:
    """Instances of a mask or of probabilities; see `mitoseg.segmentation.label_volume`.

    Args:
        prediction: Stored by us or by others; see `mitoseg.evaluation.decide`.
        labelling: How.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x) in nm; None: the prediction's.

    Raises:
        UserError: The kind cannot be told, or labelling fails.
    """
    decision = decide(prediction, threshold, kind)
    mask = MaskVolume(prediction, decision.foreground)
    kept = {
        key: prediction.info.metadata[key] for key in ("checkpoint", "postprocess") if key in prediction.info.metadata
    }
    about = {**kept, **({"threshold": decision.threshold} if decision.kind == "probability" else {})}
    return label_volume(mask, labelling, voxel_size=voxel_size, metadata=about)


def label_file(
    prediction: Volume,
    output: str,
    labelling: Labelling,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    overwrite: bool = False,
) -> InstanceVolume:
    """Write the instances of a stored mask or of probabilities; the file appears when it is complete.

    Args:
        prediction: See `find_instances`, as for all that is not named here.
        labelling: How.
        threshold: Of probabilities.
        kind: Of the prediction.
        voxel_size: (z, y, x) in nm.
        output: Its suffix chooses the format.
        overwrite: Whether an output that exists may be replaced.

    Returns:
        The instances, with their table.

    Raises:
        UserError: As `find_instances`, or the output may not be written.
    """
    instances = find_instances(prediction, labelling, threshold=threshold, kind=kind, voxel_size=voxel_size)
    info = instances.info
    options = {"voxel_size": info.voxel_size, "metadata": info.metadata, "overwrite": overwrite}
    with create_volume(output, info.shape, np.uint32, **options) as writer:  # type: ignore[arg-type]
        write_instances(instances, writer)
    return instances
