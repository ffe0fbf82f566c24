r"""The smoothest mask that a probability map allows: a minimum cut of the grid of voxels, or of supervoxels.

A mask y of voxels costs

    E(y) = sum_i u_i y_i + sum_(i, j neighbours along axis a) w_a [y_i != y_j],    u_i = logit t - logit p_i,

where p is the probability of mitochondrion and t the threshold that alone would decide; a labelling of supervoxels has
costs c_i and pair weights w_ij in their places. For w >= 0 a minimum cut finds the least of all masks exactly (Greig,
Porteous and Seheult, JRSS B 51, 1989; Boykov and Kolmogorov, PAMI 26, 2004; Kolmogorov and Zabih, PAMI 26(2), 2004).

The grid of a whole volume does not fit in memory, so it is cut in parts that overlap, and each part answers for its
inside only (Marquez Neila et al., Neuroinformatics 14, 2016). A voxel feels the border of its part only through a
chain of unsure voxels as long as the overlap.

Lowering all costs only adds foreground (Gallo, Grigoriadis, Tarjan, SIAM J. Comput. 18(1), 1989), so that a ladder of
cuts gives every supervoxel the log-odds at which it changes sides: `cut_ladder`, which a threshold can be set on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from mitoseg.errors import UserError, import_extra
from mitoseg.geometry import Box, tiles

Cost = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Pairs = npt.NDArray[np.integer]
SURE = 1e-4  # probabilities nearer to 0 and 1 have the log-odds of this one
PART = (48, 224, 224)  # voxels of a part; with its overlap it takes about 1.5 GB
OVERLAP = 16


def unary_costs(probability_zyx: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """What each voxel pays for being foreground, logit t - logit p."""
    costs: npt.NDArray[np.float32] = -logit(np.clip(probability_zyx, SURE, 1 - SURE))
    costs += np.float32(logit(threshold))
    return costs


def pair_weights(smoothness: float, voxel_size: Sequence[float]) -> tuple[float, ...]:
    """Weights w_a of neighbours along z, y, x: ``smoothness`` along the smallest spacing, less the farther apart.

    The face between two voxels that are v_a apart has the area V / v_a, V the volume of a voxel: so the pairs measure
    the surface of the mask in nm2, whatever the shape of the voxels.
    """
    return tuple(smoothness * min(voxel_size) / v for v in voxel_size)


def minimum_cut(cost_zyx: Cost, weights: Sequence[float]) -> Mask:
    """The mask of least energy, exactly, for the costs u and the weights w along z, y, x."""
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
    mask_zyx: Mask = graph.get_grid_segments(nodes_zyx)
    return mask_zyx


def cut_in_parts(cost_zyx: Cost, weights: Sequence[float], part: Sequence[int] = PART, overlap: int = OVERLAP) -> Mask:
    """`minimum_cut` part by part: each answers for ``part`` voxels and sees ``overlap`` beyond them on each side."""
    if min(part) < 1 or overlap < 0:
        remedy = "give a part of 1 or more, an overlap of 0 or more"
        raise UserError("no parts to cut in", (tuple(part), overlap), remedy)
    whole = Box.of_shape(cost_zyx.shape)
    mask_zyx = np.empty(cost_zyx.shape, bool)
    for box in tiles(whole, part):
        seen = box.grow(overlap).clip(whole)
        mask_zyx[box.slices] = minimum_cut(cost_zyx[seen.slices], weights)[box.inside(seen).slices]
    return mask_zyx


MARGIN = 1e-3  # log-odds that stay between a node and the level that it does not reach, enough to survive float32


def minimum_graph_cut(cost: Cost, pairs: Pairs, weight: Cost) -> Mask:
    """The labelling (N,) of least energy, for costs (N,), pairs (E, 2) of nodes and weights (E,)."""
    graph = import_extra("maxflow", "PyMaxflow", "classical").Graph[float](len(cost), len(pairs))
    nodes = graph.add_nodes(len(cost))
    if len(pairs):
        i, j = np.ascontiguousarray(pairs.T, np.int64)
        flow = np.ascontiguousarray(weight, np.float64)
        graph.add_edges(i, j, flow, flow)
    cost = np.asarray(cost, np.float64)
    graph.add_grid_tedges(nodes, np.maximum(cost, 0), np.maximum(-cost, 0))
    graph.maxflow()
    foreground: npt.NDArray[np.bool_] = graph.get_grid_segments(nodes)
    return foreground


def energy(labels: Mask, cost: Cost, pairs: Pairs, weight: Cost) -> float:
    """E(y), the sum that `minimum_graph_cut` makes least."""
    differ = labels[pairs[:, 0]] != labels[pairs[:, 1]]
    return float(cost[labels].sum() + weight[differ].sum())


def cut_ladder(log_odds: Cost, size: Cost, pairs: Pairs, weight: Cost, levels: Cost) -> npt.NDArray[np.float64]:
    """Log-odds after the graph cut: a node's is at or above a level if the cut at that level makes it foreground.

    The cut at level t (they ascend) has the costs ``size * (t - log_odds)``. Between two levels a node keeps its own
    log-odds, cut to that interval.
    """
    steps = np.zeros(len(log_odds), np.intp)
    for level in levels:
        steps += minimum_graph_cut(size * (level - log_odds), pairs, weight)
    bounds = np.concatenate([[-np.inf], levels, [np.inf]])
    below_next = bounds[steps + 1] - MARGIN
    return np.clip(np.asarray(log_odds, np.float64), bounds[steps], below_next)
