r"""Supervoxels, and a structured support vector machine that is trained for the score that counts.

After A. Lucchi, Y. Li, P. Fua, "Learning for structured prediction using approximate subgradient descent with working
sets", CVPR 2013; and A. Lucchi, P. Marquez-Neila, C. Becker, Y. Li, K. Smith, G. Knott, P. Fua, "Learning structured
models for segmentation of 2-D and 3-D imagery", IEEE Transactions on Medical Imaging 34(5), 1096-1110, 2015. The
graph, its features and its cuts are those of `mitoseg.classical.supervoxels`; the weights of unary and pairwise terms
are learned together, with a margin that grows with the volume-overlap loss of a labelling: `structured_learning` is
the descent, `volume_loss` the loss-augmented inference.

Features of a supervoxel: the log-odds of the kernel SVM (made out of fold, as at prediction they are), a constant, and
the Nystroem map of the same kernel, so that the machine is a kernel machine. Of a pair: the area it shares, that times
how little of a boundary lies between, and that times the learned -log p_ij.

Where ours differs:
- The loss is the Jaccard loss itself, by moving tangents; theirs is decomposed once.
- Steps are taken on the most violating labelling of each working set, and rounds that raise the objective are taken
  back.
- The examples are pieces of one volume: runs of supervoxels that lie near each other.
- Features as in `supervoxels`; the context features of the MICCAI 2014 follow-up are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.classical.describing import Description
from mitoseg.classical.kernel_machine import KernelMachine
from mitoseg.classical.region_segmenter import Counts, FloatArray, RegionSegmenter
from mitoseg.classical.structured_learning import Example, learn_structured
from mitoseg.classical.supervoxels import learn_pairwise, learn_unary, pair_costs, restored_machine
from mitoseg.classical.volume_loss import Floats, VolumeLoss
from mitoseg.errors import UserError
from mitoseg.extras import import_extra

PIECE = 8_000
"""Supervoxels of an example."""
FEWEST = 8
"""Examples, at least."""
START = (0.1, 0.1, 0.2)
"""Weights of the pair features before anything is learned."""


@dataclass
class StructuredSegmenter(RegionSegmenter):
    """Lucchi et al. 2013 and 2015; see `mitoseg.classical.structured`, and the base class for options.

    Attributes:
        regularization: Of the weights, in the primal objective.
        rounds: Of inference over all examples.
        unary_: The kernel machine whose log-odds are a feature, once fitted.
        pairwise_: The machine of p_ij, once fitted.
        weights_: Of the features of supervoxels and pairs, once fitted.
        objective_: The primal objective after each round.
    """

    regularization: float = 0.005
    rounds: int = 30
    unary_: KernelMachine | None = field(default=None, init=False, repr=False)
    pairwise_: KernelMachine | None = field(default=None, init=False, repr=False)
    weights_: Floats | None = field(default=None, init=False, repr=False)
    objective_: list[float] = field(default_factory=list, init=False, repr=False)

    def _learn(self, description: Description, fg: Counts, known: Counts) -> tuple[FloatArray, FloatArray]:
        self.unary_, held_out = learn_unary(description, fg, known, self.landmarks, self.seed)
        self.pairwise_ = learn_pairwise(description, fg, known, self.seed)
        nodes = _node_features(self.unary_, description, held_out)
        edges = _edge_features(self.pairwise_, description)
        start = np.concatenate([[1.0], np.zeros(nodes.shape[1] - 1), START])
        learned = learn_structured(
            _examples(description, nodes, edges, fg, known),
            start,
            regularization=self.regularization,
            rounds=self.rounds,
        )
        self.weights_, self.objective_ = learned.weights, learned.objective
        self.weights_ = learned.weights * _slope(self._weigh(nodes, edges)[0], fg, known)
        return self._weigh(nodes, edges)

    def _potentials(self, description: Description) -> tuple[FloatArray, FloatArray]:
        if self.unary_ is None or self.pairwise_ is None:
            raise UserError("the classical method is not fitted", None, "call fit first, or load one that is")
        log_odds = self.unary_(description.features)
        return self._weigh(
            _node_features(self.unary_, description, log_odds), _edge_features(self.pairwise_, description)
        )

    def _weigh(self, nodes: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
        assert self.weights_ is not None
        split = nodes.shape[1]
        unary, pair = self.weights_[:split], self.weights_[split:]
        return (nodes @ unary).astype(np.float32), (edges @ pair).astype(np.float32)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        if self.unary_ is None or self.pairwise_ is None or self.weights_ is None:
            raise UserError("the classical method is not fitted", None, "call fit before save")
        machines = {"unary": self.unary_, "pairwise": self.pairwise_}
        arrays = {f"{name}.{k}": v for name, machine in machines.items() for k, v in machine.arrays().items()}
        return {**arrays, "weights": self.weights_, "objective": np.array(self.objective_)}

    def _restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.unary_, self.pairwise_ = (restored_machine(arrays, name) for name in ("unary", "pairwise"))
        self.weights_, self.objective_ = arrays["weights"], arrays["objective"].tolist()


def _slope(score: FloatArray, fg: Counts, known: Counts) -> float:
    """What turns a score into log-odds: scaling all weights leaves every cut where it is, and thresholds readable."""
    platt = import_extra("sklearn.linear_model", "scikit-learn", "classical").LogisticRegression(C=1e3)
    use = known > 0
    platt.fit(score[use, None], (2 * fg > known)[use], sample_weight=np.abs(2 * fg - known)[use] / known.mean())
    return max(float(platt.coef_[0, 0]), 1e-3)


def _node_features(machine: KernelMachine, description: Description, log_odds: FloatArray) -> FloatArray:
    """(N, 2 + M): log-odds, a constant, and the kernel map."""
    ones = np.ones(len(log_odds), np.float32)
    return np.column_stack([log_odds, ones, machine.map(description.features)])


def _edge_features(machine: KernelMachine, description: Description) -> FloatArray:
    """(E, 3), none below zero."""
    graph = description.graph
    area = graph.area / max(float(graph.area.mean()), 1e-9)
    columns = [area, area * (1 - graph.boundary / 255), pair_costs(machine, description)]
    return np.column_stack(columns).astype(np.float32)


def _examples(
    description: Description, nodes: FloatArray, edges: FloatArray, fg: Counts, known: Counts
) -> list[Example]:
    """Runs of supervoxels as graphs of their own, all of about the same number; unlabelled runs are left out."""
    count = len(description.size)
    pieces = max(FEWEST, round(count / PIECE))
    bounds = np.linspace(0, count, pieces + 1).astype(np.int64)
    piece = np.searchsorted(bounds[1:], description.graph.pairs, side="right")
    mean = description.size.mean()
    floor = 0.5 * float(known[2 * fg > known].sum()) / mean / pieces
    examples = []
    for k, (a, b) in enumerate(pairwise(bounds.tolist())):
        if not known[a:b].any():
            continue
        inside = (piece == k).all(1)
        loss = VolumeLoss((2 * fg > known)[a:b], known[a:b] / mean, floor)
        size = (description.size[a:b] / mean).astype(np.float32)[:, None]
        examples.append(
            Example(nodes[a:b] * size, description.graph.pairs[inside] - a, edges[inside].astype(np.float64), loss)
        )
    return examples
