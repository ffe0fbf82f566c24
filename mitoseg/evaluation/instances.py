"""Score the instances of two stored volumes, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.evaluation.score import DRAWS, Bootstrap, check_shapes
from mitoseg.geometry import Box, tiles
from mitoseg.metrics.counts import LEVEL
from mitoseg.metrics.instances import SHARE, Ints, Overlaps, count_overlaps, instance_scores, pool_overlaps
from mitoseg.segmentation import InstanceVolume, Labelling, label_volume
from mitoseg.segmentation.blockwise import VOXEL_BYTES
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.volumes.base import Volume, compact_ids, integer_volume, mask_volume
from mitoseg.volumes.labels import IGNORED, LabelVolume
from mitoseg.volumes.predicted import Decision, decide

SMALL = 1000  # objects of fewer voxels are left out and counted apart

Pairs = tuple[Ints, Ints, Ints]


def prediction_instances(
    prediction: Volume,
    labelling: Labelling | None = None,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    engine: Engine | None = None,
) -> Volume:
    """The ids of a stored prediction: its own, numbered anew where they need more than 32 bits, or those of its mask.

    See `mitoseg.volumes.predicted.decide` for ``threshold`` and ``kind``; the voxel size (z, y, x) is in nm.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind == "instances":
        return compact_ids(prediction)
    return label_prediction(prediction, decision, labelling, voxel_size=voxel_size, engine=engine)


def label_prediction(
    prediction: Volume,
    decision: Decision,
    labelling: Labelling | None = None,
    *,
    voxel_size: Sequence[float] | None = None,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
) -> InstanceVolume:
    """The foreground of a prediction, numbered; see `mitoseg.segmentation.label_volume`."""
    mask, made = mask_volume(prediction, decision.foreground), prediction.info.metadata
    about = {key: made[key] for key in ("checkpoint", "postprocess") if key in made}
    if decision.kind == "probability":
        about["threshold"] = decision.threshold
    return label_volume(mask, labelling, voxel_size=voxel_size, metadata=about, on_block=on_block, engine=engine)


def truth_instances(labels: LabelVolume, connectivity: int = 6, *, engine: Engine | None = None) -> Volume:
    """The ids of mapped labels: their own, as of `prediction_instances`, or the connected components of a mask."""
    if labels.numbered:
        stored = labels.stored
        if labels.ignore_label is not None and stored.dtype.kind in "if":
            stored = integer_volume(stored, background=labels.ignore_label)
        return compact_ids(stored)
    return label_volume(mask_volume(labels, partial(np.equal, 1)), Labelling(connectivity), engine=engine)


def find_overlaps(
    result: Volume,
    truth: Volume,
    *,
    labels: Volume | None = None,
    crop: Box | None = None,
    block: tuple[int, int, int] = BLOCK,
    engine: Engine | None = None,
) -> Overlaps:
    """The voxels that each true object shares with each result, of volumes of ids with 0 for background.

    Where ``labels`` are 255 nothing counts. What the faces of the crop cut is cut. An engine is started; others than
    this process read the volumes for themselves.
    """
    check_shapes(result=result, truth=truth)
    crop = truth.check_box(crop)
    parts: list[Pairs] = []
    cut: tuple[set[int], set[int]] = (set(), set())

    def take(_: object, found: tuple[Pairs, set[int], set[int]]) -> None:
        parts.append(found[0])
        for side, ids in zip(cut, found[1:], strict=True):
            side |= ids

    engine = engine or LocalEngine()
    blocks = tiles(crop, engine.fit(block, 2 * VOXEL_BYTES))
    items = ((part, truth.part(part), result.part(part)) for part in blocks)
    engine.map(partial(_count_block, labels, crop), items, take)
    return Overlaps.collect(parts, sorted(cut[0]), sorted(cut[1]))


def _count_block(
    labels: Volume | None, crop: Box, item: tuple[Box, Volume, Volume]
) -> tuple[Pairs, set[int], set[int]]:
    """What two volumes share in a block, given what is enough to read it, and which ids lie at a face of the crop."""
    part, *volumes = item
    counted = None if labels is None else labels.read(part) != IGNORED
    truth_zyx, result_zyx = (_ids(volume, part, counted) for volume in volumes)
    with one_at_a_time():
        truth_cut, result_cut = (_at_faces(id_zyx, part, crop) for id_zyx in (truth_zyx, result_zyx))
        return count_overlaps(truth_zyx, result_zyx), truth_cut, result_cut


def evaluate_instances(
    tables: Sequence[Overlaps], *, small: int = SMALL, bootstrap: Bootstrap = DRAWS
) -> dict[str, Any]:
    """Scores of the objects of one or more volumes, pooled, from `find_overlaps` of each.

    Objects of fewer than ``small`` voxels become background, on both sides and before anything is matched. So a true
    object just above and its result just below are a miss. The keys are those of
    `mitoseg.metrics.instances.instance_scores`; ``small``: ``voxels`` and how many objects were left out, ``truth``
    and ``result``; ``link_share``, ``bootstrap``.
    """
    draws = asdict(bootstrap)
    kept, truths, results = pool_overlaps(tables).without_small(small)
    found = instance_scores(kept, **draws)
    left_out = {"voxels": small, "truth": truths, "result": results}
    return {**found, "small": left_out, "link_share": SHARE, "bootstrap": {**draws, "level": LEVEL}}


def _ids(volume: Volume, box: Box, counted: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.integer]:
    """Ids of a box, 0 where voxels do not count."""
    values = volume.read(box)
    if counted is not None:
        values = np.where(counted, values, 0)
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise UserError("instance ids are not whole numbers", volume.path, "give kind=probability or kind=mask")
    if values.size and not (values.min() >= 0 and values.max() < 2**32):
        span = f"{values.min():g} to {values.max():g}"
        raise UserError(f"instance ids run from {span}", volume.path, "they must be from 0 to 2**32 - 1")
    return values.astype(np.uint32, copy=False)


def _at_faces(id_zyx: npt.NDArray[np.integer], box: Box, crop: Box) -> set[int]:
    """Ids of a box that lie at a face of the crop."""
    found: set[int] = set()
    for axis in range(3):
        for index, at_face in ((0, box.start[axis] == crop.start[axis]), (-1, box.stop[axis] == crop.stop[axis])):
            if at_face:
                found.update(np.unique(np.take(id_zyx, index, axis)).tolist())
    return found - {0}
