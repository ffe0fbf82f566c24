"""Scores a model on every real set of `data=domains`, as `predict` would: with the pixel size stated, and wrong.

    python benchmarks/generalist.py [checkpoint=best.ckpt] [output=FOLDER] [factors=[1,1.5,0.667]] [normalize=volume]

Sets that train (`leave_out=` as in the run of the checkpoint) are scored on their validation rows, EPFL on the first
half of the test volume. Without `checkpoint=`, the bundled model is chosen for each image. The slice of each image
that holds most mitochondria is drawn with its errors.
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
from rich.console import Console
from rich.table import Table

import mitoseg
from mitoseg.datasets import Domains, Region
from mitoseg.evaluation.figures import overlay_figure, save_figure
from mitoseg.geometry import Box
from mitoseg.metrics import Counts, count, scores
from mitoseg.workflows.options import default_config_dir

EPFL_TEST = {"image": "epfl_ca1/testing_z000-081.tif", "label": "epfl_ca1/testing_z000-081_groundtruth.tif"}
DEFAULTS = {"checkpoint": None, "output": None, "factors": [1, 1.5, 0.667], "normalize": "checkpoint", "tta": "none"}
DEFAULTS |= {"leave_out": None, "sets": None, "root": None}


def recipe(options: dict[str, Any]) -> Domains:
    """The sets of `data=domains`, EPFL's test half among them."""
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        data: Any = OmegaConf.to_container(compose("train", ["data=domains", "network=unet2d"]).data, resolve=True)
    epfl = {**data["sets"]["epfl"], **EPFL_TEST, "domain": "epfl"}
    sets = {name: given for name, given in data["sets"].items() if not given.get("phantom")}
    given = {key: options[key] or data[key] for key in ("root", "leave_out")}
    return Domains(sets=sets | {"epfl": epfl}, pixel_size=data["pixel_size"], validation=data["validation"], **given)


def scored_box(domains: Domains, name: str, region: Region) -> Box:
    """All of a set that was left out, and of EPFL's test half; the validation rows of others."""
    left_out = domains.sets[name]["domain"] in domains.leave_out
    return region.box if left_out or name == "epfl" else domains.cut(region)[1]


def main(words: list[str]) -> None:
    """Score, and write a table, a JSON file and pictures."""
    options: dict[str, Any] = DEFAULTS | dict(OmegaConf.to_container(OmegaConf.from_dotlist(words)))  # type: ignore[call-overload]
    if unknown := set(options) - set(DEFAULTS):
        raise SystemExit(f"no such option: {', '.join(sorted(unknown))}; choose among {', '.join(DEFAULTS)}")
    named, domains = options["checkpoint"], recipe(options)
    folder = None if options["output"] is None else Path(options["output"])
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    table = Table(
        "set", "voxels", *(f"JAC, size x {factor:g}" for factor in options["factors"]), "precision", "recall", "s"
    )
    results: dict[str, Any] = {"checkpoint": options["checkpoint"], "options": options, "sets": {}}
    for name in options["sets"] or domains.sets:
        found = dict.fromkeys(options["factors"], Counts())
        began = time.process_time()
        for number, region in enumerate(domains.annotated(name)):
            box = scored_box(domains, name, region)
            image, label = region.image.read(box), region.label.read(box)
            assert region.image.voxel_size is not None
            for factor in options["factors"]:
                size = [n * factor for n in region.image.voxel_size]
                model = mitoseg.load(named, **({"image": image, "voxel_size": size} if named is None else {}))
                how = {"normalize": options["normalize"], "tta": options["tta"]}
                mask = model.predict(image, size, **how) >= model.threshold  # type: ignore[arg-type]
                found[factor] += count(mask, label)
                if folder is not None and factor == options["factors"][0]:
                    z = int(np.argmax((label == 1).sum((1, 2))))
                    figure = overlay_figure(image[z], label[z], mask[z], voxel_size=region.image.voxel_size)
                    save_figure(figure, folder / f"{name}_{number}.png")
        each = {factor: scores(total) for factor, total in found.items()}
        first = each[options["factors"][0]]
        row = [f"{each[factor]['jaccard_foreground']:.3f}" for factor in options["factors"]]
        more = [f"{first['precision']:.3f}", f"{first['recall']:.3f}", f"{time.process_time() - began:.0f}"]
        table.add_row(name, f"{found[options['factors'][0]].voxels:,}", *row, *more)
        results["sets"][name] = {str(factor): scored for factor, scored in each.items()}
        print(name, *row, *more, flush=True)
    Console(width=130).print(table)
    if folder is not None:
        (folder / "scores.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
