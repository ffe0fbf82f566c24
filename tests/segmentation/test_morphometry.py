"""The table of a volume: against skimage, formulas and brute force, and the same however the volume is cut up."""

import math

import numpy as np
import pandas as pd
import pytest
from other_places import Elsewhere
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from skimage.measure import regionprops
from solids import ellipsoid, ellipsoid_area

from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.segmentation import Sources, label_array, measure_instances, summarise
from mitoseg.segmentation.blockwise import STARTS, STOPS
from mitoseg.segmentation.morphometry import DISTANCE, column_names
from mitoseg.volumes import ArrayVolume, open_volume

SIZE = (20.0, 5.0, 5.0)


def scene(shape=(24, 90, 90), count=14, seed=0):
    """Ellipsoids of SIZE voxels, of which some lie beyond the border in part."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    at = np.stack(np.indices(shape), -1) * np.array(SIZE)
    for n in range(1, count + 1):
        centre = rng.uniform(0, shape) * np.array(SIZE)
        away = ((at - centre) / rng.uniform(35, 80, 3)) ** 2
        labels[(away.sum(-1) <= 1) & (labels == 0)] = n
    return labels


@pytest.fixture(scope="module")
def volumes():
    labels = scene()
    rng = np.random.default_rng(1)
    image = rng.integers(60, 180, labels.shape).astype(np.uint8)
    probability = rng.uniform(0, 1, labels.shape).astype(np.float32)
    return labels, image, probability


def sources(labels, image=None, probability=None, size=SIZE, **more):
    wrapped = [None if array is None else ArrayVolume(array) for array in (labels, image, probability)]
    return Sources(wrapped[0], size, wrapped[1], wrapped[2], **more)


@pytest.fixture(scope="module")
def table(volumes):
    return measure_instances(sources(*volumes))


def test_the_same_in_little_memory(volumes, table):
    engine = LocalEngine()
    engine.item_bytes = 5 * 10**6
    pd.testing.assert_frame_equal(measure_instances(sources(*volumes), engine=engine), table)
    engine.item_bytes = 10**5
    with pytest.raises(UserError, match=r"object \d+ in .* needs \d\.\d GB to be measured: .*; give more memory="):
        measure_instances(sources(*volumes), engine=engine)


def test_columns_and_units(table):
    named = column_names(image=True, probability=True)
    assert list(table.columns) == [*named, DISTANCE]
    bare = measure_instances(sources(scene(count=2)))
    assert list(bare.columns) == [*column_names(image=False, probability=False), DISTANCE]
    lengths = [c for c in table.columns if c.endswith(("_nm", "_nm2", "_nm3"))]
    plain = "instance voxels sphericity tortuosity branches complexity touches_border grey_mean grey_sd cristae_sd"
    more = "cristae_share probability_mean uncertainty"
    assert set(table.columns) - set(lengths) == {*plain.split(), *more.split(), *STARTS, *STOPS}

    odd = {"sources": sources(scene(count=1), np.zeros((2, 2, 2), np.uint8))}
    for options, message in (
        ({"min_volume": -1.0}, "min_volume"),
        ({"reach": -1.0}, "reach"),
        (odd, "differ in shape"),
    ):
        with pytest.raises(UserError, match=message):
            measure_instances(**{"sources": sources(scene(count=1)), **options})


def test_twice_the_voxel_size_is_twice_the_length(volumes, table):
    twice = measure_instances(sources(volumes[0], size=tuple(2 * s for s in SIZE)), reach=2000)
    for name in twice.columns:
        factor = {"nm": 2, "nm2": 4, "nm3": 8}.get(name.rpartition("_")[2], 1)
        np.testing.assert_allclose(twice[name].astype(float), factor * table[name].astype(float), 1e-4, err_msg=name)


def test_simple_columns_are_those_of_skimage(volumes, table):
    labels, image, probability = volumes
    rows = table.set_index("instance")
    for region in regionprops(labels, intensity_image=image, spacing=SIZE):
        row = rows.loc[region.label]
        inside = labels == region.label
        assert row["voxels"] == inside.sum()
        assert row["volume_nm3"] == pytest.approx(region.area)
        assert tuple(row[[*STARTS, *STOPS]]) == region.bbox
        assert row["grey_mean"] == pytest.approx(region.intensity_mean)
        assert row["grey_sd"] == pytest.approx(image[inside].std())
        centre = row[["centroid_z_nm", "centroid_y_nm", "centroid_x_nm"]]
        np.testing.assert_allclose(centre.astype(float), region.centroid)
        assert row["touches_border"] == any(
            a == 0 or b == n for a, b, n in zip(region.bbox[:3], region.bbox[3:], labels.shape, strict=True)
        )
        p = probability[inside].astype(float)
        assert row["probability_mean"] == pytest.approx(p.mean())
        assert row["uncertainty"] == pytest.approx(entropy([p, 1 - p], base=2).mean())


def test_axes_are_those_of_the_ellipsoid():
    axes = np.array([90.0, 60.0, 45.0])
    for spacing in ((5.0, 5.0, 5.0), (20.0, 5.0, 5.0)):
        mask, area = ellipsoid(axes, spacing, np.random.default_rng(0))
        (row,) = measure_instances(sources(np.pad(mask, 1).astype(np.uint8), size=spacing)).to_dict("records")
        found = [row[f"axis_{name}_nm"] for name in ("long", "middle", "short")]
        np.testing.assert_allclose(found, 2 * axes, rtol=0.01 if spacing[0] == 5 else 0.06)
        assert area == pytest.approx(ellipsoid_area(*axes))
        assert row["surface_nm2"] == pytest.approx(area, rel=0.03)
        volume = 4 / 3 * math.pi * axes.prod()
        assert row["sphericity"] == pytest.approx(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, rel=0.03)
        assert row["complexity"] == pytest.approx(area**3 / (16 * math.pi**2 * volume**2), rel=0.08)


@pytest.mark.parametrize("block", [(24, 90, 90), (7, 30, 41), (1, 90, 90)])
def test_blocks_tiles_and_groups_change_nothing(volumes, table, block, monkeypatch):
    if block[0] == 1:  # objects are read one by one
        monkeypatch.setattr("mitoseg.segmentation.morphometry._GROUP_VOXELS", 10)
    again = measure_instances(sources(*volumes), block=block, tile=block if block[0] > 1 else (24, 20, 33))
    pd.testing.assert_frame_equal(again, table)


@pytest.mark.parametrize("engine", [pytest.param(lambda: LocalEngine(2), marks=pytest.mark.slow), Elsewhere])
def test_other_processes_measure_the_same(volumes, table, engine):
    with engine() as started:
        pd.testing.assert_frame_equal(measure_instances(sources(*volumes), engine=started), table)


def test_neighbours_by_brute_force(volumes, table):
    labels = volumes[0]
    size = np.array(SIZE)
    points = {n: np.argwhere(labels == n) * size for n in table["instance"]}
    for n, found in zip(table["instance"], table[DISTANCE], strict=True):
        nearest = math.inf
        for other, there in points.items():
            if other != n:
                away = cdist(points[n], there)
                i, j = np.unravel_index(away.argmin(), away.shape)
                gap = np.linalg.norm(np.maximum(np.abs(points[n][i] - there[j]) - size, 0))
                nearest = min(nearest, gap)
        assert found == pytest.approx(nearest, abs=max(SIZE) / 2)

    labels = np.zeros((4, 10, 200), np.uint8)
    labels[1:3, 3:7, 10:14], labels[1:3, 3:7, 114:118] = 1, 2
    for reach, expected in ((499.0, [math.nan] * 2), (501.0, [500.0] * 2)):
        found = measure_instances(sources(labels, size=(5, 5, 5)), reach=reach, tile=(4, 10, 60))[DISTANCE]
        np.testing.assert_allclose(found, expected)
    assert DISTANCE not in measure_instances(sources(labels), reach=0)
    labels[1:3, 3:7, 14:18] = 3
    assert measure_instances(sources(labels))[DISTANCE].tolist()[0] == 0

    cut = table["touches_border"]  # these have no sphericity
    assert 0 < cut.sum() < len(table)
    for name in ("sphericity", "complexity"):
        assert table[name][cut].isna().all()
        assert table[name][~cut].notna().all()
    assert table.drop(columns=["sphericity", "complexity", "cristae_sd", "cristae_share"]).notna().all(axis=None)


@pytest.mark.parametrize("given", [(), ("image",), ("image", "probability")])
def test_an_empty_volume_is_an_empty_table(given, table):
    empty = np.zeros((3, 4, 5), np.uint32)
    more = {name: empty.astype(np.uint8) for name in given}
    found = measure_instances(sources(empty, **more))
    assert len(found) == 0
    full = measure_instances(sources(scene(count=2), **{name: scene().astype(np.uint8) for name in given}))
    assert found.dtypes.to_dict() == full.dtypes.to_dict()
    summary = summarise(found, empty.shape, SIZE)
    assert (summary["count"], summary["density_per_um3"], summary["volume_fraction"]) == (0, 0, 0)
    assert math.isnan(summary["length_nm_q50"])


def test_one_voxel():
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = 7
    image = np.full(labels.shape, 9, np.uint8)
    (row,) = measure_instances(sources(labels, image, image / 9.0)).to_dict("records")
    assert (row["instance"], row["voxels"], row["branches"], row["tortuosity"]) == (7, 1, 0, 1)
    assert row["volume_nm3"] == 500
    assert row["axis_long_nm"] == pytest.approx(20 * math.sqrt(5 / 3))
    assert row["length_nm"] == pytest.approx(20)
    assert row["diameter_mean_nm"] == pytest.approx(5)
    assert 300 < row["surface_nm2"] < 850
    assert row["grey_sd"] == 0
    assert math.isnan(row["cristae_sd"])
    (row,) = measure_instances(sources(np.full((4, 6, 8), 5, np.uint8), size=(10, 10, 10))).to_dict("records")
    assert (row["instance"], row["volume_nm3"]) == (5, 192_000)  # it fills the volume
    assert math.isnan(row[DISTANCE])


def test_huge_and_sparse_ids_and_small_ones_left_out_that_are_neighbours(table):
    labels = scene().astype(np.uint64)
    huge = np.where(labels > 0, labels * 3 + (2**64 - 100), 0).astype(np.uint64)
    found = measure_instances(sources(huge))
    assert found["instance"].tolist() == [3 * int(n) + 2**64 - 100 for n in table["instance"]]
    rest = [c for c in found.columns if c != "instance"]
    pd.testing.assert_frame_equal(found[rest], table[rest])

    least = float(table["volume_nm3"].median())
    found = measure_instances(sources(scene()), min_volume=least)
    expected = table[table["volume_nm3"] >= least].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected[found.columns])


def test_cristae_stand_out():
    """Stripes 30 nm wide against a plain and a slowly varying inside."""
    at = np.arange(80) * 5.0
    labels = np.zeros((80, 80, 80), np.uint8)
    labels[10:70, 10:70, 10:70] = 1
    stripes = 100 + 30 * np.sign(np.sin(2 * np.pi * at / 40))
    slow = 100 + 30 * np.sin(2 * np.pi * at / 600)
    found = {}
    for name, line in (("stripes", stripes), ("slow", slow), ("turned", stripes)):
        image = np.broadcast_to(line, labels.shape)
        image = np.moveaxis(image, 2, 0) if name == "turned" else image
        (row,) = measure_instances(sources(labels, np.ascontiguousarray(image), size=(5, 5, 5))).to_dict("records")
        found[name] = row["cristae_sd"], row["cristae_share"]
    assert found["stripes"][0] > 15
    assert found["slow"][0] < 0.5
    assert found["stripes"][1] > 0.3 > 0.01 > found["slow"][1]
    np.testing.assert_allclose(found["turned"], found["stripes"], rtol=1e-4)


def test_scaled_probabilities_an_uncertainty_of_its_own_and_the_summary(volumes, table):
    labels, _, probability = volumes
    stored = np.round(probability * 255).astype(np.uint8)
    found = measure_instances(sources(labels, None, stored, scale=255.0, uncertainty=ArrayVolume(probability * 2)))
    np.testing.assert_allclose(found["probability_mean"], table["probability_mean"], atol=1e-3)
    np.testing.assert_allclose(found["uncertainty"], 2 * table["probability_mean"], rtol=1e-5)

    found = summarise(table, (24, 90, 90), SIZE)
    whole = table[~table["touches_border"]]
    assert (found["count"], found["count_whole"]) == (len(table), len(whole))
    tissue = 24 * 90 * 90 * 500 / 1e9
    assert found["density_per_um3"] == pytest.approx((len(whole) + len(table)) / 2 / tissue)
    assert found["volume_fraction"] == pytest.approx(np.count_nonzero(scene()) / (24 * 90 * 90))
    assert found["volume_nm3_q50"] == whole["volume_nm3"].median()
    assert found["length_nm_sd"] == pytest.approx(whole["length_nm"].std())


def test_half_of_epfl(real_data):
    """Mitochondria of hippocampus are 0.1 to 0.5 um thick."""
    box = Box((0, 200, 200), (82, 520, 520))
    mask = open_volume(real_data / "epfl_ca1" / "testing_z000-081_groundtruth.tif").read(box) > 0
    image = open_volume(real_data / "epfl_ca1" / "testing_z000-081.tif").read(box)
    found = measure_instances(sources(label_array(mask), image, size=(5, 5, 5)), min_volume=1e6)
    assert len(found) >= 4
    assert found["diameter_max_nm"].between(60, 600).all()
    assert found["diameter_max_nm"].median() > 120
    assert (found["length_nm"] >= 0.9 * found["diameter_max_nm"]).all()
    assert (found["cristae_sd"] > 1).all()
