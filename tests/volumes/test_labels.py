import logging
import re

import numpy as np
import pytest
import tifffile
from made_files import refused
from scipy import ndimage

from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, Volume, base, map_labels, open_volume
from mitoseg.volumes.labels import map_mask

MASK_RULE = "label values are a mask of 0 to 255; 128 and above are foreground"


@pytest.fixture
def blobs_zyx():
    """Some instances, numbered from 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(12, 80, 90)), 4)
    labels, _ = ndimage.label(noise > np.quantile(noise, 0.8))
    return labels


class Watched(Volume):
    """A volume that notes what is read."""

    def __init__(self, image_zyx):
        self.inner = ArrayVolume(image_zyx)
        super().__init__(self.inner.info)
        self.boxes = []

    def read(self, box=None):
        self.boxes.append(box)
        return self.inner.read(box)


def smooth(mask, scale=255, sigma=0.7):
    """A mask with anti-aliased edges in each slice, full scale inside."""
    return np.round(ndimage.gaussian_filter(mask.astype(float), (0, sigma, sigma)) * scale)


def blurred(mask):
    imagecodecs = pytest.importorskip("imagecodecs")
    grey = [imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(m, level=80)) for m in np.uint8(mask * 255)]
    return np.stack(grey)


TYPES = ["uint8", "uint16", "int32", "int64", "float32", "float64"]
RULED = {
    "are 0 and 1; 1 is foreground": [lambda m, i, t=t: m.astype(t) for t in [*TYPES, bool]],
    "are a mask of 0 to 255; 128 and above are foreground": [
        *(lambda m, i, t=t: (m * 255).astype(t) for t in TYPES[:4]),
        *(lambda m, i, s=s: smooth(m, sigma=s).astype(np.uint8) for s in (0.5, 0.7, 1.0, 2.0)),
        lambda m, i: blurred(m),
    ],
    "are a mask of 0 to 65535; 32768 and above are foreground": [
        lambda m, i: smooth(m, scale=65535).astype(np.uint16)
    ],
    "run from 0 to 1; 0.5 and above are foreground": [lambda m, i: (smooth(m, scale=1000) / 1000).astype("f4")],
    "are instance numbers; all but 0 are foreground": [
        lambda m, i, t=t: i.astype(t) for t in (*TYPES[:2], "uint32", "int64", "float32")
    ],
}


@pytest.mark.parametrize("rule", RULED)
def test_what_values_are_taken_for(blobs_zyx, rule):
    for make in RULED[rule]:
        stored = make(blobs_zyx > 0, blobs_zyx)
        labels = map_labels(ArrayVolume(stored, voxel_size=(50, 4, 4), path="truth.tif"))
        assert labels.rule == f"label values {rule}"
        assert (labels.dtype, labels.voxel_size, labels.path) == (np.uint8, (50, 4, 4), "truth.tif")
        least = next((n for n in (128, 32768, 0.5) if f" {n} and above" in rule), 1)
        assert np.array_equal(labels.read(), stored >= least)


def test_instances_of_which_one_is_number_255(blobs_zyx):
    sizes = np.bincount(blobs_zyx.ravel())[1:]
    for top in (255, 300, 65535, 70_000, 2**31):
        for chosen in (1 + sizes.argmax(), 1 + sizes.argmin()):
            labels = map_labels(ArrayVolume(np.where(blobs_zyx == chosen, top, blobs_zyx).astype(np.uint32)))
            assert labels.rule == "label values are instance numbers; all but 0 are foreground"
            assert np.array_equal(labels.read(), blobs_zyx > 0)


def test_the_rule_is_one_for_the_whole_volume(monkeypatch):
    """The first slab alone looks like 0 and 1, or like a mask; the whole is instances."""
    monkeypatch.setattr(base, "SLAB_VOXELS", 400)
    ids = np.zeros((6, 20, 20), np.uint16)
    ids[0, 2:8, 2:8], ids[1, 2:8, 2:8], ids[5, 2:8, 2:8] = 1, 255, 256
    volume = Watched(ids)
    labels = map_labels(volume)
    assert len(volume.boxes) == 6  # streamed
    for z in (0, 1, 5):
        volume.boxes.clear()
        box = Box((z, 0, 0), (z + 1, 20, 20))
        assert labels.read(box).sum() == 36
        assert volume.boxes == [box]  # nothing is kept in memory
    mask = np.zeros((6, 20, 20), np.uint8)
    mask[0, 2:8, 2] = 90  # a slab with an edge only
    mask[3, 1:18, 1:18] = 255
    assert map_labels(ArrayVolume(mask)).read().sum((1, 2)).tolist() == [0, 0, 0, 17 * 17, 0, 0]


def test_ignored_voxels(blobs_zyx):
    for ignore_label in (255, 7, -1, 2**32 - 1):  # the first would be a mask's foreground
        stored = (blobs_zyx > 0).astype(np.int64)
        stored[:, :10] = ignore_label
        labels = map_labels(ArrayVolume(stored), ignore_label=ignore_label)
        assert labels.rule == f"label values are 0 and 1; 1 is foreground; value {ignore_label} is ignored"
        assert (labels.read()[:, :10] == 255).all()
        assert np.array_equal(labels.read()[:, 10:], blobs_zyx[:, 10:] > 0)


def test_slices_that_nobody_annotated(blobs_zyx):
    stored = (blobs_zyx > 0).astype(np.uint8)
    stored[:, 0, 0], stored[[1, 3]] = 1, 0
    labels = map_labels(ArrayVolume(stored), ignore_empty_slices=True)
    assert labels.ignored_slices == (1, 3)
    assert labels.rule.endswith("slices without a label are ignored: 1, 3")
    wanted = stored.copy()
    wanted[[1, 3]] = 255
    np.testing.assert_array_equal(labels.read(), wanted)
    for first, last in ((0, 2), (1, 2), (2, 4), (3, 5)):
        part = labels.read(Box((first, 2, 3), (last, 9, 9)))
        np.testing.assert_array_equal(part, wanted[first:last, 2:9, 3:9])
    assert map_labels(ArrayVolume(stored)).read().max() == 1


MEANINGLESS = [
    ({"foreground": 7}, r"none of the values of foreground=\[7\].*they hold 0 \(\d.*%\), 1 \(\d.*%\), 4"),
    ({"foreground": [1, 4], "ignore_label": 4}, "both foreground and ignored"),
    ({"foreground": 1, "rule": "nonzero"}, "leave out label_rule_of_values="),
    ({"foreground": "mito"}, r"not a label value.*foreground=\[3,4\]"),
    *(({"foreground": value}, "not a label value") for value in (True, 1.5)),
    ({"foreground": []}, "contains no value"),
    ({"ignore_label": "x"}, "ignore_label is not a whole number"),
    ({"rule": "majority"}, r"no such rule.*'majority'; choose one of auto, nonzero, half"),
]


def test_rules_that_the_user_chooses():
    for rule, stored, foreground in (
        *(("nonzero", [0, 100, 128, 255], [0, 1, 1, 1]), ("half", [0, 100, 128, 255], [0, 0, 1, 1])),
        *(("half", [0, 0, 0, 1], [0, 0, 0, 1]), ("nonzero", [0, 0, 0, 1], [0, 0, 0, 1])),
        ("auto", [0, 1, 2, 255], [0, 1, 1, 1]),  # few voxels
    ):
        labels = map_labels(ArrayVolume(np.array(stored, np.uint8).reshape(1, 1, 4)), rule=rule)
        assert labels.read().ravel().tolist() == foreground
    for options, says in MEANINGLESS:
        refused(says, map_labels, ArrayVolume(classes(0, 1, 4)), **options)
    for voxel, line in {
        **{np.nan: "NaN or infinite", np.inf: "NaN or infinite", 300.5: "not a mask.*nonzero"},
        -1: "negative values, down to -1.*ignore_label=-1",
    }.items():
        stored = np.ones((2, 3, 4))
        stored[1, 2, 3] = voxel
        refused(line, map_labels, ArrayVolume(stored))
    for value, options in ((0, {}), (100, {"rule": "half"}), (7, {"ignore_label": 7}), (0.4, {})):
        volume = ArrayVolume(np.full((2, 3, 4), value, None if value == 0.4 else np.uint8), path="truth.tif")
        refused(r"no foreground.*truth\.tif", map_labels, volume, **options)
        assert set(np.unique(map_labels(volume, require_foreground=False, **options).read())) <= {0, 255}


@pytest.mark.parametrize(
    ("name", "depth", "share"),
    [pytest.param("training", 165, 0.0563, marks=pytest.mark.slow), ("testing_z000-081", 82, 0.0619)],
)
def test_labels_of_epfl(real_data, name, depth, share):
    labels = map_labels(open_volume(str(real_data / "epfl_ca1" / f"{name}_groundtruth.tif")))
    assert labels.rule == MASK_RULE
    assert labels.shape == (depth, 768, 1024)
    label_zyx = labels.read()
    assert set(np.unique(label_zyx[40])) == {0, 1}
    assert label_zyx.mean() == pytest.approx(share, abs=1e-4)


def classes(*values, shape=(6, 20, 30)):
    """Blocks of some values, the first around the others."""
    stored = np.full(shape, values[0], np.uint64 if max(values) >= 2**63 else None)
    for i, value in enumerate(values[1:]):
        stored[1:4, 4 * i + 1 : 4 * i + 4, 3:20] = value
    return stored


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64, np.float32])
def test_several_values_without_0_are_asked_for(dtype):
    for values in ((1, 2), (1, 2, 3), (255, 128)):
        stored = classes(*values).astype(dtype)
        says = rf"no label is 0.* {values[1]} \(\d.*foreground=.*label_rule_of_values=nonzero"
        refused(says, map_labels, ArrayVolume(stored))
        assert map_labels(ArrayVolume(stored), rule="nonzero").read().all()
        assert np.array_equal(map_labels(ArrayVolume(stored), foreground=values[1]).read(), stored == values[1])
        assert map_labels(ArrayVolume(stored, metadata={"kind": "instances"})).read().all()


CHOSEN = [(2, [2]), ([2, 3], [2, 3]), ("3", [3]), ([3, 2**63 + 7], [3, 2**63 + 7]), (0, [0])]


def test_the_values_of_one_organelle(caplog):
    stored = classes(0, 1, 2, 3, 2**63 + 7).astype(np.uint64)
    for foreground, wanted in CHOSEN:
        labels = map_labels(ArrayVolume(stored, metadata={"kind": "instances"}), foreground=foreground, ignore_label=1)
        read = labels.read()
        assert np.array_equal(read == 1, np.isin(stored, np.array(wanted, np.uint64)))
        assert np.array_equal(read == 255, stored == 1)
        assert not labels.numbered
        assert "foreground, as chosen" in labels.rule
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    map_labels(ArrayVolume(classes(0, 1, 4)), foreground=[4, 9])
    assert "hold no 9, only 0 (" in caplog.text


OTHERWISE = [
    ((0, 1, 2), r"1 \(.*taken as instances.*foreground=2"),
    ((0, 1, 2, 255), "255, counts as foreground; give ignore_label=255"),
    *(((0, 1, top), f"ignore_label={top}") for top in (255, 65535, 2**32 - 1)),
    ((7,), r"every voxel is foreground; the values are 7 \(100 %\)"),
    *(((value,), "every voxel is foreground") for value in (1, 255)),
]


def test_what_may_be_meant_otherwise_is_told(caplog):
    for values, says in OTHERWISE:
        caplog.clear()
        map_labels(ArrayVolume(classes(*values)))
        assert re.search(says, caplog.text)


def test_no_label_of_cremi_and_paintera():
    top = 2**64 - 1
    stored = classes(top, 1, 2**40).astype(np.uint64)
    labels = map_labels(ArrayVolume(stored))
    assert labels.numbered
    assert np.array_equal(labels.read(), stored != top)
    assert set(np.unique(labels.stored.read()).tolist()) == {0, 1, 2**40}
    stored[0] = 0
    refused(f"ignore_label={top}", map_labels, ArrayVolume(stored))
    assert (map_labels(ArrayVolume(stored), ignore_label=top).read() == 255).sum() == (stored == top).sum()


def test_an_image_in_place_of_labels():
    grey = np.random.default_rng(0).normal(120, 30, (6, 40, 50)).clip(1, 255)
    for stored in (np.uint8(grey), np.uint16(200 * grey), grey, grey / 255):
        refused("an image instead of labels", map_labels, ArrayVolume(stored))
        assert map_labels(ArrayVolume(stored), rule="half").read().any()


def test_results_of_other_programs_as_masks():
    stored = classes(1, 2)
    for dtype in (np.uint8, np.uint32):
        volume = ArrayVolume(stored.astype(dtype))
        refused("no label is 0", map_mask, volume, kind="mask")
        chosen = map_mask(volume, 2)
        assert chosen.info.metadata == {"kind": "mask"}
        assert np.array_equal(chosen.read(), stored == 2)
        assert map_mask(volume, kind="instances") is volume
        refused("kind=probability", map_mask, volume, 2, "probability")
    half = np.zeros((3, 6, 8), np.float16)
    half[1, 2:5, 2:5] = 3
    assert np.array_equal(map_labels(ArrayVolume(half)).read(), half > 0)
    ours = ArrayVolume(stored, metadata={"kind": "instances"})
    assert map_mask(ours) is ours


def test_coloured_results_of_other_programs(tmp_path):
    rgb = np.zeros((5, 20, 30, 3), np.uint8)
    rgb[:, 2:8, 3:9], rgb[:, 12:18, 3:9] = (200, 0, 0), (0, 0, 90)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    volume = open_volume(tmp_path / "a.tif")
    for kind in (None, "mask"):
        refused(r"2 colours: .*#00005a .*#c80000 .*foreground=", map_mask, volume, kind=kind)
    assert np.array_equal(map_mask(volume, "#c80000").read(), rgb[..., 0] > 0)
    assert len(np.unique(map_mask(volume, kind="instances").read())) == 3
    tifffile.imwrite(tmp_path / "b.tif", rgb * (rgb[..., :1] > 0), photometric="rgb")
    one = open_volume(tmp_path / "b.tif")
    assert map_mask(one) is one
