import inspect
import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mitoseg.datasets
from mitoseg.datasets import IGNORE, Files, Recipe
from mitoseg.datasets.files import Named, find, resolve
from mitoseg.datasets.published import Published
from mitoseg.errors import UserError
from mitoseg.geometry import Box

CONF = Path(__file__).parents[2] / "conf" / "data"
SHAPE = (20, 16, 24)


def write_pair(folder, stem, shape=SHAPE, seed=0, foreground=255):
    """An image whose voxels count, and labels with a share of foreground."""
    label = (np.random.default_rng(seed).random(shape) < 0.2).astype(np.uint8) * foreground
    image = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    tifffile.imwrite(folder / f"{stem}.tif", image, photometric="minisblack")
    tifffile.imwrite(folder / f"{stem}_label.tif", label, photometric="minisblack")
    return image, label


@pytest.fixture
def data(tmp_path):
    write_pair(tmp_path, "a")
    return tmp_path


def files(root, stems=("a",), **options):
    train = {"image": [f"{s}.tif" for s in stems], "label": [f"{s}_label.tif" for s in stems]}
    return Files(root=str(root), train=train | options.pop("train", {}), **options)


def boxes(regions):
    return [(Path(r.image.path).name, str(r.box)) for r in regions]


def test_the_last_slices_of_each_volume_validate_and_regions_read_their_own_voxels(data):
    write_pair(data, "b", (10, 16, 24), seed=1, foreground=1)
    recipe: Recipe = files(data, ["a", "b"])
    recipe.prepare()
    splits = recipe.splits()
    assert boxes(splits.train) == [("a.tif", "[0:15,0:16,0:24]"), ("b.tif", "[0:6,0:16,0:24]")]
    assert boxes(splits.validation) == [("a.tif", "[17:20,0:16,0:24]"), ("b.tif", "[8:10,0:16,0:24]")]
    assert splits.test == ()
    image, label = write_pair(data, "a")
    part = files(data, train={"box": "[2:18,4:,:20]"}, padding="none").splits()
    (train,), (held,) = part.train, part.validation
    assert (train.box, held.box) == (Box((2, 4, 0), (14, 16, 20)), Box((16, 4, 0), (18, 16, 20)))
    np.testing.assert_array_equal(train.read_image(), image[2:14, 4:, :20])
    np.testing.assert_array_equal(train.read_label(), label[2:14, 4:, :20] == 255)


def test_a_test_volume_and_annotated_parts(data):
    write_pair(data, "b", (10, 16, 24), seed=1)
    test = {"image": "b.tif", "label": str(data / "b_label.tif"), "box": ["3:9", ":", "8:"]}
    splits = files(data, ["a"], train={"box": [None]}, test=test).splits()
    assert boxes(splits.test) == [("b.tif", "[3:9,0:16,8:24]")]
    assert boxes(splits.train) == [("a.tif", "[0:15,0:16,0:24]")]
    beside = {"box": ["[0:20,0:8,:]", "[0:20,8:16,:]"]}  # of one volume
    held = files(data, ["a", "a"], train=beside).splits().validation
    assert boxes(held) == [("a.tif", "[17:20,0:8,0:24]"), ("a.tif", "[17:20,8:16,0:24]")]


@pytest.mark.parametrize(
    ("label", "given", "entries"),
    [
        *(("b", None, (None,)), ("b", 2, (2,)), ("b", [3, 4], ([3, 4],)), ("b", [[3, 4]], ([3, 4],))),
        (["b", "c"], "#ff0000", ("#ff0000", "#ff0000")),
        *((["b", "c"], [[3, 4], None], ([3, 4], None)), (["b", "c"], [3, 4], (3, 4))),
    ],
)
def test_the_values_of_mitochondria_for_each_volume(label, given, entries):
    named = Named.of({"image": label, "label": label, "foreground": given}, "train")
    assert named.foreground_labels("train") == entries


def test_folds(data):
    write_pair(data, "b", (10, 16, 24), seed=1)
    splits = files(data, folds=5, fold=4, validation={"gap": 1}).splits()
    cut = ["[5:15,0:16,0:24]", "[0:4,0:16,0:24]", "[16:20,0:16,0:24]"]
    assert boxes((*splits.train, *splits.validation, *splits.test)) == [("a.tif", box) for box in cut]
    part = files(data, train={"box": "[5:20,:,:]"}, folds=3, fold=0, validation={"gap": 0}).splits()
    assert boxes(part.test) == [("a.tif", "[5:10,0:16,0:24]")]
    named = files(data, folds=5, fold=4, test={"image": "b.tif", "label": "b_label.tif"}).splits()
    assert boxes(named.validation) == [("a.tif", "[16:20,0:16,0:24]")]
    assert boxes(named.test) == [("b.tif", "[0:10,0:16,0:24]")]


def test_ignored_voxels(tmp_path):
    label = np.zeros(SHAPE, np.uint8)
    label[:, :8], label[:, 8:10] = 1, 7
    tifffile.imwrite(tmp_path / "a.tif", label, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a_label.tif", label, photometric="minisblack")
    mapped = files(tmp_path, ignore_label=7, padding="none").splits().train[0].read_label()
    assert (mapped[:, :8] == 1).all()
    assert (mapped[:, 8:10] == IGNORE).all()
    assert (mapped[:, 10:] == 0).all()


@pytest.mark.parametrize(
    ("options", "train"),
    [
        ({"foreground": [2, 255]}, {}),
        ({}, {"foreground": [2, None]}),
        ({"foreground": 2, "label_rule_of_values": "nonzero"}, {"foreground": [None, [255]]}),
    ],
)
def test_the_values_of_mitochondria(tmp_path, options, train):
    """Classes 1 and 2 without 0, as ilastik writes them, beside a mask."""
    wanted = []
    for stem in "ab":
        label = write_pair(tmp_path, stem)[1]
        wanted.append(label > 0)
    tifffile.imwrite(tmp_path / "a_label.tif", (wanted[0] + 1).astype(np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="no label is 0"):
        files(tmp_path, ["a", "b"]).splits()
    splits = files(tmp_path, ["a", "b"], train=dict(train), padding="none", **options).splits()
    for region, label in zip(splits.train, wanted, strict=True):
        np.testing.assert_array_equal(region.read_label(), label[region.box.slices])
    assert "2 (" in splits.provenance["label_rules"][str(tmp_path / "a_label.tif")]


def test_datasets_in_one_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.zeros(SHAPE, np.uint8)
        file["mito"] = np.eye(*SHAPE[1:], dtype=np.uint8)[None].repeat(SHAPE[0], 0)
    named = {"image": f"{tmp_path}/a.h5:/raw", "label": f"{tmp_path}/a.h5:/mito"}
    recipe = Files(train=named, voxel_size=[40, 8, 8], padding="none")
    splits = recipe.splits()
    assert splits.voxel_size == (40.0, 8.0, 8.0)
    assert splits.train[0].read_label().sum() == 15 * 16


def test_colour_images_with_grey_labels(tmp_path):
    _, label = write_pair(tmp_path, "a")
    tifffile.imwrite(tmp_path / "a.tif", np.stack([label] * 3, axis=-1), photometric="rgb")
    train = files(tmp_path, axes="zyxc", padding="none").splits().train[0]
    np.testing.assert_array_equal(train.read_image(), label[:15])
    np.testing.assert_array_equal(train.read_label(), label[:15] == 255)
    with pytest.raises(UserError, match="does not fit"):
        files(tmp_path, axes="zyx").splits()


def test_provenance_is_plain_and_complete(data):
    recipe = files(data)
    splits = recipe.splits()
    known = json.loads(json.dumps(splits.provenance))
    assert known["name"] == "files"
    told = [(f["role"], f["bytes"] > 0, len(f["sha256"])) for f in known["files"]]
    assert told == [("train.image", True, 64), ("train.label", True, 64)]
    assert list(known["label_rules"].values()) == ["label values are a mask of 0 to 255; 128 and above are foreground"]
    assert known["regions"]["validation"] == ["a.tif [17:20,0:16,0:24]"]
    assert known["warnings"] == []
    assert splits.voxel_size is known["voxel_size"] is None
    assert recipe.splits() is splits


def test_slices_that_are_missing_are_told(data, caplog):
    """Training goes on: neighbours that are none are few among many."""
    image = tifffile.imread(data / "a.tif")
    (data / "slices").mkdir()
    for z, image_yx in enumerate(image):
        tifffile.imwrite(data / "slices" / f"s{z + (z > 7):03d}.tif", image_yx)
    recipe = Files(root=str(data), train={"image": ["slices"], "label": ["a_label.tif"]})
    with caplog.at_level(logging.WARNING):
        recipe.splits()
    (told,) = (message for message in caplog.messages if "missing" in message)
    assert told.endswith("slices: 1 slice is missing by the numbers of the files, between s007.tif and s009.tif")


def test_volumes_of_different_voxel_size_are_told_once(tmp_path, caplog):
    for stem, size in (("a", 8.0), ("b", 16.0)):
        with h5py.File(tmp_path / f"{stem}.h5", "w") as file:
            for name in ("x", "y"):
                file[name] = np.eye(16, 24, dtype=np.uint8)[None].repeat(20, 0)
                file[name].attrs["element_size_um"] = [0.03, size / 1000, size / 1000]
    images, labels = ([f"{tmp_path / stem}.h5:/{name}" for stem in "ab"] for name in "xy")
    with caplog.at_level(logging.WARNING, "mitoseg.datasets"):
        splits = Files(train={"image": images, "label": labels}).splits()
    (warning,) = splits.provenance["warnings"]
    assert "differ in voxel size" in warning
    assert [r.getMessage() for r in caplog.records] == [f"files: {warning}"]
    assert splits.voxel_size == (30.0, 8.0, 8.0)


def test_parts_that_come_close_are_told(data):
    test = {"image": "a.tif", "label": "a_label.tif", "box": "[14:,:,:]"}
    splits = files(data, train={"box": "[0:15,:,:]"}, test=test).splits()
    assert boxes(splits.train) == [("a.tif", "[0:11,0:16,0:24]")]  # validation 13:15 touches nothing of training
    halves = {"box": ["[0:10,:,:]", ["10:", ":", ":"]]}
    near = files(data, ["a", "a"], train=halves, validation={"share": 0.2}).splits()
    assert boxes(near.validation) == [("a.tif", "[8:10,0:16,0:24]"), ("a.tif", "[18:20,0:16,0:24]")]
    assert "fewer than 2 slices apart" in near.provenance["warnings"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": {"image": None, "label": None}}, r"no training volumes are named; give data\.train\.image=VOLUME"),
        ({"train": {"label": None}}, "names 1 images but 0 labels"),
        ({"train": {"image": "none.tif"}}, r"no such volume: 'none\.tif'; relative names .* data\.root="),
        ({"train": {"label": "b_label.tif"}}, "image and labels differ in shape"),
        ({"train": {"label": "empty.tif"}}, "no foreground"),
        ({"train": {"box": "[0:21,:,:]"}}, "leaves the volume"),
        ({"train": {"box": "[0:3,:,:]"}}, "too few slices"),
        ({"train": {"box": ["[0:9,:,:]", "[9:20,:,:]"]}}, "2 boxes for 1 volumes"),
        ({"folds": 5, "validation": {"gap": 4}}, "too few slices for the folds"),
        ({"validation": {"slabs": [[0, 40]]}}, "leaves the labelled slices"),
        ({"label_rule_of_values": "odd"}, "no such rule"),
        ({"test": {"image": "a.tif", "label": "a_label.tif"}}, "parts of the data overlap"),
        ({"test": {"image": "b.tif"}}, "names 1 images but 0 labels"),
        ({"train": {"image": ["a.tif", "a.tif"]}}, "names 2 images but 1 labels"),
        ({"train": {"label": "a.tif"}}, "image and labels are one file"),
        ({"train": {"images": "a"}}, r"unknown keys in data\.train: \['images'\]"),
        ({"train": {"foreground": [[1], 2]}}, r"2 entries of foreground.*data\.train\.foreground="),
        ({"stems": "aa", "train": {"box": ["[0:20,0:9,:]", "[0:20,8:16,:]"]}}, "parts of the data overlap"),
    ],
)
def test_mistakes_are_told_in_one_line(data, options, message):
    write_pair(data, "b", (10, 16, 24))
    write_pair(data, "empty", foreground=0)
    (data / "empty_label.tif").replace(data / "empty.tif")
    with pytest.raises(UserError, match=message) as caught:
        files(data, **options).splits()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["files", "lucchi", "lucchi_pp", "vnc", "phantom"])
def test_every_option_is_a_key_and_every_key_an_option(name):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert config.pop("defaults") == ["blocks", "_self_"]
    target = config.pop("recipe")
    assert target["_partial_"] is True
    cls = getattr(mitoseg.datasets, target["_target_"].removeprefix("mitoseg.datasets."))
    options = set(inspect.signature(cls).parameters)
    if issubclass(cls, Published):  # takes the options of Files by name
        options = options - {"options"} | set(inspect.signature(Files).parameters)
    batching = set(OmegaConf.load(CONF / "blocks.yaml"))  # a data set may choose another default for one of these
    config = {key: value for key, value in config.items() if key not in batching}
    assert set(config) == options
    recipe = cls(**OmegaConf.create(config))
    assert recipe.validation == cls().validation
    assert recipe.voxel_size == cls().voxel_size


@pytest.mark.parametrize("typed", ["[2:18,:,4:20]", "[[2:18,:,4:20]]", "['[2:18,:,4:20]']"])
def test_options_as_they_are_typed_and_omegaconf_makes_them(data, typed):
    value = OverridesParser.create().parse_override(f"data.train.box={typed}").value()
    train = OmegaConf.create({"image": ["a.tif"], "label": ["a_label.tif"], "box": value})
    options = OmegaConf.create("{validation: {slabs: [[2, 4]], share: 0.1, gap: 1}, voxel_size: [40, 8, 8]}")
    splits = Files(root=str(data), train=train, **options).splits()
    assert boxes(splits.train) == [("a.tif", "[5:18,0:16,4:20]")]


def test_named_volumes_lie_in_root_or_here(tmp_path, monkeypatch):
    root, here = tmp_path / "root", tmp_path / "here"
    for folder in (root, here):
        folder.mkdir()
        (folder / "both.h5").touch()
    (here / "here.tif").touch()
    monkeypatch.chdir(here)
    assert resolve("both.h5:/raw", root) == str(root / "both.h5:/raw")
    assert resolve("here.tif", root) == "here.tif"
    assert resolve(str(here / "here.tif"), root) == str(here / "here.tif")
    assert resolve("both.h5", None) == "both.h5"
    for where in (root, None):
        with pytest.raises(UserError, match=r"no such volume: 'none\.tif'"):
            resolve("none.tif", where)


def test_official_names_are_found_where_archives_leave_them(tmp_path):
    for name in ("set/Set-Master/Stack1/Raw", "set/Set-Master/stack2/raw", "set/.hidden/stack3/raw"):
        (tmp_path / name).mkdir(parents=True)
    assert find(tmp_path, "stack1/raw", deep=True) == str(tmp_path / "set/Set-Master/Stack1/Raw")
    assert find(tmp_path, "stack1/raw", deep=False) is None
    assert find(tmp_path, "stack3/raw", deep=True) is None
    assert find(tmp_path / "set/Set-Master/stack2", "stack1/raw", deep=False) is not None  # right in root
    assert find(tmp_path / "none", "a.tif", deep=True) is None
