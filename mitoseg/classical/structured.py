r"""Supervoxels, and a structured support vector machine that is trained for the score that counts.

After A. Lucchi, Y. Li, P. Fua, "Learning for structured prediction using approximate subgradient descent with working
sets", CVPR 2013; and A. Lucchi, P. Marquez-Neila, C. Becker, Y. Li, K. Smith, G. Knott, P. Fua, "Learning structured
models for segmentation of 2-D and 3-D imagery", IEEE Transactions on Medical Imaging 34(5), 1096-1110, 2015. The
graph, its features and its cuts are those of `mitoseg.classical.supervoxels`; the weights w = (u, q), q >= 0, of unary
and pairwise terms are learned together. The score of a labelling y is

    S(y) = 1/P [ sum_i v_i y_i u . a_i - sum_(i,j) [y_i != y_j] q . b_ij ] = w . Psi(y)

with volumes v, features a of supervoxels (the log-odds of the kernel SVM made out of fold, a constant, the kernel map)
and b >= 0 of pairs (the area, that times how little of a boundary lies between, and that times the learned -log p_ij).
P is the volume of the foreground in truth. With margin rescaling by the volume-overlap (VOC) loss Delta the primal is

    L(w) = reg / 2 |w|^2 + 1/N sum_n max_y [ Delta_n(y) + w . Psi_n(y) - w . Psi_n(y_n) ].

Each round finds the most violating labelling of every graph (`augmented_labelling`) and puts it into that graph's
working set; then subgradient steps follow in which the maximum runs over the working sets only, which costs no cuts.
A round that made L worse is taken back, its labellings stay, and the steps become shorter (a null step of bundle
methods), so that the least L never rises.

With FN what a labelling misses of the foreground and FP what it adds, Delta(y) = (FN + FP) / (P + FP), not a sum
over supervoxels. But for a given union U = P + FP its tangent at any labelling is const + FN / U + FP TP / U^2, a sum,
under which one minimum cut finds the maximum of Delta(y) + S(y) exactly. From the truth and two other starts the
tangent is moved to the labelling found until it stays, and the labelling of the largest true value wins. High-order
losses by linear pieces: Ranjbar, Vahdat and Mori, CVPR 2012; Tarlow and Zemel, AISTATS 2012. It is a lower bound of
the maximum, so that subgradients are approximate, which the learning allows for. Theirs decomposes the loss once; the
examples here are runs of neighbouring supervoxels of one volume; the context features of MICCAI 2014 are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mitoseg.classical.describing import Description
from mitoseg.classical.features import FloatArray
from mitoseg.classical.graph_cut import energy, minimum_graph_cut
from mitoseg.classical.supervoxels import (
    Bools,
    Counts,
    KernelMachine,
    SupervoxelSegmenter,
    learn_pairwise,
    learn_unary,
    pair_costs,
)
from mitoseg.errors import import_extra

Floats = npt.NDArray[np.float64]
PIECE = 8_000  # supervoxels of an example
FEWEST = 8  # examples, at least
START = (0.1, 0.1, 0.2)  # weights of the pair features before anything is learned


@dataclass
class StructuredSegmenter(SupervoxelSegmenter):
    """Lucchi et al. 2013 and 2015; see `mitoseg.classical.structured`, and the base class for other options."""

    regularization: float = 0.005  # of the weights, in the primal objective
    rounds: int = 30  # of inference over all examples
    weights_: Floats | None = field(default=None, init=False, repr=False)  # of supervoxels' and pairs' features
    objective_: list[float] = field(default_factory=list, init=False, repr=False)  # least primal one up to each round

    def _learn(self, description: Description, fg: Counts, known: Counts) -> tuple[FloatArray, FloatArray]:
        self.unary_, held_out = learn_unary(description, fg, known, self.landmarks, self.seed)
        self.pairwise_ = learn_pairwise(description, fg, known, self.seed)
        nodes = _node_features(self.unary_, description, held_out)
        edges = _edge_features(self.pairwise_, description)
        start = np.concatenate([[1.0], np.zeros(nodes.shape[1] - 1), START])
        examples = _examples(description, nodes, edges, fg, known)
        self.weights_, tried = learn_structured(
            examples, start, regularization=self.regularization, rounds=self.rounds
        )
        self.objective_ = np.minimum.accumulate(tried).tolist()
        # Platt's slope makes log-odds of the scores: scaling all weights leaves every cut, and thresholds are readable
        platt = import_extra("sklearn.linear_model", "scikit-learn", "classical").LogisticRegression(C=1e3)
        score, use = self._weigh(nodes, edges)[0], known > 0
        weight = np.abs(2 * fg - known)[use] / known.mean()
        platt.fit(score[use, None], (2 * fg > known)[use], sample_weight=weight)
        self.weights_ = self.weights_ * max(float(platt.coef_[0, 0]), 1e-3)
        return self._weigh(nodes, edges)

    def _potentials(self, description: Description) -> tuple[FloatArray, FloatArray]:
        unary, pairwise = self._machines
        nodes = _node_features(unary, description, unary(description.features))
        return self._weigh(nodes, _edge_features(pairwise, description))

    def _weigh(self, nodes: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
        assert self.weights_ is not None
        split = nodes.shape[1]
        unary, pair = self.weights_[:split], self.weights_[split:]
        return (nodes @ unary).astype(np.float32), (edges @ pair).astype(np.float32)


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


STEPS = 60  # subgradient steps of a round

SCALES = (1.0, 0.3, 0.1, 0.03)
"""What the weights may be multiplied by before the descent: where cuts stay as they are, margins do not."""


@dataclass
class Example:
    """One graph with its truth, and the labellings that have violated its margin."""

    nodes: npt.NDArray[np.floating]  # (N, A) features a, times the volume
    pairs: npt.NDArray[np.int64]  # (E, 2)
    edges: npt.NDArray[np.floating]  # (E, B) features b, none below zero
    loss: VolumeLoss  # Delta
    constraints: list[Floats] = field(default_factory=list)  # rows Psi(y) - Psi(truth) of the working set
    losses: list[float] = field(default_factory=list)  # Delta of each

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


def learn_structured(
    examples: list[Example], start: Floats, *, regularization: float = 1e-3, rounds: int = 15, rate: float = 0.1
) -> tuple[Floats, list[float]]:
    """Lower the primal objective L from where the weights (A + B,) start, the last B of them not below zero.

    The working sets of the examples grow. ``rounds`` of inference come after those that find the scale of the start;
    ``rate`` is the length of the first steps, as a share of the weights'. Gives the weights of the least L seen, and L
    of each round's own weights, those taken back included.
    """
    split = examples[0].nodes.shape[1]
    best, least = start, np.inf
    weights, tried = start, list[float]()
    for turn in range(len(SCALES) + rounds):
        if turn < len(SCALES):
            weights = SCALES[turn] * start
        violation = float(np.mean([example.violate(weights) for example in examples]))
        tried.append(0.5 * regularization * float(weights @ weights) + violation)
        if tried[-1] < least:
            best, least = weights, tried[-1]
        elif turn >= len(SCALES):
            rate /= 2
        length = rate * max(1.0, float(np.linalg.norm(best)))
        weights = _descend(examples, best, regularization, length, split)
    return best, tried


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


STARTS = ((1.0, 1.0), (2.0, 1.0), (1.0, 0.0))
"""U and TP of the tangents to start from, in units of P: the truth, twice its volume, and all of it missed."""

MOVES = 3  # tangents tried from each start, at most


@dataclass(frozen=True)
class VolumeLoss:
    """Delta for one truth."""

    truth: Bools  # (N,) whether a supervoxel is foreground
    volume: Floats  # (N,) what it counts, 0 where nothing is labelled
    floor: float = 1.0  # the least P: without it a single voxel would be a loss of 1 where the truth has no foreground

    @property
    def foreground(self) -> float:
        """P."""
        return max(float(self.volume[self.truth].sum()), self.floor)

    def __call__(self, labels: Bools) -> float:
        """Delta of a labelling, 0 for the truth, up to 1."""
        missed, added = self._errors(labels)
        return (missed + added) / (self.foreground + added)

    def tangent(self, labels: Bools) -> tuple[float, float]:
        """What a missed and an added unit of volume cost next to a labelling."""
        missed, added = self._errors(labels)
        union = self.foreground + added
        return 1 / union, (self.foreground - missed) / union**2

    def costs(self, miss: float, addition: float) -> Floats:
        """The linear loss as costs of foreground, lower where it pays to be wrong: to subtract from an energy."""
        return self.volume * np.where(self.truth, miss, -addition)

    def _errors(self, labels: Bools) -> tuple[float, float]:
        missed = self.volume[self.truth & ~labels].sum()
        return float(missed), float(self.volume[labels & ~self.truth].sum())


def augmented_labelling(
    loss: VolumeLoss, cost: Floats, pairs: npt.NDArray[np.int64], weight: Floats
) -> tuple[Bools, float]:
    """The labelling with the largest Delta(y) - E(y) of those that the tangents lead to, and that value.

    It is never less than the truth's own. For cost, pairs and weight of E see `minimum_graph_cut`.
    """
    best, highest = loss.truth, -energy(loss.truth, cost, pairs, weight)
    tried = set()
    for union, hit in STARTS:
        miss, addition = 1 / (union * loss.foreground), hit / (union**2 * loss.foreground)
        for _ in range(MOVES):
            slope = (round(miss * loss.foreground, 3), round(addition * loss.foreground, 3))
            if slope in tried:
                break
            tried.add(slope)
            labels = minimum_graph_cut(cost + loss.costs(miss, addition), pairs, weight)
            value = loss(labels) - energy(labels, cost, pairs, weight)
            if value > highest:
                best, highest = labels, value
            miss, addition = loss.tangent(labels)
    return best, highest
