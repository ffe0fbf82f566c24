"""Sets of many tissues: what trains, validates and tests, with which voxels."""

import numpy as np
import pytest
import tifffile

from mitoseg.datasets import IGNORE, Domains
from mitoseg.errors import UserError

VALIDATION = {"share": 0.25, "gap": 100, "slices": 2}


@pytest.fixture
def sets(tmp_path):
    """Two domains of two sets each: volumes and single images, of several pixel sizes."""
    found = {}
    for number, (name, shape, pixel) in enumerate(
        [("a", (3, 80, 64), 8.0), ("a2", (1, 80, 48), 10.0), ("b", (2, 104, 64), 4.0), ("b2", (80, 80), 8.0)]
    ):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        label[..., 8:24, 8:24] = label[..., -16:, 20:40] = 3
        label[..., :4, :] = 255
        image = (rng.normal(100 + 20 * number, 10, shape) - 30 * (label == 3)).astype(np.uint8)
        for kind, array in (("image", image), ("label", label)):
            tifffile.imwrite(tmp_path / f"{name}_{kind}.tif", array, photometric="minisblack")
        files = {"image": f"{name}_image.tif", "label": f"{name}_label.tif", "domain": name[0], "unknown": 255}
        axes = {"axes": "zyx"} if len(shape) == 3 else {}
        found[name] = {**files, **axes, "voxel_size": [30, pixel, pixel]}
    return found


def recipe(tmp_path, sets, **options):
    return Domains(root=str(tmp_path), sets=sets, validation=VALIDATION, **options)


def test_regions_are_cut_in_y_and_seen_with_the_nominal_pixels(tmp_path, sets):
    splits = recipe(tmp_path, sets, pixel_size=8).splits()
    assert [region.domain for region in splits.train] == ["a", "a", "b", "b"]
    assert [region.box.shape for region in splits.train] == [(3, 47, 64), (1, 50, 48), (2, 53, 64), (1, 47, 80)]
    assert [region.box.shape for region in splits.validation] == [(2, 20, 64), (1, 25, 60), (2, 13, 32), (1, 20, 80)]
    assert splits.voxel_size == (8, 8, 8)
    for region in (*splits.train, *splits.validation):
        label, image = region.read_label(), region.read_image()
        assert image.shape == label.shape == region.box.shape
        assert image[label == 1].mean() < image[label == 0].mean() - 1.5, "image and label lie on each other"
        assert set(np.unique(label)) == ({0, 1, IGNORE} if region in splits.train else {0, 1})
    whole = splits.train[0].image.read()
    assert abs(whole.mean()) < 1e-3
    assert abs(whole.std() - 1) < 1e-3


def test_a_domain_is_left_out_whole(tmp_path, sets):
    splits = recipe(tmp_path, sets, leave_out="b").splits()
    assert {region.domain for region in (*splits.train, *splits.validation)} == {"a"}
    assert splits.provenance["licence"] == "a: not said; a2: not said"
    assert [region.box.shape for region in splits.test] == [(2, 52, 32), (1, 80, 80)]
    assert {file["role"] for file in splits.provenance["files"] if "b_" in file["path"]} == {
        "test.image",
        "test.label",
    }


def test_a_small_set_trains_whole(tmp_path, sets, caplog):
    splits = Domains(root=str(tmp_path), sets={"a": sets["a"]}, validation={"gap": 1000}).splits()
    assert splits.train[0].box.shape == (3, 80, 64)
    assert not splits.validation
    assert "too small to hold out rows" in caplog.text


def test_a_phantom_may_be_one_of_the_sets(tmp_path, sets, monkeypatch):
    monkeypatch.setattr("mitoseg.datasets.domains.SHAPE", (3, 64, 64))
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")
    data = recipe(tmp_path, {"p": {"phantom": "sbem"}, "a": None, "b": sets["b"]}, more={"b": None})
    data.prepare()
    (region,) = data.splits().train
    assert (region.domain, region.image.voxel_size) == ("p", (30, 6, 6))


@pytest.mark.parametrize(
    ("changed", "options", "words"),
    [
        ({"image": "none.tif"}, {}, "set a: no such volume.*none.tif.*data.sets.a"),
        ({"label": None}, {}, "set a lacks image or label"),
        ({"pixels": 8}, {}, "unknown keys in data.sets.a.*pixels"),
        ({"voxel_size": None}, {}, "set a: the image has no pixel size"),
        ({"voxel_size": [30, -8, 8]}, {}, "set a: .*voxel_size"),
        ({"foreground": 9}, {}, "set a: .*9"),
        ({"label": "b_label.tif"}, {}, "set a: .*shape"),
        ({}, {"leave_out": "c"}, "data.leave_out names no domain.*a, b"),
        ({}, {"leave_out": ["a", "b"]}, "leaves nothing to train on"),
        ({}, {"pixel_size": 0}, "data.pixel_size"),
    ],
)
def test_a_bad_entry_is_told_in_one_line(tmp_path, sets, changed, options, words):
    with pytest.raises(UserError, match=words) as error:
        recipe(tmp_path, {**sets, "a": {**sets["a"], **changed}}, **options).splits()
    assert "\n" not in str(error.value)
