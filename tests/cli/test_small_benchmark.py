"""The estimators of ``benchmark size=small`` on the phantom as it comes: neighbours help every method."""

import csv

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_training import command

from mitoseg.benchmark.methods import make_estimator, open_source, read_methods, read_regions, read_source
from mitoseg.cli.launch import default_config_dir

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
    words = ["size=small", "methods=[forest]", "data.root=phantom", "progress=false"]
    assert command(monkeypatch, "benchmark", *words, "hydra.run.dir=run") == 0
    with (tmp_path / "run" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["method"]: row["jaccard_foreground"] for row in csv.DictReader(file)}
    rows = {"forest": float(rows["forest"])}
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        config = compose("benchmark", ["methods=[neila,supervoxel,structured]", *words[2:], "hydra.mode=RUN"])
    config = OmegaConf.to_container(config, resolve=True)
    splits = open_source(read_source("phantom", config["data"], config["small"]["phantom"], {"data.root"}))
    image_zyx, truth_zyx = splits.test[0].read_image(), splits.test[0].read_label() > 0
    for method in read_methods(config["methods"], "small"):
        estimator = make_estimator(method.name, method.estimator, splits.voxel_size)
        estimator.fit(*read_regions(splits.train))
        estimator.tune(*read_regions(splits.validation))
        rows[method.name] = jaccard(estimator.predict(image_zyx) > 0, truth_zyx)
        assert rows[method.name] > jaccard(unary_only(method.name, estimator, image_zyx) > 0, truth_zyx)
    assert min(rows["supervoxel"], rows["structured"]) > max(rows["forest"], rows["neila"])
    assert np.isfinite(list(rows.values())).all()
