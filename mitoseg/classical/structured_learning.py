r"""A structured support vector machine on graphs: subgradients with working sets, margins of the volume loss.

The score of a labelling y of a graph is linear in weights w = (u, q), q >= 0:

    S(y) = 1/P [ sum_i v_i y_i u . a_i - sum_(i,j) [y_i != y_j] q . b_ij ] = w . Psi(y)

with volumes v, features a of supervoxels and b >= 0 of pairs; q >= 0 keeps it within reach of a cut. Dividing by P,
the volume of the foreground, puts the score into the unit of the loss. With margin rescaling the primal objective is

    L(w) = reg / 2 |w|^2 + 1/N sum_n max_y [ Delta_n(y) + w . Psi_n(y) - w . Psi_n(y_n) ].

Each round finds the most violating labelling of every graph (`augmented_labelling`) and puts it into that graph's
working set; then subgradient steps follow in which the maximum runs over the working sets only, which costs no cuts
(Lucchi, Li, Fua, CVPR 2013: subgradients taken over working sets rather than the last labelling alone). The next round
measures L itself. A round that made it worse is taken back, its labellings stay, and the steps become shorter: the
working sets then know more of L (a null step of bundle methods), and the history of L never rises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mitoseg.classical.volume_loss import Bools, Floats, VolumeLoss, augmented_labelling

STEPS = 60
"""Subgradient steps of a round."""
SCALES = (1.0, 0.3, 0.1, 0.03)
"""What the weights may be multiplied by before the descent: where cuts stay as they are, margins do not."""


@dataclass
class Example:
    """One graph with its truth, and the labellings that have violated its margin.

    Attributes:
        nodes: (N, A) features a, times the volume.
        pairs: (E, 2).
        edges: (E, B) features b, none below zero.
        loss: Delta.
        constraints: Rows Psi(y) - Psi(truth) of the working set.
        losses: Delta of each.
    """

    nodes: npt.NDArray[np.floating]
    pairs: npt.NDArray[np.int64]
    edges: npt.NDArray[np.floating]
    loss: VolumeLoss
    constraints: list[Floats] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def joint(self, labels: Bools) -> Floats:
        """Psi(y), (A + B,)."""
        differ = labels[self.pairs[:, 0]] != labels[self.pairs[:, 1]]
        return (
            np.concatenate([self.nodes[labels].sum(0, dtype=np.float64), -self.edges[differ].sum(0, dtype=np.float64)])
            / self.loss.foreground
        )

    def violate(self, weights: Floats) -> float:
        """Add the most violating labelling to the working set; by how much the margin is violated, at least 0."""
        split = self.nodes.shape[1]
        cost = -(self.nodes @ weights[:split]) / self.loss.foreground
        weight = (self.edges @ weights[split:]) / self.loss.foreground
        labels, _ = augmented_labelling(self.loss, cost, self.pairs, weight)
        self.constraints.append(self.joint(labels) - self.joint(self.loss.truth))
        self.losses.append(self.loss(labels))
        return self.most_violating(weights)[0]

    def most_violating(self, weights: Floats) -> tuple[float, Floats]:
        """The largest violation within the working set, and its subgradient; zeros if no margin is violated."""
        slack = np.array(self.losses) + np.array(self.constraints) @ weights
        worst = int(np.argmax(slack))
        if slack[worst] <= 0:
            return 0.0, np.zeros_like(weights)
        return float(slack[worst]), self.constraints[worst]


@dataclass(frozen=True)
class Learned:
    """The outcome.

    Attributes:
        weights: (A + B,), those of the least objective seen.
        objective: L after each round, that of the weights kept.
        tried: L of each round's own weights, those taken back included.
    """

    weights: Floats
    objective: list[float]
    tried: list[float]


def learn_structured(
    examples: list[Example], start: Floats, *, regularization: float = 1e-3, rounds: int = 15, rate: float = 0.1
) -> Learned:
    """Lower the primal objective from where the weights start.

    Args:
        examples: Graphs; their working sets grow.
        start: (A + B,), the last B not below zero.
        regularization: reg.
        rounds: Of inference on every graph, after those that find the scale of the start.
        rate: Length of the first steps, as a share of the weights'.
    """
    split = examples[0].nodes.shape[1]
    best, least = start, np.inf
    weights, objective, tried = start, [], []
    for turn in range(len(SCALES) + rounds):
        if turn < len(SCALES):
            weights = SCALES[turn] * start
        violation = float(np.mean([example.violate(weights) for example in examples]))
        tried.append(0.5 * regularization * float(weights @ weights) + violation)
        if tried[-1] < least:
            best, least = weights, tried[-1]
        elif turn >= len(SCALES):
            rate /= 2
        objective.append(least)
        length = rate * max(1.0, float(np.linalg.norm(best)))
        weights = _descend(examples, best, regularization, length, split)
    return Learned(best, objective, tried)


def _descend(examples: list[Example], weights: Floats, regularization: float, rate: float, split: int) -> Floats:
    """The best point of `STEPS` projected subgradient steps on the working sets' objective."""
    best, least = weights, np.inf
    for step in range(STEPS + 1):
        found = [example.most_violating(weights) for example in examples]
        value = 0.5 * regularization * float(weights @ weights) + float(np.mean([f[0] for f in found]))
        if value < least:
            best, least = weights, value
        gradient = regularization * weights + np.mean([f[1] for f in found], axis=0)
        norm = float(np.linalg.norm(gradient))
        if norm < 1e-12:
            break
        weights = weights - rate / np.sqrt(step + 1) * gradient / norm
        weights[split:] = np.maximum(weights[split:], 0)
    return best
