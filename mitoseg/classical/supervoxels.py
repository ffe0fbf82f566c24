r"""Supervoxels, a kernel machine and a graph cut.

After A. Lucchi, K. Smith, R. Achanta, G. Knott, P. Fua, "Supervoxel-based segmentation of mitochondria in EM image
stacks with learned shape features", IEEE Transactions on Medical Imaging 31(2), 474-486, 2012. The energy of a
labelling y of the supervoxels is

    E(y) = sum_i v_i (t - logit p_i) y_i + lambda sum_(i,j) a_ij (-log p_ij) [y_i != y_j],

v_i the volume of a supervoxel and a_ij the area that two share (both in units of their mean), p_i the probability that
it is mitochondrion, p_ij that the two lie on different sides of a mitochondrion's boundary, t the threshold. As there:
SLIC supervoxels; histograms of the supervoxel and of its neighbours; rays and other shape cues that turning leaves
alone, on a learned boundary map; a kernel SVM; a learned pairwise term; a minimum cut.

Where ours differs:
- SLIC sees the learned maps beside the grey value (`RegionDescriber.guidance`, 0 for theirs).
- Features of Gaussian derivatives stand for theirs of steerable filters, and their means are features too.
- The kernel is approximated by a Nystroem map, which makes the SVM linear.
- The pairwise machine tells "different sides" from "same side"; theirs has a class for either order of the sides.
- Lambda and t are tuned by the Jaccard index on supervoxels held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.classical.describing import Description
from mitoseg.classical.kernel_machine import KernelMachine, train_machine
from mitoseg.classical.region_segmenter import Counts, FloatArray, RegionSegmenter
from mitoseg.errors import UserError

PAIR_LANDMARKS = 128
PAIRS = 60_000
"""Pairs of background that the pairwise machine learns from, at most."""


@dataclass
class SupervoxelSegmenter(RegionSegmenter):
    """Lucchi et al. 2012; see `mitoseg.classical.supervoxels` for where it differs, the base class for options.

    Attributes:
        unary_: The machine of p_i, once fitted.
        pairwise_: The machine of p_ij, once fitted.
    """

    unary_: KernelMachine | None = field(default=None, init=False, repr=False)
    pairwise_: KernelMachine | None = field(default=None, init=False, repr=False)

    def _learn(self, description: Description, fg: Counts, known: Counts) -> tuple[FloatArray, FloatArray]:
        self.unary_, held_out = learn_unary(description, fg, known, self.landmarks, self.seed)
        self.pairwise_ = learn_pairwise(description, fg, known, self.seed)
        return held_out, pair_costs(self.pairwise_, description)

    def _potentials(self, description: Description) -> tuple[FloatArray, FloatArray]:
        if self.unary_ is None or self.pairwise_ is None:
            raise UserError("the classical method is not fitted", None, "call fit first, or load one that is")
        return self.unary_(description.features), pair_costs(self.pairwise_, description)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        if self.unary_ is None or self.pairwise_ is None:
            raise UserError("the classical method is not fitted", None, "call fit before save")
        machines = {"unary": self.unary_, "pairwise": self.pairwise_}
        return {f"{name}.{k}": v for name, machine in machines.items() for k, v in machine.arrays().items()}

    def _restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.unary_, self.pairwise_ = (restored_machine(arrays, name) for name in ("unary", "pairwise"))


def restored_machine(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> KernelMachine:
    """The machine whose arrays have that name in front."""
    start = f"{name}."
    return KernelMachine.restored({k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)})


def learn_unary(
    description: Description, fg: Counts, known: Counts, landmarks: int, seed: int
) -> tuple[KernelMachine, FloatArray]:
    """The machine of p_i, and log-odds (N,) of machines that had not seen the supervoxel.

    A supervoxel weighs as many voxels as it holds of one class more than of the other.
    """
    use = known > 0
    label, weight = 2 * fg > known, np.abs(2 * fg - known) / max(known.mean(), 1e-9)
    machine, held_out = train_machine(
        description.features[use], label[use], weight[use] + 1e-6, landmarks=landmarks, seed=seed
    )
    log_odds = np.zeros(len(known), np.float32)
    log_odds[use] = held_out
    if not use.all():
        log_odds[~use] = machine(description.features[~use])
    return machine, log_odds


def learn_pairwise(description: Description, fg: Counts, known: Counts, seed: int) -> KernelMachine:
    """The machine of p_ij; pairs that differ weigh as much as those that do not, of those fg as much as bg."""
    label = (2 * fg > known)[description.graph.pairs]
    use = (known > 0)[description.graph.pairs].all(1)
    kinds = [use & (label.sum(1) == k) for k in (1, 2, 0)]
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(kind) for kind in kinds]
    members[2] = rng.permutation(members[2])[:PAIRS]
    shares = [share / max(len(m), 1) for m, share in zip(members, (2, 1, 1), strict=True)]
    weight = np.repeat(shares, [len(m) for m in members])
    chosen = np.concatenate(members)
    order = np.argsort(chosen)
    chosen, weight = chosen[order], weight[order] * len(order) / 4
    differ = kinds[0][chosen]
    machine, _ = train_machine(description.pair_features[chosen], differ, weight, landmarks=PAIR_LANDMARKS, seed=seed)
    return machine


def pair_costs(machine: KernelMachine, description: Description) -> FloatArray:
    """a_ij (-log p_ij) of every pair, (E,) float32, never below zero."""
    area = description.graph.area / max(float(description.graph.area.mean()), 1e-9)
    cost: FloatArray = (area * np.logaddexp(0, -machine(description.pair_features))).astype(np.float32)
    return cost
