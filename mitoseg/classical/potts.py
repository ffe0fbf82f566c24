r"""Graph cuts on the graph of supervoxels.

The energy of a labelling y, with costs c and pair weights w >= 0, is

    E(y) = sum_i c_i y_i + sum_(i,j) w_ij [y_i != y_j],

which is submodular: a minimum cut finds its minimum (Kolmogorov and Zabih, IEEE TPAMI 26(2), 2004). Lowering all
costs only adds foreground (Gallo, Grigoriadis, Tarjan, SIAM J. Comput. 18(1), 1989), so that a ladder of cuts gives
every supervoxel the log-odds at which it changes sides: `cut_ladder`, a probability that a threshold can be set on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.extras import import_extra

FloatArray = npt.NDArray[np.floating[Any]]

MARGIN = 1e-3
"""Log-odds that stay between a node and the level that it does not reach, enough to survive float32."""


def minimum_cut(cost: FloatArray, pairs: npt.NDArray[np.integer[Any]], weight: FloatArray) -> npt.NDArray[np.bool_]:
    """The labelling of least energy.

    Args:
        cost: (N,) of foreground, against 0 of background.
        pairs: (E, 2) numbers of nodes.
        weight: (E,) of a pair that differs, none below zero.

    Returns:
        (N,) whether a node is foreground.

    Raises:
        UserError: PyMaxflow is not installed.
    """
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


def energy(
    labels: npt.NDArray[np.bool_], cost: FloatArray, pairs: npt.NDArray[np.integer[Any]], weight: FloatArray
) -> float:
    """E(y), the sum that `minimum_cut` makes least."""
    differ = labels[pairs[:, 0]] != labels[pairs[:, 1]]
    return float(cost[labels].sum() + weight[differ].sum())


def cut_ladder(
    log_odds: FloatArray,
    size: FloatArray,
    pairs: npt.NDArray[np.integer[Any]],
    weight: FloatArray,
    levels: FloatArray,
) -> npt.NDArray[np.float64]:
    """Log-odds after the graph cut: a node's is at or above a level if the cut at that level makes it foreground.

    Args:
        log_odds: (N,) before.
        size: (N,) what a node weighs.
        pairs: (E, 2).
        weight: (E,).
        levels: (L,) ascending; the cut at level t has the costs ``size * (t - log_odds)``.

    Returns:
        (N,) float64. Between two levels a node keeps its own log-odds, cut to that interval.
    """
    steps = np.zeros(len(log_odds), np.intp)
    for level in levels:
        steps += minimum_cut(size * (level - log_odds), pairs, weight)
    bounds = np.concatenate([[-np.inf], levels, [np.inf]])
    below_next = bounds[steps + 1] - MARGIN
    return np.clip(np.asarray(log_odds, np.float64), bounds[steps], below_next)
