"""The data set of a benchmark: what it passes on to training, what size=small changes, which part is scored."""

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mitoseg.benchmark.estimator import read_regions, training_data
from mitoseg.benchmark.methods import TRAINING_KEYS, open_source, read_source, scored_regions
from mitoseg.cli.launch import default_config_dir
from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume
from mitoseg.workflows.benchmark import training_arguments

CONF = default_config_dir()


def composed(config, *words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*words, "hydra.mode=RUN"])


def source_of(*words, name="phantom", less=None, given=()):
    cfg = composed("benchmark", f"data={name}", *words)
    return read_source(name, OmegaConf.to_container(cfg.data, resolve=True), less or {}, given)


def test_training_keys_are_those_of_the_blocks():
    files = (CONF / group / "blocks.yaml" for group in ("data", "sampling"))
    keys = {key for file in files for key in yaml.safe_load(file.read_text(encoding="utf-8"))}
    assert keys - {"_target_"} == TRAINING_KEYS


def test_small_changes_what_the_user_has_not_given():
    less = {"train_shape": [8, 64, 64], "test_shape": [4, 64, 64], "validation": {"gap": 1}}
    source = source_of("data.test_shape=[5,70,70]", less=less, given={"data.test_shape"})
    assert source.options["train_shape"] == [8, 64, 64]
    assert source.options["test_shape"] == [5, 70, 70]
    assert source.options["validation"] == {"slabs": None, "share": 0.2, "gap": 1}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml") if path.stem != "blocks"))
def test_training_gets_the_very_data_of_the_benchmark(name):
    """Whatever experiment a method trains with; paths with odd characters as well."""
    words = ['data.root="my [1] = ü#, a"']
    if name != "phantom":
        words += [
            'data.train.box=["[0:5,:,:]"]',
            "data.validation.slabs=[[0,2],[3,4]]",
            "data.test.image=[a.tif,b.tif]",
        ]
    source = source_of(*words, name=name)
    passed = training_arguments(source, seed=3, accelerator="cpu", prediction="auto", progress=False)
    for experiment in ("paper_tiles", "unet25d") if name == "phantom" else ("unet25d",):
        cfg = composed("train", *passed, f"experiment={experiment}")
        again = read_source(name, OmegaConf.to_container(cfg.data, resolve=True), {}, ())
        assert again == source
        assert (cfg.seed, cfg.test, cfg.trainer.accelerator) == (3, False, "cpu")


def test_only_a_part_with_regions_is_scored(tmp_path):
    shapes = ["data.train_shape=[8,64,64]", "data.test_shape=[3,64,64]"]
    source = source_of(f"data.root={tmp_path}", *shapes)
    splits = open_source(source)
    assert scored_regions(splits, "test") == splits.test
    assert scored_regions(splits, "validation") == splits.validation
    with pytest.raises(UserError, match="no such part"):
        scored_regions(splits, "train")
    with pytest.raises(UserError, match="no test volume"):
        scored_regions(type(splits)(splits.train, splits.validation), "test")
    other = open_source(source_of(f"data.root={tmp_path}", *shapes, "data.validation.gap=1"))
    assert training_data(splits.provenance) == training_data(open_source(source).provenance)
    assert training_data(splits.provenance) != training_data(other.provenance)


def test_an_estimator_sees_tissue_around_its_regions_but_no_labels_there():
    rng = np.random.default_rng(0)
    image_zyx, label_zyx = rng.integers(0, 256, (30, 8, 9), np.uint8), rng.integers(0, 2, (30, 8, 9), np.uint8)
    image, label = ArrayVolume(image_zyx, path="a"), ArrayVolume(label_zyx, path="b")
    slabs = [Region(image, label, Box((a, 2, 0), (b, 8, 9))) for a, b in ((5, 9), (20, 22))]
    seen_zyx, given_zyx = read_regions(slabs, context=3)
    np.testing.assert_array_equal(seen_zyx, image_zyx[2:25])
    expected_zyx = np.full_like(label_zyx, 255)
    for a, b in ((5, 9), (20, 22)):
        expected_zyx[a:b, 2:] = label_zyx[a:b, 2:]
    np.testing.assert_array_equal(given_zyx, expected_zyx[2:25])
    other = Region(ArrayVolume(image_zyx, path="c"), label, slabs[0].box)
    with pytest.raises(UserError, match="learns from one volume"):
        read_regions([*slabs, other])
