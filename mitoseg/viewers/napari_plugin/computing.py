"""What the plugin computes, on arrays and without Qt: probabilities, numbered mitochondria, measurements, corrections.

Progress may stop a prediction. A correction is a list of changed voxels, so that a viewer can apply and undo it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import find_objects

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.evaluation.table import column_label
from mitoseg.geometry import Box
from mitoseg.inference import predict_volume
from mitoseg.inference.prepare import greys_apart, has_other_voxels
from mitoseg.inference.sizing import budget_bytes
from mitoseg.networks.checkpoint import AUTO, Model, find_weights, load_model
from mitoseg.segmentation import Labelling, Postprocess, Sources, label_array
from mitoseg.segmentation.blockwise import count_block, merge_counts
from mitoseg.segmentation.labelling import split_at_seeds, split_object
from mitoseg.segmentation.morphometry import TYPES, measure_group
from mitoseg.segmentation.postprocess import BYTES, CLEAN
from mitoseg.volumes import Array, ArrayVolume, Volume, VoxelSize
from mitoseg.volumes.base import ArrayWriter
from mitoseg.volumes.normalize import FAR_GREYS
from mitoseg.volumes.padding import blanked, with_padding
from mitoseg.workflows.session import prepare
from mitoseg.workflows.suitable import choose_model

if TYPE_CHECKING:
    from mitoseg.viewers.napari_plugin.jobs import Progress

Probability = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
PREDICTED = 0.9  # share of the progress bar that the network takes
STEPS = 20  # of the progress bar, at least, where they cost nothing


@dataclass(frozen=True)
class Numbering:
    """How probabilities become instances: cleaned as by ``postprocess=clean``, touching ones cut at their necks."""

    cleaned: bool = True
    split: bool = False

    @property
    def steps(self) -> Postprocess:
        """From probabilities to a mask."""
        return CLEAN if self.cleaned else Postprocess()


@dataclass(frozen=True)
class Choice:
    """What the user chose: a checkpoint of None is the default model, a threshold of None the model's own.

    Method, grey values (``normalize=``) and resampling are those of the command ``predict``.
    """

    checkpoint: str | None = None
    method: str = "auto"
    threshold: float | None = None
    greys: str = "checkpoint"
    resample: bool = True
    numbering: Numbering = field(default_factory=Numbering)


@dataclass(frozen=True)
class Outcome:
    """Probabilities and instance numbers on the image's grid (z, y, x), their metadata, and notes for the user."""

    probability_zyx: Probability
    instances_zyx: Ids
    probability: dict[str, Any]
    instances: dict[str, Any]
    notes: tuple[str, ...] = ()


def predict(image: Volume, choice: Choice, progress: Progress = lambda *_: None) -> Outcome:
    """Predict a volume of grey values in memory."""
    image = with_padding(image, "auto")
    progress(0.0, "choosing the model")
    path = find_weights(
        choose_model([image], normalize=choice.greys) if choice.checkpoint == AUTO else choice.checkpoint
    )
    progress(0.0, "loading the model")
    model = load_model(path)
    needed, free = math.prod(image.shape) * (BYTES + 8), memory_available()  # with what post-processing takes
    if needed > free:
        what = f"the results need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        raise UserError(what, image.path, "predict with the command `mitoseg predict`, and open its output")
    resamples = choice.resample and None not in (image.voxel_size, model.voxel_size)
    prepared = prepare(
        model,
        image,
        method=choice.method,
        threshold=choice.threshold,
        normalize=choice.greys,
        resample="auto" if resamples else "none",
    )
    predictor, prediction = prepared.predictor, prepared.predictor.prediction
    volume = predictor.volume
    writer, done, total = ArrayWriter(volume.shape), 0, volume.box.size
    progress(0.0, "predicting")

    def advance(box: Box) -> None:
        nonlocal done
        done += box.size
        progress(PREDICTED * done / total, "predicting")

    z, y, x = predictor.choose_tile(budget_bytes(None))
    if predictor.ndim == 2:  # thinner tiles cost networks on slices nothing, and show progress
        z = min(z, -(-volume.shape[0] // STEPS))
    predict_volume(predictor, volume, writer, tile=(z, y, x), on_tile=advance)
    tiles = ArrayVolume(writer.array_zyx, volume.voxel_size, metadata=prediction.metadata)
    probability_zyx = prepared.restore(tiles).read()
    about = {**prediction.metadata, "checkpoint": path.parent.name if path.stem == "model" else path.name}
    if prepared.padding:
        about["padding"] = prepared.padding
    instances_zyx, made = number(probability_zyx, about, choice.numbering, prepared.voxel_size, progress=progress)
    instances_zyx = blanked(ArrayVolume(instances_zyx), image.padding).read()  # post-processing may have grown there
    return Outcome(probability_zyx, instances_zyx, about, made, _notes(image, model, choice))


def number(
    probability_zyx: Probability,
    about: dict[str, Any],
    numbering: Numbering,
    voxel_size: VoxelSize | None,
    *,
    threshold: float | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Ids, dict[str, Any]]:
    """Instances of probabilities from 0 to 1, and their metadata; `threshold` replaces that of ``about``."""
    used = about["threshold"] if threshold is None else threshold
    progress(PREDICTED, "post-processing")
    mask_zyx = numbering.steps(probability_zyx, used, voxel_size)
    progress((1 + PREDICTED) / 2, "numbering")
    labelling = Labelling(split=numbering.split)
    instances_zyx = label_array(mask_zyx, labelling, voxel_size=voxel_size)
    progress(1.0, "done")
    made: dict[str, Any] = {key: about[key] for key in ("checkpoint", "padding") if key in about}
    made |= {"kind": "instances", "threshold": used, "scale": 1}
    return instances_zyx, {**made, "postprocess": asdict(numbering.steps), "labelling": asdict(labelling)}


def _notes(image: Volume, model: Model, choice: Choice) -> tuple[str, ...]:
    """What may make the result worse than it could be."""
    notes = []
    trained = " x ".join(f"{n:g}" for n in model.voxel_size or ())
    if choice.greys == "checkpoint" and greys_apart(image, model) > FAR_GREYS:
        notes.append("the grey values are unlike those of training: try grey values “matched to training”")
    if image.voxel_size is None and model.voxel_size is not None:
        notes.append(f"the image has no voxel size: the model's is taken, {trained} nm")
    if not choice.resample and has_other_voxels(image, model):
        notes.append(f"the model was trained on voxels of {trained} nm: try “resample to the model's voxels”")
    return tuple(notes)


Index = tuple[npt.NDArray[np.intp], ...]


@dataclass(frozen=True)
class Edit:
    """Voxels, by arrays of z, y and x, their new labels, and the numbers of the instances that were or are there."""

    index: Index
    values: Array
    changed: frozenset[int]


def merge(labels_zyx: Array, ids: Sequence[int]) -> Edit:
    """Give several instances the lowest of their numbers."""
    wanted = sorted(set(ids))
    if len(wanted) < 2:
        raise UserError("merging needs two instances or more", list(wanted), "select them in the table or the viewer")
    index = np.nonzero(_where(labels_zyx, wanted))
    moved = labels_zyx[index] != wanted[0]
    return _edit(labels_zyx, tuple(axis[moved] for axis in index), wanted[0], wanted)


def delete(labels_zyx: Array, ids: Sequence[int]) -> Edit:
    """Make instances background."""
    wanted = _chosen(ids)
    return _edit(labels_zyx, np.nonzero(_where(labels_zyx, wanted)), 0, wanted)


def split_necks(
    labels_zyx: Array, ids: Sequence[int], voxel_size: Sequence[float], labelling: Labelling | None = None
) -> Edit:
    """Cut instances at their necks; the largest part of each keeps its number. Voxels are (z, y, x) in nm."""
    labelling = labelling or Labelling(split=True)
    wanted = _chosen(ids)
    edits: list[Edit] = []
    for i in wanted:
        box = _box(labels_zyx, i)
        mask_zyx = labels_zyx[box.slices] == i
        part_zyx = split_object(mask_zyx, box, labels_zyx.shape, labelling, voxel_size)
        if part_zyx.max() > 1:
            edits.append(_parted(labels_zyx, i, box, part_zyx, edits))
    if not edits:
        raise UserError("no neck to cut at", wanted, "place two seed points in it, or increase “Neck at most”")
    return _joined(edits)


def split_seeds(labels_zyx: Array, seeds_zyx: npt.NDArray[np.floating], voxel_size: Sequence[float]) -> Edit:
    """Cut every instance that holds two seed points or more into as many parts.

    The seeds are (n, 3) in voxels, and may lie outside of all instances; voxels are (z, y, x) in nm.
    """
    at = np.unique(np.rint(np.reshape(seeds_zyx, (-1, 3))).astype(np.int64), axis=0)
    at = at[((at >= 0) & (at < labels_zyx.shape)).all(axis=1)]
    hit = labels_zyx[tuple(at.T)]
    edits: list[Edit] = []
    for i in np.unique(hit[hit > 0]).tolist():
        mine = at[hit == i]
        if len(mine) > 1:
            box = _box(labels_zyx, i)
            part_zyx = split_at_seeds(labels_zyx[box.slices] == i, mine - np.array(box.start), voxel_size)
            edits.append(_parted(labels_zyx, i, box, part_zyx, edits))
    if not edits:
        raise UserError("no instance contains two seed points", len(at), "place one in each part, inside the instance")
    return _joined(edits)


def middle(labels_zyx: Array, i: int) -> tuple[int, int, int] | None:
    """The voxel of an instance that lies nearest to its centre; None where there is no such instance."""
    at = np.argwhere(labels_zyx == i)
    if not len(at) or i == 0:
        return None
    z, y, x = at[((at - at.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
    return z, y, x


def _chosen(ids: Sequence[int]) -> list[int]:
    if not ids:
        raise UserError("no instance is chosen", None, "choose one in the table or the viewer")
    return sorted(set(ids))


def _where(labels_zyx: Array, ids: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The voxels of instances, each of which must have some."""
    mask_zyx = np.zeros(labels_zyx.shape, bool)
    for i in ids:
        mine_zyx = labels_zyx == i
        if i == 0 or not mine_zyx.any():
            raise UserError("no instance has the number", i, "choose one in the table or the viewer")
        mask_zyx |= mine_zyx
    return mask_zyx


def _box(labels_zyx: Array, i: int) -> Box:
    (slices,) = find_objects(_where(labels_zyx, [i]).view(np.uint8))
    return Box(tuple(s.start for s in slices), tuple(s.stop for s in slices))


def _parted(labels_zyx: Array, i: int, box: Box, part_zyx: Array, before: Sequence[Edit]) -> Edit:
    """New numbers for all parts but the largest, beyond those of the labels and of the edits before."""
    sizes = np.bincount(part_zyx.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    first = int(labels_zyx.max()) + 1 + sum(len(edit.changed) - 1 for edit in before)
    table = np.zeros(len(sizes), np.int64)
    others = [p for p in np.flatnonzero(sizes).tolist() if p != largest]
    table[others] = np.arange(first, first + len(others))
    if first + len(others) - 1 > np.iinfo(labels_zyx.dtype).max:
        raise UserError("the labels' type has no free numbers", str(labels_zyx.dtype), "save them as instances first")
    inside = np.nonzero(table[part_zyx])
    index = tuple(axis + start for axis, start in zip(inside, box.start, strict=True))
    return _edit(labels_zyx, index, table[part_zyx[inside]], [i, *table[others].tolist()])


def _edit(labels_zyx: Array, index: Index, values: object, changed: Sequence[int]) -> Edit:
    each = np.broadcast_to(np.asarray(values, labels_zyx.dtype), index[0].shape)
    return Edit(index, np.array(each), frozenset(int(i) for i in changed))


def _joined(edits: Sequence[Edit]) -> Edit:
    index = tuple(np.concatenate(axes) for axes in zip(*(edit.index for edit in edits), strict=True))
    changed = frozenset[int]().union(*(edit.changed for edit in edits))
    return Edit(index, np.concatenate([edit.values for edit in edits]), changed)


COLUMNS = (
    *("instance", "volume_nm3", "surface_nm2", "length_nm", "diameter_mean_nm", "sphericity", "branches"),
    *("grey_mean", "probability_mean", "touches_border"),
)
"""What the panel shows; the saved table has every column, in nm."""


def make_sources(
    labels_zyx: Array, voxel_size: VoxelSize | None, image: Volume | None = None, probability: Volume | None = None
) -> Sources:
    """What is measured; images of another shape are left out. Probabilities say the stored value of 1."""
    if voxel_size is None:
        raise UserError("measuring needs the voxel size", None, "fill in the field “Voxels (nm)”")
    fitting = [v if v is not None and v.shape == labels_zyx.shape else None for v in (image, probability)]
    scale = float(fitting[1].info.metadata.get("scale") or 1.0) if fitting[1] is not None else 1.0
    return Sources(ArrayVolume(labels_zyx), voxel_size, image=fitting[0], probability=fitting[1], scale=scale)


def measure_again(table: pd.DataFrame, sources: Sources, changed: Collection[int]) -> pd.DataFrame:
    """The table after a correction: only the rows of what was changed, before or now, are measured.

    Distances to neighbours are left out of those rows: they depend on others.
    """
    ids = np.array(sorted(changed))
    labels_zyx = sources.labels.read()
    found = []
    for z, labels_yx in enumerate(labels_zyx):  # slice by slice, so that no second volume is made
        mine_yx = np.isin(labels_yx, ids)
        if mine_yx.any():
            found.append(count_block(np.where(mine_yx, labels_yx, 0)[None], (z, 0, 0)))
    rows = pd.DataFrame(measure_group(sources, merge_counts(found))) if found else table.iloc[:0]
    kept = table[~table["instance"].isin(ids)]
    joined = pd.concat([part for part in (kept, rows.reindex(columns=table.columns)) if len(part)] or [kept])
    return joined.astype(TYPES).sort_values("instance", ignore_index=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that the panel shows, in its units."""
    found = {}
    for key in (key for key in COLUMNS if key in table):
        name, unit, scale = column_label(key)
        found[f"{name} ({unit})" if unit else name] = table[key] if scale == 1 else table[key] / scale
    return pd.DataFrame(found)
