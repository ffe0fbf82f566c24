"""Voxels to learn from: as many of mitochondria as of background, drawn evenly from the labelled part of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.classical.eigenvalues import FloatArray
from mitoseg.classical.features import VoxelFeatures
from mitoseg.classical.streaming import read_with_halo
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import Array, Volume, check_same_shape
from mitoseg.volumes.labels import IGNORED


@dataclass(frozen=True)
class Samples:
    """Voxels to learn from.

    Attributes:
        features_nf: float32 (N, F).
        label_n: bool (N,), mitochondrion or not.
        prior: Share of mitochondria among the labelled voxels of the volume.
    """

    features_nf: FloatArray
    label_n: npt.NDArray[np.bool_]
    prior: float

    @property
    def shift(self) -> float:
        """What the log-odds of a classifier of these samples are too high by: both classes' share, less the prior's.

        logit' = logit - shift = logit + log(pi / (1 - pi)) - log(pi_t / (1 - pi_t)), with pi the prior and pi_t the
        share among the samples.
        """
        share = float(self.label_n.mean())
        return float(np.log(share / (1 - share)) - np.log(self.prior / (1 - self.prior)))


def labelled_runs(label: Volume) -> list[Box]:
    """Runs of slices that hold labels at all, first to last.

    Raises:
        UserError: There are none, or some values are neither 0, 1 nor 255.
    """
    known = []
    for slab in slabs(label.box, 1):
        values = np.flatnonzero(np.bincount(_as_labels(label.read(slab), label.path).ravel(), minlength=256))
        known.append(bool((values != IGNORED).any()))
    ends = np.flatnonzero(np.diff(np.array([False, *known, False], np.int8)))
    if not len(ends):
        raise UserError("nothing is labelled", label.path, "give some voxels 0 or 1; 255 is ignored")
    z0, z1 = ends[::2].tolist(), ends[1::2].tolist()
    return [Box((a, *label.box.start[1:]), (b, *label.box.stop[1:])) for a, b in zip(z0, z1, strict=True)]


def draw_samples(
    image: Volume,
    label: Volume,
    features: VoxelFeatures,
    count: int,
    depth: int,
    rng: np.random.Generator,
    threads: int = 1,
) -> Samples:
    """Draw ``count`` voxels, half of them of mitochondria, all of those if there are fewer.

    Args:
        image: The image.
        label: 0, 1 (mitochondrion) and 255 (ignored).
        features: Of each voxel.
        count: How many.
        depth: Slices that are looked at together; the samples do not depend on it.
        rng: Where chance comes from.
        threads: That share the scales.

    Raises:
        UserError: The shapes differ, the labels are no labels, or one class is missing.
    """
    check_same_shape(image, label)
    runs = labelled_runs(label)
    totals = np.sum([_counts(label, slab) for run in runs for slab in slabs(run, 1)], axis=0).tolist()
    if min(totals) == 0:
        what = f"the labels hold {totals[1]} voxels of mitochondria and {totals[0]} of background"
        raise UserError(what, label.path, "give both; 0 is background, 1 mitochondrion, 255 is ignored")
    ranks = [_choose(total, count // 2, rng) for total in totals]
    rows: list[FloatArray] = []
    truth: list[npt.NDArray[np.bool_]] = []
    for slab, chosen, label_n in _chosen(label, runs, ranks, depth):
        found = features.inside(read_with_halo(image, slab, features.halo), threads)
        rows.append(np.ascontiguousarray(found.reshape(len(found), -1)[:, chosen].T))
        truth.append(label_n)
    return Samples(np.concatenate(rows), np.concatenate(truth), totals[1] / sum(totals))


def _as_labels(label_zyx: Array, path: str) -> npt.NDArray[np.uint8]:
    if label_zyx.dtype == bool:
        return label_zyx.astype(np.uint8)
    found = label_zyx.astype(np.uint8)
    if not np.array_equal(found, label_zyx) or ((found > 1) & (found != IGNORED)).any():
        raise UserError("labels other than 0, 1 and 255", path, "map them with mitoseg.volumes.map_labels")
    return found


def _counts(label: Volume, slab: Box) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = np.bincount(label.read(slab).ravel().astype(np.uint8), minlength=2)[:2]
    return counts


def _choose(total: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which of ``total`` voxels of a class are taken, in order, none twice."""
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False, shuffle=False)).astype(np.int64)


def _chosen(
    label: Volume, runs: list[Box], ranks: list[npt.NDArray[np.int64]], depth: int
) -> Iterator[tuple[Box, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Slabs that hold samples, with the samples' flat index in the slab and their label, in order."""
    passed = [0, 0]
    for slab in (s for run in runs for s in slabs(run, depth)):
        label_n = label.read(slab).ravel()
        taken = []
        for value in (0, 1):
            places = np.flatnonzero(label_n == value)
            low, high = np.searchsorted(ranks[value], [passed[value], passed[value] + len(places)])
            taken.append(places[ranks[value][low:high] - passed[value]])
            passed[value] += len(places)
        chosen = np.sort(np.concatenate(taken))
        if len(chosen):
            yield slab, chosen, label_n[chosen] == 1
