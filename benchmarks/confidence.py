"""Compares the foreground JAC that `predict` expects without labels with the true one, over fields of many tissues.

    python benchmarks/confidence.py models=[epfl-unet25d:checkpoint,best.ckpt:volume] [out=FILE] [fields=8] [nm=4000]

A model is a checkpoint and the rule of its grey values (`normalize=`). From each set of `data=domains`, up to `fields`
fields of `nm` nanometres are cut at random (seed 0); each is treated as a volume of its own.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from generalist import DEFAULTS as SETS
from generalist import recipe, scored_box
from omegaconf import OmegaConf
from scipy.stats import spearmanr

import mitoseg
from mitoseg.datasets import Region
from mitoseg.geometry import Box
from mitoseg.inference.confidence import DOUBTFUL, SPREAD, examine, expected_jaccard
from mitoseg.metrics import count, scores
from mitoseg.volumes.base import ArrayVolume, CroppedVolume
from mitoseg.workflows.session import prepare

DEFAULTS = {"models": ["epfl-unet25d:checkpoint"], "out": None, "fields": 8, "nm": 4000}
GOOD = 0.6
"""A prediction with a smaller JAC should have been doubted."""


def cut(region: Region, box: Box, nm: float, rng: np.random.Generator) -> Box:
    """A random field of a region: all slices within reach of 2.5D networks along z, ``nm`` along y and x."""
    assert region.image.voxel_size is not None
    sides = [min(9, box.shape[0])] + [
        min(n, round(nm / size)) for n, size in zip(box.shape[1:], region.image.voxel_size[1:], strict=True)
    ]
    start = [a + int(rng.integers(n - side + 1)) for a, n, side in zip(box.start, box.shape, sides, strict=True)]
    return Box((start[0], start[1], start[2]), tuple(a + side for a, side in zip(start, sides, strict=True)))


def judged(model: mitoseg.SegmentationModel, rule: str, region: Region, box: Box) -> tuple[float, float]:
    """The expected JAC of a field (0 where nothing is found), and the true one (NaN without mitochondria)."""
    image, size = region.image.read(box), region.image.voxel_size
    source = CroppedVolume(ArrayVolume(image, size), Box.of_shape(image.shape))
    prepared = prepare(model.model, source, normalize=rule)
    expected = expected_jaccard(examine(prepared.predictor))
    label = region.label.read(box)
    if not (label == 1).any() or (label == 255).mean() > 0.5:
        return 0.0, float("nan")
    found = count(model.predict(image, size, normalize=rule) >= model.threshold, label)
    return expected or 0.0, scores(found)["jaccard_foreground"]


def summary(expected: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> dict[str, float]:
    """How well the expectation ranks, warns, and covers."""
    bad, doubted = true < GOOD, expected < DOUBTFUL
    return {
        "fields": len(true),
        "spearman": float(spearmanr(expected, true)[0]),
        "bad, not doubted": float((bad & ~doubted).sum() / max(bad.sum(), 1)),
        "good, doubted": float((~bad & doubted).sum() / max((~bad).sum(), 1)),
        "within the range": float((np.abs(expected - true) <= SPREAD).mean()),
    }


def main(words: list[str]) -> None:
    """Judge all models on all sets, and write what was found."""
    options: Any = DEFAULTS | dict(OmegaConf.to_container(OmegaConf.from_dotlist(words)))  # type: ignore[call-overload]
    if unknown := set(options) - set(DEFAULTS):
        raise SystemExit(f"no such option: {', '.join(sorted(unknown))}; choose among {', '.join(DEFAULTS)}")
    logging.disable(logging.WARNING)
    domains, rows = recipe(SETS), []
    for name in options["models"]:
        checkpoint, _, rule = name.partition(":")
        model, rng = mitoseg.load(checkpoint), np.random.default_rng(0)
        for key in domains.sets:
            regions = domains.annotated(key)
            for i in range(options["fields"]):
                region = regions[i % len(regions)]
                box = cut(region, scored_box(domains, key, region), options["nm"], rng)
                expected, true = judged(model, rule, region, box)
                rows.append({"model": name, "set": key, "expected": expected, "true": true})
            mean = np.nanmean([[r["expected"], r["true"]] for r in rows if (r["model"], r["set"]) == (name, key)], 0)
            print(f"{name} {key}: expected {mean[0]:.3f}, true {mean[1]:.3f}", flush=True)
    kept = [
        r for i, r in enumerate(rows) if np.isfinite(r["true"]) and r not in rows[:i]
    ]  # small images have one field
    found = summary(*(np.array([r[key] for r in kept]) for key in ("expected", "true")))
    print(json.dumps(found, indent=1))
    if options["out"]:
        Path(options["out"]).write_text(json.dumps({"options": options, "summary": found, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
