"""What the plugin computes, on arrays and without Qt: probabilities, numbered mitochondria, measurements, corrections.

Progress may stop a prediction. A correction is a list of changed voxels, so that a viewer can apply and undo it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
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
    """Probabilities and instance numbers on the image's grid (z, y, x), their metadata, notes, the voxel size."""

    probability_zyx: Probability
    instances_zyx: Ids
    probability: dict[str, Any]
    instances: dict[str, Any]
    notes: tuple[str, ...] = ()
    voxel_size: VoxelSize | None = None


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
    return Outcome(probability_zyx, instances_zyx, about, made, _notes(image, model, choice), prepared.voxel_size)


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


@dataclass(frozen=True)
class Edit:
    """Voxels, by arrays of z, y and x, their new labels, and the numbers of the instances that were or are there."""

    index: tuple[npt.NDArray[np.intp], ...]
    values: Array
    changed: frozenset[int]


def find_edit(before_zyx: Array, after_zyx: Array, chosen: Sequence[int] = ()) -> Edit:
    """What has changed; the ``chosen`` instances count as changed whatever became of them."""
    index = np.nonzero(before_zyx != after_zyx)
    values = after_zyx[index]
    found = {*np.unique(before_zyx[index]).tolist(), *np.unique(values).tolist(), *chosen}
    return Edit(index, values, frozenset(found - {0}))


def merge(labels_zyx: Array, ids: Sequence[int]) -> Edit:
    """Give several instances the lowest of their numbers."""
    if len(set(ids)) < 2:
        raise UserError("merging needs two instances or more", list(ids), "select them in the table or the viewer")
    wanted = _existing(labels_zyx, ids)
    return find_edit(labels_zyx, np.where(np.isin(labels_zyx, wanted), wanted[0], labels_zyx), wanted)


def delete(labels_zyx: Array, ids: Sequence[int]) -> Edit:
    """Make instances background."""
    return find_edit(labels_zyx, np.where(np.isin(labels_zyx, _existing(labels_zyx, ids)), 0, labels_zyx))


def split_necks(
    labels_zyx: Array, ids: Sequence[int], voxel_size: Sequence[float], labelling: Labelling | None = None
) -> Edit:
    """Cut instances at their necks; the largest part of each keeps its number. Voxels are (z, y, x) in nm."""
    chosen, wanted = labelling or Labelling(split=True), _existing(labels_zyx, ids)
    shape = labels_zyx.shape
    edit = _split(labels_zyx, wanted, lambda _, mask, box: split_object(mask, box, shape, chosen, voxel_size))
    if not edit.changed:
        raise UserError("no neck to cut at", wanted, "place two seed points in it, or increase “Neck at most”")
    return edit


def split_seeds(labels_zyx: Array, seeds_zyx: npt.NDArray[np.floating], voxel_size: Sequence[float]) -> Edit:
    """Cut every instance that holds two seed points or more into as many parts.

    The seeds are (n, 3) in voxels, and may lie outside of all instances; voxels are (z, y, x) in nm.
    """
    at = np.unique(np.rint(np.reshape(seeds_zyx, (-1, 3))).astype(np.int64), axis=0)
    at = at[((at >= 0) & (at < labels_zyx.shape)).all(axis=1)]
    hit = labels_zyx[tuple(at.T)]
    ids, counts = np.unique(hit[hit > 0], return_counts=True)
    if not (counts > 1).any():
        raise UserError("no instance contains two seed points", len(at), "place one in each part, inside the instance")
    return _split(
        labels_zyx,
        ids[counts > 1].tolist(),
        lambda i, mask, box: split_at_seeds(mask, at[hit == i] - np.array(box.start), voxel_size),
    )


def middle(labels_zyx: Array, i: int) -> tuple[int, int, int] | None:
    """The voxel of an instance that lies nearest to its centre; None where there is no such instance."""
    at = np.argwhere(labels_zyx == i)
    if not len(at) or i == 0:
        return None
    z, y, x = at[((at - at.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
    return z, y, x


def _existing(labels_zyx: Array, ids: Sequence[int]) -> list[int]:
    if not ids:
        raise UserError("no instance is chosen", None, "choose one in the table or the viewer")
    for i in ids:
        if i == 0 or not (labels_zyx == i).any():
            raise UserError("no instance has the number", i, "choose one in the table or the viewer")
    return sorted(set(ids))


def _split(labels_zyx: Array, ids: Sequence[int], cut: Callable[[int, Array, Box], Array]) -> Edit:
    """Give all parts that ``cut`` makes of an instance's mask, but the largest, new numbers."""
    after_zyx = labels_zyx.copy()
    for i in ids:
        (slices,) = find_objects((labels_zyx == i).view(np.uint8))
        box = Box(tuple(s.start for s in slices), tuple(s.stop for s in slices))
        part_zyx = cut(i, labels_zyx[slices] == i, box)
        sizes = np.bincount(part_zyx.ravel())
        sizes[0] = 0
        others = [part for part in np.flatnonzero(sizes) if part != sizes.argmax()]
        first = int(after_zyx.max()) + 1
        if first + len(others) - 1 > np.iinfo(labels_zyx.dtype).max:
            remedy = "save them as instances first"
            raise UserError("the labels' type has no free numbers", str(labels_zyx.dtype), remedy)
        for new, part in enumerate(others, first):
            after_zyx[slices][part_zyx == part] = new
    return find_edit(labels_zyx, after_zyx)


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
