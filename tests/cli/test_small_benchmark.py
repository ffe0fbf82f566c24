"""``benchmark size=small`` on the phantom as it comes: every row is there, and neighbours help every method."""

import csv

import numpy as np
import pytest
from tiny_training import command

from mitoseg.classical import NeilaSegmenter, StructuredSegmenter, SupervoxelSegmenter
from mitoseg.volumes import open_volume

METHODS = {"neila": NeilaSegmenter, "supervoxel": SupervoxelSegmenter, "structured": StructuredSegmenter}

pytest.importorskip("maxflow")


def jaccard(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def unary_only(name, estimator, image_zyx):
    if name == "neila":
        return estimator.predict(image_zyx, regularize=False)
    estimator.regularize = False
    return estimator.predict(image_zyx)


@pytest.mark.slow
def test_neighbours_help_every_method_on_the_phantom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["size=small", f"methods=[forest,{','.join(METHODS)}]", "data.root=phantom", "progress=false"]
    assert command(monkeypatch, "benchmark", *words, "hydra.run.dir=run") == 0
    with (tmp_path / "run" / "table.csv").open(newline="", encoding="utf-8") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    folder = next(tmp_path.glob("phantom/fibsem_16x*"))
    image_zyx, truth_zyx = (open_volume(str(folder / f"{name}.tif")).read() for name in ("image", "label"))
    for name, kind in METHODS.items():
        estimator = kind.load(tmp_path / "run" / name / "model" / "estimator")
        alone = jaccard(unary_only(name, estimator, image_zyx) > 0, truth_zyx > 0)
        assert float(table[name]["jaccard_foreground"]) > alone, name
    rows = {name: float(table[name]["jaccard_foreground"]) for name in ("forest", *METHODS)}
    assert min(rows["supervoxel"], rows["structured"]) > max(rows["forest"], rows["neila"])
    assert np.isfinite(list(rows.values())).all()
