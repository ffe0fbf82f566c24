"""How good fine-tuning gets with how much paint: slices or fields drawn at random, scored where nobody painted.

    python benchmarks/few_labels.py set=vnc [sizes=[1,3,5,10]] [draws=5] [first=0] [output=FOLDER] [steps=STEPS]
    python benchmarks/few_labels.py image=my.tif labels=dense.tif voxel_size=[50,5,5] [unknown=255]

``1`` stands for a field of 256 x 256 pixels, more for so many slices; a set of one slice is painted in its left half.
Sets are those of `data=domains` (vnc, cortex, heart, hela, ...) in MITOSEG_DATA. The table has a row per draw: the
JAC where nobody painted, the interval that was predicted for it, and whether it contains that JAC.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from generalist import DEFAULTS as SETS
from generalist import recipe
from omegaconf import OmegaConf

from mitoseg.datasets.files import resolve
from mitoseg.datasets.painted import IGNORE, Painted, grouped, open_painted, own_statistics
from mitoseg.geometry import Box
from mitoseg.metrics import Counts
from mitoseg.metrics.histogram import logit_histogram
from mitoseg.networks.checkpoint import load_model
from mitoseg.workflows.finetune import decided, finetune, jaccard, log_odds
from mitoseg.workflows.options import FinetuneOptions

FIELD = 256
DEFAULTS = {"set": None, "sizes": [1, 3, 5, 10], "draws": 5, "first": 0, "output": None, "steps": None, "model": None}
DEFAULTS |= {"image": None, "labels": None, "voxel_size": None, "unknown": None}


def draw(regions: list[Painted], size: int, rng: np.random.Generator) -> list[Painted]:
    """So many of the annotated slices, or a field with a mitochondrion; of a single slice its left half."""
    if len(regions) == 1:
        start, stop = regions[0].box.start, regions[0].box.stop
        return [regions[0].cut(Box(start, (*stop[:2], (start[2] + stop[2]) // 2)))]
    if size > 1:
        return [regions[i] for i in sorted(rng.permutation(len(regions))[:size])]
    region = regions[int(rng.integers(len(regions)))]
    inside = np.argwhere(region.label_zyx[0] == 1)
    centre = inside[rng.integers(len(inside))]
    sides = [min(FIELD, n) for n in region.box.shape[1:]]
    first = [
        a + int(np.clip(c - side // 2, 0, n - side))
        for a, c, side, n in zip(region.box.start[1:], centre, sides, region.box.shape[1:], strict=True)
    ]
    z = region.box.start[0]
    return [region.cut(Box((z, *first), (z + 1, *(a + side for a, side in zip(first, sides, strict=True)))))]


def score(checkpoint: Path, regions: list[Painted], painted: list[Painted], **options: Any) -> Counts:
    """Counts of all annotated voxels of slices without paint, or, of a single one, beside the paint."""
    model, total = load_model(checkpoint), Counts()
    rule, own = model.record.get("normalize", "checkpoint"), own_statistics(regions)
    slices = {region.box.start[0] for region in painted}
    for region in regions:
        label_zyx = region.label_zyx.copy()
        if region.box.start[0] in slices:
            if len(regions) > 1:
                continue
            for other in painted:
                label_zyx[other.box.inside(region.box).slices] = IGNORE
        found = log_odds(
            model, region.image, region.box, None if rule == "checkpoint" else own[region.image.path], **options
        )
        total += decided(model, logit_histogram(found, label_zyx))
    return total


def main(words: list[str]) -> None:
    """Draw, fine-tune, score; a table and all numbers."""
    options: dict[str, Any] = DEFAULTS | dict(OmegaConf.to_container(OmegaConf.from_dotlist(words)))  # type: ignore[call-overload]
    if unknown := set(options) - set(DEFAULTS):
        raise SystemExit(f"no such option: {', '.join(sorted(unknown))}; choose among {', '.join(DEFAULTS)}")
    if options["set"] is None and options["image"] is None:
        raise SystemExit("give set=NAME, or image= and labels=")
    files = {**options, "label": options["labels"], "axes": "zyx"}
    if options["set"]:
        domains = recipe(SETS)
        if options["set"] not in domains.sets:
            raise SystemExit(f"no such set: {options['set']}; choose among {', '.join(domains.sets)}")
        files = domains.sets[options["set"]]
        files |= {key: resolve(files[key], domains.root) for key in ("image", "label")}
    meant = {key: files[key] for key in ("voxel_size", "unknown", "axes")}
    regions = [r for r in open_painted([files["image"]], [files["label"]], **meant) if (r.label_zyx == 1).any()]
    folder = Path(options["output"] or f"few_labels_{options['set'] or 'own'}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(options["first"], options["first"] + options["draws"]):
        for size in options["sizes"]:
            if size >= len(regions) > 1:
                continue
            rng = np.random.default_rng([number, size])
            painted = grouped(draw(regions, size, rng))
            given = FinetuneOptions(steps=options["steps"], model=options["model"], seed=number, progress=False)
            began = time.monotonic(), time.process_time()
            found = finetune(given, folder / f"{size}_{number}", regions=painted)
            seconds = time.monotonic() - began[0], time.process_time() - began[1]
            beyond = jaccard([score(found.checkpoint, regions, painted)])
            row = {"painted": size, "draw": number, "jaccard": beyond, "start": found.start.value, "kept": found.kept}
            row |= {"predicted": found.tuned.value, "low": found.tuned.low, "high": found.tuned.high}
            row |= {"held": found.tuned.low <= beyond <= found.tuned.high, "expected": found.advice.expected}
            rows.append(row | {"seconds": round(seconds[0]), "cpu_seconds": round(seconds[1])})
            print(json.dumps(rows[-1]), flush=True)
            pd.DataFrame(rows).to_csv(folder / "draws.csv", index=False)
    table = pd.DataFrame(rows)
    print(table.groupby("painted")[["jaccard", "predicted", "held", "expected"]].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    main(sys.argv[1:])
