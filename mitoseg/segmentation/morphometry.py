"""What each mitochondrion of a volume measures: instances in, one row an instance out.

    census        blocks -> ids, voxels, boxes
    objects       groups of neighbouring boxes, each read once -> shape, grey values, probability of every object
    surfaces      blocks -> points on surfaces, in files
    neighbours    tiles, from the points within reach -> distances

Every step maps a pure function over parts and merges tables, so that parts may go to other processes or machines.
Memory holds a block, a group or the largest object at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from mitoseg.engines import Engine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.census import BLOCK, STARTS, STOPS, VOXEL_BYTES, take_census
from mitoseg.segmentation.neighbours import DISTANCE, TILE, merge_distances, tile_distances
from mitoseg.segmentation.object_row import column_names, object_row
from mitoseg.segmentation.surface_points import PIECE, SurfacePoints
from mitoseg.segmentation.texture import margin
from mitoseg.volumes import Array, Volume, VoxelSize

REACH = 1000.0
"""In nm, how far a neighbour is looked for."""
GROUP = (64, 256, 256)
"""Objects whose boxes start in the same part of this size are read together."""
_GROUP_VOXELS = 2**25
_VOXEL_BYTES = {"group": 24, "object": 64, "piece": 24, "tile": 8}
"""Memory for each voxel of what is held at once, at most."""


@dataclass(frozen=True)
class Sources:
    """The volumes of one measurement, of one shape.

    Attributes:
        labels: Instance numbers, 0 is background.
        voxel_size: (z, y, x) in nm.
        image: Grey values.
        probability: Of mitochondrion, stored times ``scale``.
        uncertainty: One of its own, in place of the binary entropy of the probability.
        scale: The stored value of probability 1.
    """

    labels: Volume
    voxel_size: VoxelSize
    image: Volume | None = None
    probability: Volume | None = None
    uncertainty: Volume | None = None
    scale: float = 1.0

    def read(self, box: Box) -> dict[str, Array]:
        """All volumes in a box, by their names."""
        given = {name: getattr(self, name) for name in ("labels", "image", "probability", "uncertainty")}
        arrays = {name: volume.read(box) for name, volume in given.items() if volume is not None}
        if "probability" in arrays:
            arrays["probability"] = arrays["probability"].astype(np.float32) / np.float32(self.scale)
        return arrays


def measure_instances(
    sources: Sources,
    *,
    min_volume: float | None = None,
    reach: float = REACH,
    engine: Engine | None = None,
    block: tuple[int, int, int] = BLOCK,
    tile: tuple[int, int, int] = TILE,
    scratch: Path | None = None,
    on_part: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """Measure every instance of a volume.

    Args:
        sources: The volumes.
        min_volume: In nm3; smaller instances get no row (they still count as neighbours).
        reach: In nm: `neighbour_distance_nm` is NaN where no other instance is nearer; 0 leaves it out.
        engine: Started, does all passes; None: this process. Others read the volumes for themselves.
        block: Voxels (z, y, x) of the first pass, read at once.
        tile: Voxels (z, y, x) of which neighbours are looked for at once.
        scratch: A folder for points on surfaces, which the engine's processes must see; None: the system's own.
        on_part: Called with the share of the work that is done, from 0 to 1.

    Returns:
        One row an instance, in order of the ids; the columns are those of docs/MEASURING.md. Without instances an
        empty table with the same columns.

    Raises:
        UserError: Shapes differ, labels are no whole numbers, a number is out of range, or an object does not fit into
            the memory that there is for it.
    """
    _check(sources, min_volume, reach)
    size, engine = sources.voxel_size, engine or LocalEngine()
    tell = on_part or (lambda share: None)
    block = engine.fit(block, VOXEL_BYTES)
    boxes = list(tiles(sources.labels.box, block))
    count = iter(range(1, len(boxes) + 1))
    found = take_census(
        sources.labels, block=block, on_block=lambda _: tell(0.1 * next(count) / len(boxes)), engine=engine
    )
    if min_volume is not None:
        found = found[found["voxels"] * math.prod(size) >= min_volume].reset_index(drop=True)
    groups = group_objects(found)
    rows: list[list[dict[str, object]]] = []

    def take_rows(_: pd.DataFrame, part: list[dict[str, object]]) -> None:
        rows.append(part)
        tell(0.1 + 0.7 * len(rows) / len(groups))

    engine.map(partial(measure_group, sources, memory=engine.item_bytes), groups, take_rows)
    distances = []
    if reach > 0 and len(found):
        distances = measure_distances(sources, reach, engine, tile, scratch, lambda share: tell(0.8 + 0.2 * share))
    names = column_names(image=sources.image is not None, probability=sources.probability is not None,
                         uncertainty=sources.uncertainty is not None)  # fmt: skip
    whole = dict.fromkeys(["voxels", "branches", *STARTS, *STOPS], np.int64)
    types = dict.fromkeys(names, float) | whole | {"instance": np.uint64, "touches_border": bool}
    table = pd.DataFrame([row for part in rows for row in part], columns=names).astype(types)
    if reach > 0:
        table = table.merge(merge_distances(distances), on="instance", how="left").astype({DISTANCE: float})
    tell(1.0)
    return table.sort_values("instance", ignore_index=True)


def group_objects(found: pd.DataFrame) -> list[pd.DataFrame]:
    """Cut a census into groups of objects that are read together: those that start in the same part of the volume."""
    keys = [found[name] // n for name, n in zip(STARTS, GROUP, strict=True)]
    return [group for _, group in found.groupby(keys, sort=True)] if len(found) else []


def measure_group(sources: Sources, group: pd.DataFrame, *, memory: float = math.inf) -> list[dict[str, object]]:
    """Rows of some objects; they are read at once if their common box is small, else one by one.

    Raises:
        UserError: One does not fit into so many bytes of memory.
    """
    around = margin(sources.voxel_size) if sources.image is not None else (0, 0, 0)
    whole = Box(tuple(map(int, group[STARTS].min())), tuple(map(int, group[STOPS].max())))
    whole = whole.grow(around).clip(sources.labels.box)
    together = min(_GROUP_VOXELS, memory / 2 / _VOXEL_BYTES["group"])
    arrays = sources.read(whole) if whole.size <= together else None
    rows = []
    ids = group["instance"].to_numpy()
    corners = zip(ids, group[STARTS].to_numpy().tolist(), group[STOPS].to_numpy().tolist(), strict=True)
    for instance, start, stop in corners:
        box = Box(tuple(start), tuple(stop))
        outer = box.grow(around).clip(sources.labels.box)
        if (needed := outer.size * _VOXEL_BYTES["object"]) > memory:
            what = f"object {instance} in {box} needs {needed / 1e9:.1f} GB to be measured"
            raise UserError(what, f"{memory / 1e9:.1f} GB are left for it", "give more memory=, or fewer workers")
        crop = sources.read(outer) if arrays is None else _cut(arrays, outer.inside(whole))
        rows.append(object_row(instance, crop, box, outer, sources.labels.shape, sources.voxel_size))
    return rows


def measure_distances(
    sources: Sources,
    reach: float,
    engine: Engine,
    tile: tuple[int, int, int],
    scratch: Path | None,
    tell: Callable[[float], None],
) -> list[pd.DataFrame]:
    """Distances of the objects in each tile to their neighbours within ``reach`` nm; see `measure_instances`."""
    whole, distances = sources.labels.box, list[pd.DataFrame]()
    piece, tile = engine.fit(PIECE, _VOXEL_BYTES["piece"]), engine.fit(tile, _VOXEL_BYTES["tile"])
    pieces, areas = sum(1 for _ in tiles(whole, piece)), sum(1 for _ in tiles(whole, tile))
    count = iter(range(1, pieces + 1))

    def take(_: Box, near: pd.DataFrame) -> None:
        distances.append(near)
        tell(0.5 + 0.5 * len(distances) / areas)

    with TemporaryDirectory(dir=scratch, prefix="surfaces.", ignore_cleanup_errors=True) as folder:
        surfaces = SurfacePoints(sources.labels, Path(folder), piece)
        engine.map(surfaces.store, tiles(whole, piece), lambda *_: tell(0.5 * next(count) / pieces))
        function = partial(tile_distances, surfaces, voxel_size=sources.voxel_size, reach=reach)
        engine.map(function, tiles(whole, tile), take)
    return distances


def _cut(arrays: dict[str, Array], box: Box) -> dict[str, Array]:
    return {name: array[box.slices] for name, array in arrays.items()}


def _check(sources: Sources, min_volume: float | None, reach: float) -> None:
    for name in ("image", "probability", "uncertainty"):
        volume = getattr(sources, name)
        if volume is not None and volume.shape != sources.labels.shape:
            shapes = {"labels": sources.labels.shape, name: volume.shape}
            raise UserError(
                f"labels and {name} differ in shape (z, y, x)", shapes, "give volumes over the same voxels"
            )
    if isinstance(min_volume, bool) or (min_volume is not None and not min_volume > 0):
        raise UserError("min_volume is not above zero", min_volume, "give a volume in nm3, or null")
    if isinstance(reach, bool) or not 0 <= reach < math.inf:
        raise UserError("reach is no distance", reach, "give nm, or 0 for no distances")
