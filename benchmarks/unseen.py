"""Chooses the threshold of a network for tissue that it has not seen: on domains left out.

    python benchmarks/unseen.py heart=RUN/checkpoints/best.ckpt cortex=RUN/checkpoints/best.ckpt ... \
        [checkpoint=best.ckpt out=generalist.ckpt]

RUN is a training without that set (`experiment=generalist data.sets.heart=null`), which here predicts all of it. Where
nothing of a tissue was learnt, probabilities are lower, so a threshold chosen on tissue of the training is too high.
`checkpoint`, trained in the same way on all sets, gets what was chosen and is written to `out`. The mean JAC that is
printed also tells which length of training is best.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generalist import DEFAULTS, recipe
from omegaconf import OmegaConf
from pseudo_labels import raw_log_odds
from scipy.special import expit

import mitoseg
from mitoseg.metrics import Calibration, scores
from mitoseg.metrics.calibration import choose_decision
from mitoseg.metrics.histogram import BINS, curve, logit_histogram
from mitoseg.networks.checkpoint import KEY
from mitoseg.storage import atomic_output


def histogram(name: str, checkpoint: str) -> np.ndarray[Any, Any]:
    """Log-odds, not calibrated, of all labelled voxels of a set, by class."""
    model, found = mitoseg.load(checkpoint), np.zeros((2, BINS), np.int64)
    for region in recipe(DEFAULTS).annotated(name):
        raw = raw_log_odds(model, region.image, region.image.voxel_size)
        found += logit_histogram(raw, region.label.read())
    return found


def main(words: list[str]) -> None:
    """Choose, print, and write the checkpoint."""
    options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    final, out = options.pop("checkpoint", None), options.pop("out", None)
    if not options or (final is None) != (out is None):
        raise SystemExit(__doc__)
    found = {name: histogram(name, checkpoint) for name, checkpoint in options.items()}
    decision = choose_decision(np.stack(list(found.values())), 0.0)
    each = {name: scores(curve(hist).at(decision.raw_threshold))["jaccard_foreground"] for name, hist in found.items()}
    print(f"threshold {decision.threshold:.3f}, mean JAC {np.mean(list(each.values())):.3f}:", end=" ")
    print(", ".join(f"{name} {jaccard:.3f}" for name, jaccard in each.items()))
    for name in found if len(found) > 1 else ():
        others = choose_decision(np.stack([hist for other, hist in found.items() if other != name]), 0.0)
        jaccard = scores(curve(found[name]).at(others.raw_threshold))["jaccard_foreground"]
        print(f"{name} {jaccard:.3f} at the threshold {others.threshold:.3f} of the others")
    if out is not None:
        stored = torch.load(final, map_location="cpu", weights_only=True)
        own = Calibration(**stored[KEY]["calibration"])
        stored[KEY]["threshold"] = float(expit(own.apply(torch.tensor(decision.raw_threshold))))
        with atomic_output(Path(out)) as temporary:
            torch.save(stored, temporary)


if __name__ == "__main__":
    main(sys.argv[1:])
