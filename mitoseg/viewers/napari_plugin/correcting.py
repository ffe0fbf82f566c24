"""Corrections of instances: arrays in, a list of changed voxels out, so that a viewer can apply and undo them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import find_objects

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling, Sources
from mitoseg.segmentation.blockwise import count_block, merge_counts
from mitoseg.segmentation.labelling import split_object
from mitoseg.segmentation.morphometry import TYPES, measure_group
from mitoseg.segmentation.splitting import split_at_seeds
from mitoseg.volumes import Array, ArrayVolume, Volume, VoxelSize

Index = tuple[npt.NDArray[np.intp], ...]


@dataclass(frozen=True)
class Edit:
    """Voxels, by arrays of z, y and x, their new labels, and the numbers of the instances that were or are there."""

    index: Index
    values: Array
    changed: frozenset[int]

    def apply(self, labels_zyx: Array) -> None:
        """Change labels in place."""
        labels_zyx[self.index] = self.values


def merge(labels_zyx: Array, ids: Sequence[int]) -> Edit:
    """Give several instances the lowest of their numbers."""
    wanted = sorted(set(ids))
    if len(wanted) < 2:
        raise UserError("merging takes two instances or more", list(wanted), "choose them in the table or the viewer")
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
        raise UserError("no neck to cut at", wanted, "place two seed points in it, or raise the neck's share")
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
        raise UserError("no instance holds two seed points", len(at), "place one in each part, inside the instance")
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
        raise UserError("the labels' type has no more numbers", str(labels_zyx.dtype), "save them as instances first")
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


COLUMNS = {
    "instance": ("number", 1.0),
    "volume_nm3": ("volume (µm³)", 1e-9),
    "surface_nm2": ("surface (µm²)", 1e-6),
    "length_nm": ("length (nm)", 1.0),
    "diameter_mean_nm": ("diameter (nm)", 1.0),
    "sphericity": ("sphericity", 1.0),
    "branches": ("branches", 1.0),
    "grey_mean": ("grey", 1.0),
    "probability_mean": ("probability", 1.0),
    "touches_border": ("at the border", 1.0),
}
"""What the panel shows, with its title and factor; the saved table has every column, in nm."""


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
    known = {name: column for name, column in COLUMNS.items() if name in table}
    return pd.DataFrame(
        {t: table[name] if factor == 1 else table[name] * factor for name, (t, factor) in known.items()}
    )
