"""Labels an unlabelled volume by several trained networks, for the training of another: what they agree on.

    python benchmarks/pseudo_labels.py image=VOLUME voxel_size=[20,10,10] output=LABELS.tif checkpoints=[A.ckpt,B.ckpt]

A voxel is a mitochondrion (1) where the mean probability is above 0.5 and every network's above 0.2; background (0)
where every network's is below 0.15; and unknown (255) elsewhere, which enters neither loss nor score. Probabilities
are those of the networks as trained, without prior correction and calibration. The training takes them as
`data.more={NAME:{image:VOLUME,label:LABELS.tif,axes:zyx,voxel_size:[20,10,10],unknown:255}}`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tifffile
from omegaconf import OmegaConf
from scipy.special import expit, logit

import mitoseg
from mitoseg.metrics import Calibration
from mitoseg.volumes import open_volume

Array = np.ndarray[Any, Any]


def raw_log_odds(model: mitoseg.SegmentationModel, image: Any, voxel_size: Any) -> Array:  # an array or a volume; nm
    """The network's log-odds (z, y, x) before prior correction and calibration."""
    own = Calibration(**model.model.calibration)
    calibrated = logit(np.clip(model.predict(image, voxel_size), 1e-7, 1 - 1e-7))
    return np.asarray((calibrated - own.bias) * own.temperature - own.prior_shift)


def agreed(probability_nzyx: Array) -> Array:
    """Labels from the probabilities of several networks (n, z, y, x): 0, 1, or 255 for unknown."""
    label_zyx = np.full(probability_nzyx.shape[1:], 255, np.uint8)
    label_zyx[(probability_nzyx.mean(0) > 0.5) & (probability_nzyx.min(0) > 0.2)] = 1
    label_zyx[probability_nzyx.max(0) < 0.15] = 0
    return label_zyx


def main(words: list[str]) -> None:
    """Predict, and write the labels."""
    options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    if set(options) != {"image", "voxel_size", "output", "checkpoints"}:
        raise SystemExit(__doc__)
    image_zyx = open_volume(options["image"], axes="zyx").read()
    models = [mitoseg.load(name) for name in options["checkpoints"]]
    each = [raw_log_odds(model, image_zyx, options["voxel_size"]) for model in models]
    label_zyx = agreed(expit(np.stack(each)))
    tifffile.imwrite(options["output"], label_zyx, compression="zlib")
    shares = ((label_zyx == value).mean() for value in (1, 255))
    print("mitochondria {:.1%}, unknown {:.1%} of the voxels".format(*shares))


if __name__ == "__main__":
    main(sys.argv[1:])
