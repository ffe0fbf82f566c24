"""Which basins of a watershed belong to one object: a small graph, no voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import DisjointSet

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Basins:
    """Basins from 0 to n - 1 and their contacts.

    Attributes:
        voxels: (n,) size of each.
        volume: Of a voxel, in nm3.
        peaks: (n,) height of each in nm: the distance from its middle to the border.
        places: (n, 3) of the peaks, in nm.
        pairs: (m, 2) basins that touch.
        saddles: (m,) height of the highest contact of each pair, in nm.
    """

    voxels: npt.NDArray[np.integer]
    volume: float
    peaks: Floats
    places: Floats
    pairs: npt.NDArray[np.int64]
    saddles: Floats


@dataclass(frozen=True)
class Criterion:
    """When two basins are one object.

    Attributes:
        neck: Joined if the saddle is at least this share of the lower peak.
        depth: Joined if the lower peak rises above the saddle by less, in nm.
        seed_distance: Joined if their peaks lie closer together, in nm.
        fragment: A part below so many nm3 is joined to the neighbour with the highest saddle.
    """

    neck: float = 0.5
    depth: float = 0.0
    seed_distance: float = 0.0
    fragment: float = 0.0


class _Parts:
    """Basins as they are joined; the peak of a part is the highest of its basins."""

    def __init__(self, basins: Basins) -> None:
        self._sets = DisjointSet(range(len(basins.peaks)))
        self._basins = basins
        self._highest = list(range(len(basins.peaks)))
        self.voxels = [int(n) for n in basins.voxels]

    def root(self, basin: int) -> int:
        return int(self._sets[basin])

    def peak(self, root: int) -> float:
        return float(self._basins.peaks[self._highest[root]])

    def place(self, root: int) -> Floats:
        place: Floats = self._basins.places[self._highest[root]]
        return place

    def join(self, a: int, b: int) -> None:
        """Join two roots."""
        highest = min((self._highest[a], self._highest[b]), key=lambda i: (-self._basins.peaks[i], i))
        voxels = self.voxels[a] + self.voxels[b]
        self._sets.merge(a, b)
        root = self.root(a)
        self._highest[root], self.voxels[root] = highest, voxels


def join_basins(basins: Basins, criterion: Criterion) -> npt.NDArray[np.int32]:
    """Join basins from the highest saddle on.

    Returns:
        (n + 1,) the part of each basin: row 0 is 0, row i + 1 the part of basin i, from 1 on.
    """
    parts = _Parts(basins)
    order = np.lexsort((basins.pairs[:, 1], basins.pairs[:, 0], -basins.saddles))
    contacts = [(int(basins.pairs[i, 0]), int(basins.pairs[i, 1]), float(basins.saddles[i])) for i in order]
    for first, second, saddle in contacts:
        a, b = parts.root(first), parts.root(second)
        if a != b and _are_one(parts, a, b, saddle, criterion):
            parts.join(a, b)
    _join_fragments(parts, contacts, criterion.fragment / basins.volume)
    roots = [parts.root(i) for i in range(len(basins.peaks))]
    number = {root: i for i, root in enumerate(dict.fromkeys(roots), 1)}
    return np.array([0, *(number[root] for root in roots)], np.int32)


def _are_one(parts: _Parts, a: int, b: int, saddle: float, criterion: Criterion) -> bool:
    peak = min(parts.peak(a), parts.peak(b))
    if saddle >= criterion.neck * peak or peak - saddle < criterion.depth:
        return True
    return float(np.linalg.norm(parts.place(a) - parts.place(b))) < criterion.seed_distance


def _join_fragments(parts: _Parts, contacts: list[tuple[int, int, float]], least: float) -> None:
    """Join each part that is too small to the neighbour with the highest saddle, the smallest part first."""
    while True:
        between = [(parts.root(a), parts.root(b)) for a, b, _ in contacts]  # from the highest saddle on
        between = [(a, b) for a, b in between if a != b]
        small = {root for pair in between for root in pair if parts.voxels[root] < least - 1e-9}
        if not small:
            return
        smallest = min(small, key=lambda root: (parts.voxels[root], root))
        parts.join(*next(pair for pair in between if smallest in pair))
