"""Methods and data as their configs describe them, estimators as they are made, folders of other options."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mitoseg.benchmark import read_methods
from mitoseg.benchmark.methods import (
    TRAINING_KEYS,
    Method,
    check_options,
    checkpoint_of,
    clear,
    describe_run,
    make_estimator,
    open_source,
    read_method,
    read_regions,
    read_source,
    scored_regions,
    training_data,
)
from mitoseg.cli.launch import default_config_dir
from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume
from mitoseg.workflows.benchmark import Job, training_arguments

CONF = default_config_dir()
NAMES = sorted(path.stem for path in (CONF / "methods").glob("*.yaml"))


def methods_of(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("benchmark", [*words, "hydra.mode=RUN"])
    return read_methods(OmegaConf.to_container(cfg.methods, resolve=True), cfg.size)


def test_the_methods_of_the_abstracts_table_come_in_the_order_given():
    assert {method.name for method in methods_of()} == set(NAMES)
    assert [method.name for method in methods_of("methods=[unet25d,forest]")] == ["unet25d", "forest"]
    assert [method.name for method in methods_of("methods=forest")] == ["forest"]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_composes_in_both_sizes(name):
    (full,), (small,) = (methods_of(f"methods=[{name}]", f"size={size}", "seed=5") for size in ("full", "small"))
    assert full.title == small.title
    if full.train is None:
        assert full.estimator["seed"] == 5
        return
    assert small.train[: len(full.train)] == full.train
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for method in (full, small):
            assert compose("train", [*method.train, "hydra.mode=RUN"]).name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("patch_cnn", "context_cnn", "unet25d")])
def test_every_estimator_can_be_made(name):
    pytest.importorskip("mitoseg.classical", reason="the estimators are not there")
    for size in ("full", "small"):
        (method,) = methods_of(f"methods=[{name}]", f"size={size}")
        assert make_estimator(name, method.estimator, (5.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"title": "a"}, "either an estimator or arguments"),
        ({"estimator": {}, "train": []}, "either an estimator or arguments"),
        ({"estimater": {}}, "a method has the keys"),
        ("words", "a method has the keys"),
        ({"train": "experiment=paper"}, "m.train is not a list"),
        ({"train": [], "small": {"epochs": 1}}, "m.small is not a list"),
        ({"estimator": {"_target_": "a.b"}, "small": ["a"]}, "m.small is not a mapping"),
    ],
)
def test_a_method_that_is_not_described_as_it_should_be(config, line):
    with pytest.raises(UserError, match=line):
        read_method("m", config, small=True)


class NoEstimator:
    def __init__(self, voxel_size):
        self.voxel_size = voxel_size


class Refuses:
    def __init__(self, voxel_size):
        raise UserError("so not", voxel_size, "otherwise")


@pytest.mark.parametrize(
    ("kind", "line"), [(NoEstimator, "NoEstimator is not an estimator, it lacks fit, tune"), (Refuses, "so not: ")]
)
def test_an_estimator_that_cannot_be_made_is_one_line(monkeypatch, kind, line):
    monkeypatch.setitem(sys.modules, "made_up", sys.modules[__name__])
    with pytest.raises(UserError) as raised:
        make_estimator("forest", {"_target_": f"made_up.{kind.__name__}"}, None)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def made(folder, status="finished", **options):
    write_json(folder / "record.json", {"status": status, "options": options})
    write_json(folder / "metrics.json", {})


def test_options_of_a_folder_may_change_where_nothing_is_lost(tmp_path):
    assert check_options("m", tmp_path / "none", {"a": 1}, overwrite=False) is None
    made(tmp_path, train=["x"], data={"gap": 2})
    assert check_options("m", tmp_path, {"train": ("x",), "data": {"gap": 2}}, overwrite=False) is None
    with pytest.raises(UserError, match=r"other options \(data.gap was 2, is now 3\).*overwrite=true"):
        check_options("m", tmp_path, {"train": ["x"], "data": {"gap": 3}}, overwrite=False)
    assert check_options("m", tmp_path, {"train": ["x"], "data": {}}, overwrite=True) == "data.gap was 2, is now null"
    made(tmp_path, "failed", a=1)
    assert check_options("m", tmp_path, {"a": 2}, overwrite=False) == "a was 1, is now 2"
    (tmp_path / "train" / "checkpoints").mkdir(parents=True)
    (tmp_path / "train" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError):
        check_options("m", tmp_path, {"a": 2}, overwrite=False)
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def job_of(folder, **changes):
    method = Method("m", "M", None, ("experiment=paper",), None)
    return Job(Method(**{**vars(method), **changes}), folder, {}, ["size=small"], ["seed=1"])


def test_a_network_is_trained_first_goes_on_and_is_not_trained_twice(tmp_path):
    train, scoring = job_of(tmp_path).commands()
    assert train[2:5] == ["train", "seed=1", "experiment=paper"]
    assert train[-1].startswith("hydra.run.dir=")
    assert scoring[2:5] == ["benchmark", "size=small", "job=m"]
    (tmp_path / "train" / "checkpoints").mkdir(parents=True)
    (tmp_path / "train" / "checkpoints" / "last.ckpt").touch()
    assert job_of(tmp_path).commands()[0][-1].startswith("resume=")
    assert job_of(tmp_path, checkpoint="a.ckpt").commands() == [scoring]
    assert job_of(tmp_path, train=None, estimator={}).commands() == [scoring]
    write_json(tmp_path / "train" / "metrics.json", {})
    assert job_of(tmp_path).commands() == [scoring]


def test_what_a_checkpoint_was_trained_on_is_told(tmp_path):
    data = {"regions": {"train": ["a"], "validation": ["b"]}, "files": [{"role": "train.image", "sha256": "1"}]}
    other = {**data, "regions": {"train": ["a"], "validation": ["c"]}}
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    given, own = (Method("m", "M", None, (), checkpoint) for checkpoint in (str(path), None))
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint_of(given, tmp_path)
    path.touch()
    assert checkpoint_of(given, tmp_path) == path
    assert "is not known" in describe_run(given, path, data)["protocol"]
    write_json(tmp_path / "provenance.json", {"data": data, "training_seconds": 5})
    assert "same regions" in describe_run(given, path, data)["protocol"]
    assert "is not known" in describe_run(given, path, other)["protocol"]
    assert describe_run(own, path, data)["training_seconds"] == 5
    with pytest.raises(UserError, match="trained on another split"):
        describe_run(own, path, other)


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


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONF / "data").glob("*.yaml") if path.stem not in {"blocks", "domains"})
)
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
    options = SimpleNamespace(seed=3, accelerator="cpu", prediction="auto", progress=False)
    passed = training_arguments(source, options)
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
