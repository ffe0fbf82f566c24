"""A perceptron on Gaussian derivatives that says of every voxel: outside (0), boundary (1) or inside (2).

The boundary lies within `band` nm of where the label changes. Lucchi et al. (IEEE TMI 31(2), 2012) learn a boundary
map too, with steerable features; the third class costs nothing and tells the two sides of a boundary apart.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
import numpy.typing as npt

from mitoseg.classical.features import VoxelFeatures, even_blocks, read_with_halo, scaled
from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.geometry import Box
from mitoseg.volumes import Volume
from mitoseg.volumes.labels import IGNORED

FloatArray = npt.NDArray[np.float32]

HIDDEN = 32
SHARES = (0.5, 0.25, 0.25)  # of the classes among the samples: outside is the most varied
SAMPLE_BLOCK = 1_200_000
CHUNK = 1 << 18  # voxels that go through the perceptron together: its activations stay in the cache's reach


@dataclass(frozen=True)
class VoxelMaps:
    """The weights of the perceptron."""

    hidden: FloatArray  # (HIDDEN, F), on features
    hidden_bias: FloatArray  # (HIDDEN,)
    output: FloatArray  # (3, HIDDEN)
    output_bias: FloatArray  # (3,)

    def __call__(self, features_fzyx: FloatArray) -> npt.NDArray[np.uint8]:
        """Probabilities (2, Z, Y, X) of boundary and of inside, uint8, 255 for certain."""
        shape = features_fzyx.shape[1:]
        flat = features_fzyx.reshape(len(features_fzyx), -1)
        out = np.empty((2, flat.shape[1]), np.uint8)
        for start in range(0, flat.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            active = np.maximum(self.hidden @ flat[:, part] + self.hidden_bias[:, None], 0)
            score = self.output @ active + self.output_bias[:, None]
            score = np.exp(score - score.max(0))
            out[:, part] = np.rint(score[1:] * (255 / score.sum(0)))
        return out.reshape(2, *shape)


def voxel_classes(
    label_zyx: npt.NDArray[np.generic], band: float, voxel_size: tuple[float, float, float]
) -> npt.NDArray[np.uint8]:
    """0 outside, 1 within ``band`` nm of a change of label, 2 inside, 255 ignored."""
    inside = (label_zyx != 0) & (label_zyx != IGNORED)
    spacing: dict[str, Any] = {"anisotropy": voxel_size, "black_border": False, "parallel": 1}
    near = np.minimum(*(np.where(m, edt.edt(np.ascontiguousarray(m), **spacing), np.inf) for m in (inside, ~inside)))
    classes = np.where(near <= band, 1, np.where(inside, 2, 0)).astype(np.uint8)
    classes[label_zyx == IGNORED] = IGNORED
    return classes


def train_maps(
    image: Volume,
    label: Volume,
    features: VoxelFeatures,
    grey: tuple[float, float],
    *,
    band: float,
    samples: int,
    seed: int,
) -> VoxelMaps:
    """Train the perceptron on voxels drawn from a few blocks, most of which hold mitochondria.

    ``grey`` holds the grey values that are 0 and 1; for the other arguments see `RegionDescriber`.
    """
    rng = np.random.default_rng(seed)
    boxes = _choose_boxes(label, rng)
    drawn, classes_of = [], []
    for box in boxes:
        classes_n = voxel_classes(label.read(box), band, features.voxel_size).ravel()
        index = []
        for kind, share in enumerate(SHARES):
            there = np.flatnonzero(classes_n == kind)
            index.append(rng.choice(there, min(len(there), int(samples // len(boxes) * share)), replace=False))
        chosen = np.concatenate(index)
        found = features.inside(scaled(read_with_halo(image, box, features.halo), grey))
        drawn.append(np.ascontiguousarray(found.reshape(len(found), -1)[:, chosen].T))
        classes_of.append(classes_n[chosen])
    values, classes = np.concatenate(drawn), np.concatenate(classes_of)
    if len(np.unique(classes)) < 3:
        what = "the labels show no mitochondrion with tissue around it"
        raise UserError(what, label.path, "give more of the volume")
    mean, deviation = values.mean(0), values.std(0) + 1e-6
    perceptron = import_extra("sklearn.neural_network", "scikit-learn", "classical").MLPClassifier(
        (HIDDEN,), batch_size=512, early_stopping=True, n_iter_no_change=4, max_iter=30, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that thirty rounds are not the end of it is meant
        perceptron.fit((values - mean) / deviation, classes)
    (first, last), (first_bias, last_bias) = perceptron.coefs_, perceptron.intercepts_
    hidden = first.T / deviation
    arrays = (hidden, first_bias - hidden @ mean, last.T, last_bias)
    return VoxelMaps(*(np.ascontiguousarray(a, np.float32) for a in arrays))


def _choose_boxes(label: Volume, rng: np.random.Generator, most: int = 24) -> list[Box]:
    """Boxes to draw from, those with foreground the more likely the more of it they hold."""
    boxes = even_blocks(label.shape, SAMPLE_BLOCK)
    if len(boxes) <= most:
        return boxes
    share = []
    for box in boxes:
        part = label.read(box)
        share.append(float(np.mean((part != 0) & (part != IGNORED))) + 0.01 * float(np.mean(part != IGNORED)) + 1e-9)
    chosen = rng.choice(len(boxes), most, replace=False, p=np.array(share) / sum(share))
    return [boxes[i] for i in sorted(chosen)]
