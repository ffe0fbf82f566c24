r"""The smoothest mask that a probability map allows: a minimum cut of the grid of voxels.

A mask y costs

    E(y) = sum_i u_i y_i + sum_(i, j neighbours along axis a) w_a [y_i != y_j],    u_i = logit t - logit p_i,

where p is the probability of mitochondrion and t the threshold that alone would decide. For w >= 0 a minimum cut finds
the least of all masks exactly (Greig, Porteous and Seheult, JRSS B 51, 1989; Boykov and Kolmogorov, PAMI 26, 2004).

A grid of a whole volume does not fit in memory, so the cut is made in overlapping parts, and each part answers for its
inside only (Marquez Neila et al., Neuroinformatics 14, 2016):

    |<-overlap->|<----- part ----->|<-overlap->|
                      ^ kept            ^ the tissue that it leans on

A voxel feels the border of its part only through a chain of unsure voxels as long as the overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.geometry import Box, tiles

Mask = npt.NDArray[np.bool_]
Cost = npt.NDArray[np.floating]

SURE = 1e-4
"""Probabilities nearer to 0 and 1 have the log-odds of this one."""
PART = (48, 224, 224)
"""Voxels of a part; with its overlap it takes about 1.5 GB."""
OVERLAP = 16


def unary_costs(probability_zyx: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """What each voxel pays for being foreground, logit t - logit p.

    >>> [round(float(u), 3) for u in unary_costs(np.array([0.25, 0.5], np.float32), 0.25)]
    [0.0, -1.099]
    """
    costs: npt.NDArray[np.float32] = -logit(np.clip(probability_zyx, SURE, 1 - SURE))
    costs += np.float32(logit(threshold))
    return costs


def pair_weights(smoothness: float, voxel_size: Sequence[float]) -> tuple[float, float, float]:
    """Weights w_a of neighbours along z, y, x: ``smoothness`` along the smallest spacing, less the farther apart.

    The face between two voxels that are v_a apart has the area V / v_a, V the volume of a voxel: so the pairs measure
    the surface of the mask in nm2, whatever the shape of the voxels.

    >>> pair_weights(2.0, (30.0, 5.0, 5.0))[1:]
    (2.0, 2.0)
    """
    z, y, x = (smoothness * min(voxel_size) / v for v in voxel_size)
    return z, y, x


def minimum_cut(cost_zyx: Cost, weights: Sequence[float]) -> Mask:
    """The mask of least energy, exactly.

    Args:
        cost_zyx: u, what a voxel pays for being foreground; below zero it gains.
        weights: w along z, y, x, not negative.

    Raises:
        UserError: A weight is negative or no number, or PyMaxflow is missing.
    """
    if not all(w >= 0 for w in weights):
        raise UserError("a graph cut cannot favour neighbours that differ", tuple(weights), "give weights from 0 up")
    wish = cost_zyx < 0
    if not any(weights) or not wish.any() or wish.all():
        return wish
    maxflow = import_extra("maxflow", "PyMaxflow", "classical")
    edges = sum((n - 1) * cost_zyx.size // n for n in cost_zyx.shape)
    graph = maxflow.GraphFloat(cost_zyx.size, edges)
    nodes_zyx = graph.add_grid_nodes(cost_zyx.shape)
    for axis, weight in enumerate(weights):
        structure = np.zeros((3, 3, 3))
        structure[tuple(2 if a == axis else 1 for a in range(3))] = weight
        graph.add_grid_edges(nodes_zyx, 1.0, structure, symmetric=True)
    # a node on the sink's side is True, and pays the price of its edge from the source
    graph.add_grid_tedges(nodes_zyx, np.maximum(cost_zyx, 0), np.maximum(-cost_zyx, 0))
    graph.maxflow()
    mask: Mask = graph.get_grid_segments(nodes_zyx)
    return mask


def cut_in_parts(
    cost_zyx: Cost,
    weights: Sequence[float],
    part: Sequence[int] = PART,
    overlap: int = OVERLAP,
) -> Mask:
    """The mask of least energy, part by part.

    Args:
        cost_zyx: As `minimum_cut`.
        weights: As `minimum_cut`.
        part: Voxels (z, y, x) that a part answers for.
        overlap: Voxels that it sees beyond them, on each side.

    Raises:
        UserError: As `minimum_cut`, or a part is empty.
    """
    if min(part) < 1 or overlap < 0:
        raise UserError(
            "no parts to cut in", (tuple(part), overlap), "give a part of 1 or more, an overlap of 0 or more"
        )
    whole = Box.of_shape(cost_zyx.shape)
    mask_zyx = np.empty(cost_zyx.shape, bool)
    for box in tiles(whole, part):
        seen = box.grow(overlap).clip(whole)
        mask_zyx[box.slices] = minimum_cut(cost_zyx[seen.slices], weights)[box.inside(seen).slices]
    return mask_zyx
