"""Scores a model on every real set of `data=domains`, as `predict` would: with the pixel size stated, and wrong.

    python benchmarks/generalist.py checkpoint=best.ckpt [output=FOLDER] [factors=[1,1.5,0.667]] [normalize=checkpoint]

Sets that train (`leave_out=` as in the run of the checkpoint) are scored on their validation rows, EPFL on the first
half of the test volume. In the pictures what was found is green, false positives are red and missed voxels blue.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.table import Table

import mitoseg
from mitoseg.cli.launch import default_config_dir
from mitoseg.datasets import IGNORE, Domains, Region
from mitoseg.geometry import Box

EPFL_TEST = {"image": "epfl_ca1/testing_z000-081.tif", "label": "epfl_ca1/testing_z000-081_groundtruth.tif"}
DEFAULTS = {"checkpoint": None, "output": None, "factors": [1, 1.5, 0.667], "normalize": "checkpoint", "tta": "none"}
DEFAULTS |= {"leave_out": None, "sets": None, "root": None}


def recipe(options: dict[str, Any]) -> Domains:
    """The sets of `data=domains`, EPFL's test half among them."""
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        data: Any = OmegaConf.to_container(compose("train", ["data=domains", "network=unet2d"]).data, resolve=True)
    epfl = {**data["sets"]["epfl"], **EPFL_TEST, "domain": "epfl"}
    sets = {name: given for name, given in data["sets"].items() if not given.get("phantom")}
    sets = {name: sets[name] for name in options["sets"] or sets}
    sets |= {"epfl": epfl} if "epfl" in sets else {}
    left_out = [name for name in options["leave_out"] or data["leave_out"] if name in sets]
    root = options["root"] or data["root"]
    return Domains(
        root=root, sets=sets, leave_out=left_out, pixel_size=data["pixel_size"], validation=data["validation"]
    )


def scored_box(domains: Domains, name: str, region: Region) -> Box:
    """All of a set that was left out, and of EPFL's test half; the validation rows of others."""
    left_out = domains.sets[name]["domain"] in domains.leave_out
    return region.box if left_out or name == "epfl" else domains.cut(region)[1]


def counts(mask: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """True positives, false positives, false negatives among known voxels."""
    known, truth = label != IGNORE, label == 1
    return np.array([(mask & truth & known).sum(), (mask & ~truth & known).sum(), (~mask & truth & known).sum()])


def scores(found: np.ndarray[Any, Any]) -> dict[str, float]:
    """Foreground JAC, precision and recall."""
    tp, fp, fn = found.tolist()
    return {"jaccard": tp / max(1, tp + fp + fn), "precision": tp / max(1, tp + fp), "recall": tp / max(1, tp + fn)}


def picture(path: Path, image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> None:
    """A slice with its errors; unknown voxels are dimmed."""
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(1e-6, high - low) * 200, 0, 200)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    truth, known = label == 1, label != IGNORE
    for channel, chosen in enumerate((mask & ~truth & known, mask & truth, ~mask & truth)):
        rgb[chosen, channel] += 55
    rgb[~known] *= 0.5
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def main(words: list[str]) -> None:
    """Score, and write a table, a JSON file and pictures."""
    options: dict[str, Any] = DEFAULTS | dict(OmegaConf.to_container(OmegaConf.from_dotlist(words)))  # type: ignore[call-overload]
    if unknown := set(options) - set(DEFAULTS):
        raise SystemExit(f"no such option: {', '.join(sorted(unknown))}; choose among {', '.join(DEFAULTS)}")
    model, domains = mitoseg.load(options["checkpoint"]), recipe(options)
    folder = None if options["output"] is None else Path(options["output"])
    table = Table(
        "set", "voxels", *(f"JAC, size x {factor:g}" for factor in options["factors"]), "precision", "recall", "s"
    )
    results: dict[str, Any] = {"checkpoint": options["checkpoint"], "options": options, "sets": {}}
    for name in domains.sets:
        found: dict[float, np.ndarray[Any, Any]] = {}
        began = time.process_time()
        for number, region in enumerate(domains.annotated(name)):
            box = scored_box(domains, name, region)
            image, label = region.image.read(box), region.label.read(box)
            assert region.image.voxel_size is not None
            for factor in options["factors"]:
                size = [n * factor for n in region.image.voxel_size]
                how = {"normalize": options["normalize"], "tta": options["tta"]}
                mask = model.predict(image, size, **how) >= model.threshold  # type: ignore[arg-type]
                found[factor] = found.get(factor, 0) + counts(mask, label)
                if folder is not None and factor == options["factors"][0]:
                    folder.mkdir(parents=True, exist_ok=True)
                    z = int(np.argmax((label == 1).sum((1, 2))))
                    picture(folder / f"{name}_{number}.png", image[z], mask[z], label[z])
        each = {factor: scores(total) for factor, total in found.items()}
        first = each[options["factors"][0]]
        row = [f"{each[factor]['jaccard']:.3f}" for factor in options["factors"]]
        more = [f"{first['precision']:.3f}", f"{first['recall']:.3f}", f"{time.process_time() - began:.0f}"]
        table.add_row(name, f"{int((label != IGNORE).sum()):,}", *row, *more)
        results["sets"][name] = {str(factor): scored for factor, scored in each.items()}
        print(name, *row, *more, flush=True)
    Console(width=130).print(table)
    if folder is not None:
        (folder / "scores.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
