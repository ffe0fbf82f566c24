"""The foreground JAC to expect of a prediction where nothing is labelled, from a few fields of the volume.

Each field is predicted as it is, and with its pixels made smaller and larger. A network that knows the tissue finds
much the same every time, with probabilities near 0 and 1; on other tissue it contradicts itself:

    certainty     TP / (TP + FP + FN) by the probabilities p themselves, at the threshold t:
                  TP = sum p [p >= t],  FP = sum (1 - p) [p >= t],  FN = sum p [p < t]
    agreement     JAC between the mask and those with other pixels, pooled
    expected JAC  certainty * agreement
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box
from mitoseg.inference.predictor import Predictor, predict_volume
from mitoseg.inference.prepare import KINDS, Prediction
from mitoseg.networks.kinds import dimensions
from mitoseg.volumes import CHANNEL_OFFSETS, Volume
from mitoseg.volumes.base import ArrayVolume, ArrayWriter, CroppedVolume
from mitoseg.volumes.resampling import resampled

SCALES = (0.8, 1.25)  # factors of the pixel size
SIDE = 384  # pixels of a field along y and x
DEPTH = 32  # slices of a field for networks on volumes; those on slices get one
FIELDS, SHARE = (4, 16), 0.01  # the least and the largest number of fields; in between, their share of the volume
SPREAD = 0.2
"""Half the width of the range that is told: four of five fields lie within, see `benchmarks/confidence.py`."""
DOUBTFUL = 0.55
"""An expected JAC below this is worth a warning; `benchmarks/confidence.py` measures how often it is right."""


@dataclass(frozen=True)
class Field:
    """A field of the volume that the network sees.

    ``soft`` are the expected voxels TP, FP, FN; ``overlap`` intersection and union with the masks at the other
    scales, added up.
    """

    box: Box
    soft: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]


def expected_jaccard(fields: Iterable[Field]) -> float | None:
    """The foreground JAC to expect over some fields; None where no mask holds a mitochondrion."""
    found = list(fields)
    tp, fp, fn = np.sum([field.soft for field in found], axis=0) if found else (0, 0, 0)
    shared, either = np.sum([field.overlap for field in found], axis=0) if found else (0, 0)
    return float(tp / (tp + fp + fn) * shared / either) if either else None


def examine(predictor: Predictor) -> Iterator[Field]:
    """Predict some fields of a predictor's volume, at several pixel sizes; see the module's docstring."""
    volume, prediction = predictor.volume, predictor.prediction
    plain = replace(prediction, save="probability", dtype=KINDS["probability"], tta="none")
    flat = dimensions(prediction.network) == 2
    reach = max(map(abs, CHANNEL_OFFSETS[prediction.channels])) if flat else 0
    for box in choose_fields(volume, 1 if flat else DEPTH):
        start, stop = max(0, box.start[0] - reach), min(volume.shape[0], box.stop[0] + reach)
        crop = CroppedVolume(volume, Box((start, *box.start[1:]), (stop, *box.stop[1:])))
        size = crop.voxel_size or (1.0, 1.0, 1.0)
        crop.info = replace(crop.info, voxel_size=size)
        layers = slice(box.start[0] - start, box.stop[0] - start)
        probability = _probability(plain, crop, layers)
        mask = probability >= prediction.threshold
        overlap = np.zeros(2)
        for scale in SCALES:
            other = (size[0] if flat else size[0] * scale, size[1] * scale, size[2] * scale)
            seen = resampled(crop, other)
            answers = ArrayVolume(_probability(plain, seen, layers if flat else slice(None)), other)
            again = resampled(answers, size, mask.shape).read() >= prediction.threshold
            overlap += np.count_nonzero(mask & again), np.count_nonzero(mask | again)
        sums = probability[mask].sum(), (1 - probability[mask]).sum(), probability[~mask].sum()
        yield Field(box, np.array(sums, np.float64), overlap)


def choose_fields(volume: Volume, depth: int) -> list[Box]:
    """Boxes spread over a volume, by a sequence of low discrepancy; those that are mostly padding are left out."""
    sides = (min(depth, volume.shape[0]), *(min(SIDE, n) for n in volume.shape[1:]))
    count = round(np.clip(SHARE * volume.box.size / math.prod(sides), *FIELDS))
    free = [n - side for n, side in zip(volume.shape, sides, strict=True)]
    found = []
    for i in range(4 * count):
        places = (i + 0.5) / count % 1, (0.5 + 0.7549 * i) % 1, (0.5 + 0.5698 * i) % 1  # Roberts' R2 sequence
        corner = tuple(round(place * n) for place, n in zip(places, free, strict=True))
        box = Box(corner, tuple(a + side for a, side in zip(corner, sides, strict=True)))
        padding = None if volume.padding is None else volume.padding.find(box)
        if box not in found and (padding is None or 2 * np.count_nonzero(padding) < box.size):
            found.append(box)
        if len(found) == count:
            break
    return found


def _probability(prediction: Prediction, volume: Volume, layers: slice) -> npt.NDArray[np.float32]:
    """Calibrated probabilities of some slices (all others are context)."""
    first, last, _ = layers.indices(volume.shape[0])
    shape = (last - first, *volume.shape[1:])
    writer = ArrayWriter(shape)
    predict_volume(prediction, volume, writer, box=Box.of_shape(shape).shift((first, 0, 0)), tile=shape)
    return writer.array_zyx
