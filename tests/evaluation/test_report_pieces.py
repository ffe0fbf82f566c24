"""The pieces of the report, each against what it should be."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pandas import DataFrame
from report_pages import Page, unpack
from scipy import ndimage
from small_report import BALLS, RADII, SHAPE, SIZE, ball, small_volumes

from mitoseg.evaluation.figures import bins
from mitoseg.evaluation.report.errors import crop_window, worst_faults
from mitoseg.evaluation.report.markup import Content, ReportOptions, pack
from mitoseg.evaluation.report.page import render
from mitoseg.evaluation.report.pictures import (
    coarse_labels,
    hold,
    plain_table,
    pool,
    scene_data,
    small_image,
    small_labels,
    surfaces,
)
from mitoseg.evaluation.report.tables import whole_instances
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume


def write_page(content):
    return Page(render(content))


@given(st.text(), st.text())
def test_text_never_becomes_markup_and_data_never_end_their_block(text, value):
    assume("\r" not in text + value)
    plain = write_page(Content("t", provenance={"seed": "0"}, table=DataFrame({"x": ["0"], "y": [0.5]})))
    table = DataFrame({"x": [text], f"y{value}": [0.5]})
    page = write_page(Content(text, provenance={"seed": value}, table=table))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.blocks["columns"] == {f"y{value}": [0.5]}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, ">i4"])
def test_packing(dtype):
    array = np.arange(-50, 50).astype(dtype).reshape(4, 25)[:, ::2]
    np.testing.assert_array_equal(unpack(pack(array), dtype, array.shape), array)


@pytest.mark.parametrize("strip", [2**24, 1])
def test_slices_are_reduced_strip_by_strip(monkeypatch, strip):
    monkeypatch.setattr("mitoseg.evaluation.report.pictures.STRIP_VOXELS", strip)
    image = np.random.default_rng(0).integers(0, 255, (2, 24, 36)).astype(np.uint8)
    volume, box = ArrayVolume(image), Box((0, 0, 0), (2, 24, 36))
    means = image[1].reshape(8, 3, 12, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small_image(volume, 1, box, (8, 12)), means, rtol=1e-6)
    np.testing.assert_array_equal(small_labels(volume, 1, box, (8, 12)), image[1, 1::3, 1::3])
    np.testing.assert_array_equal(small_image(volume, 1, box, (24, 36)), image[1])
    image = np.random.default_rng(0).normal(100, 10, (1, 40, 52)).astype(np.float32)
    small = small_image(ArrayVolume(image), 0, Box((0, 0, 0), image.shape), (29, 38))  # no whole number
    assert small.shape == (29, 38)
    assert small.mean() == pytest.approx(image.mean(), abs=0.2)


@pytest.mark.parametrize("strip", [2**24, 1])
def test_cells_of_labels(monkeypatch, strip):
    monkeypatch.setattr("mitoseg.evaluation.report.pictures.STRIP_VOXELS", strip)
    label = np.random.default_rng(0).integers(0, 3, (5, 7, 9)).astype(np.uint32)
    share, ids = coarse_labels(ArrayVolume(label), Box((0, 0, 0), label.shape), (2, 3, 4))
    assert share.shape == ids.shape == (3, 3, 3)
    for z, y, x in np.ndindex(3, 3, 3):
        cell = label[2 * z : 2 * z + 2, 3 * y : 3 * y + 3, 4 * x : 4 * x + 4]
        assert share[z, y, x] == pytest.approx((cell != 0).mean(), abs=1e-6)
        assert ids[z, y, x] == cell.max()
    once_share, once_ids = pool(label[:4, :6, :8], (2, 3, 2))
    twice_share, _ = pool(once_ids, (2, 2, 2), once_share)
    np.testing.assert_allclose(twice_share, pool(label[:4, :6, :8], (4, 6, 4))[0], rtol=1e-6)


def test_the_plain_table_against_scipy(monkeypatch):
    monkeypatch.setattr("mitoseg.evaluation.report.pictures.SLAB_VOXELS", 3 * SHAPE[1] * SHAPE[2])
    volume = small_volumes()["instances"]
    label = volume.read()
    table = plain_table(volume, volume.box, SIZE).set_index("instance")
    assert table.index.tolist() == [10, 20, 30, 40]
    for number, place in enumerate(ndimage.find_objects(label), 1):
        if place is not None:
            row = table.loc[number]
            assert row["voxels"] == (label == number).sum()
            assert row["volume_nm3"] == row["voxels"] * np.prod(SIZE)
            assert [row[f"box_{a}0"] for a in "zyx"] == [s.start for s in place]
            assert [row[f"box_{a}1"] for a in "zyx"] == [s.stop for s in place]
    assert not table["touches_border"].any()
    cropped = plain_table(volume, Box((0, 0, 15), SHAPE), None)
    assert cropped.set_index("instance")["touches_border"].to_dict() == {10: True, 20: False, 30: False, 40: False}
    assert len(whole_instances(cropped)) == 3


def test_small_instances_are_left_out_of_what_is_held():
    volume = small_volumes()["instances"]
    label = volume.read().copy()
    label[0, 0, :3] = 5
    held = hold(ArrayVolume(label), Box((0, 0, 0), (12, 60, 80)), small=4)
    np.testing.assert_array_equal(held.read(Box((5, 2, 0), (12, 60, 70))), label[5:12, 2:60, :70])
    assert not (held.read(Box((0, 0, 0), (1, 60, 80))) == 5).any()


def surface_volume(surface):
    a, b, c = (surface.vertices.astype(float)[surface.faces[:, i]] for i in range(3))
    return abs(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def scene_of(instances, triangles=150_000, size=SIZE):
    content = Content(
        "t", instances=ArrayVolume(instances), voxel_size=size, options=ReportOptions(triangles=triangles)
    )
    return surfaces(content, content.box), content


def test_surfaces_enclose_what_they_should():
    instances = small_volumes()["instances"].read()
    (found, cell), _ = scene_of(instances)
    assert cell == 10  # the thickness of a section
    assert sorted(surface.instance for surface in found) == [10, 20, 30, 40]
    for surface in found:
        there = instances == surface.instance
        assert surface_volume(surface) == pytest.approx(there.sum() * np.prod(SIZE), rel=0.2)
        middle = (np.argwhere(there).mean(axis=0) + 0.5) * SIZE
        np.testing.assert_allclose(surface.vertices.mean(axis=0), middle, atol=4)


def test_fewer_triangles_where_they_are_asked_for_and_thin_instances_are_drawn():
    instances = small_volumes()["instances"].read()
    counts = [sum(len(s.faces) for s in scene_of(instances, budget)[0][0]) for budget in (10**6, 2000, 600)]
    assert counts[0] > 2000 >= counts[1] > 600 >= counts[2] > 0
    thin = np.zeros((40, 40, 40), np.uint32)
    thin[20, 20, 5:35] = 1
    (found, _), _ = scene_of(thin, 200, (5, 5, 5))
    assert [surface.instance for surface in found] == [1]


def test_the_scene_comes_out_as_it_went_in():
    (found, _), content = scene_of(small_volumes()["instances"].read())
    data = scene_data(found, content.box, content)
    positions = (unpack(data["positions"], np.int16, (-1, 3)) / 32767.0 + 1) / 2 * data["extent"]
    corners = np.cumsum(unpack(data["corners"], np.int32)).reshape(-1, 3)
    np.testing.assert_allclose(positions, np.concatenate([s.vertices for s in found]), atol=0.02)
    first = np.cumsum([0, *data["vertices"]])
    start = np.cumsum([0, *data["triangles"]])
    for i, surface in enumerate(found):
        np.testing.assert_array_equal(corners[start[i] : start[i + 1]] - first[i], surface.faces)
    assert data["instances"] == [s.instance for s in found]


def test_errors_against_scipy():
    volumes = small_volumes()
    result = ArrayVolume((volumes["instances"].read() > 0) & ~ball((8, 15, 16), (3, 3, 3)))
    faults = worst_faults(result, volumes["truth"], volumes["truth"].box, 5)
    missed = (volumes["truth"].read() == 1) & ~result.read()
    label, count = ndimage.label(missed)
    assert sorted(f.voxels for f in faults if f.kind == "missed") == sorted(np.bincount(label.ravel())[1:])
    assert [f.whole for f in faults] == [True, True, False]
    assert count == 2
    for fault in faults:
        wrong = missed if fault.kind == "missed" else result.read() & (volumes["truth"].read() == 0)
        assert wrong[fault.at]
        window = crop_window(fault, volumes["truth"].box)
        assert window.shape[0] == 1
        assert fault.at[0] == window.start[0]
        assert all(a <= n < b for a, n, b in zip(window.start, fault.at, window.stop, strict=True))
    assert faults[0].at == BALLS[4]


def test_errors_of_each_slab_and_none_where_voxels_are_ignored(monkeypatch):
    volumes = small_volumes()
    monkeypatch.setattr("mitoseg.evaluation.report.errors.SLAB_VOXELS", 8 * SHAPE[1] * SHAPE[2])
    result = ArrayVolume(volumes["instances"].read() > 0)
    faults = worst_faults(result, volumes["truth"], volumes["truth"].box, 5)
    assert [f.kind for f in faults] == ["false", "false", "missed", "missed"]
    assert sum(f.voxels for f in faults if f.kind == "false") == ball(BALLS[4], RADII[4]).sum()
    ignored = ArrayVolume(np.full(SHAPE, 255, np.uint8))
    assert worst_faults(result, ignored, ignored.box, 3) == []


@pytest.mark.parametrize("log", [False, True])
def test_bins_hold_every_value(log):
    values = np.random.default_rng(0).lognormal(0, 1, 500)
    edges = bins(values, log)
    assert np.histogram(values, edges)[0].sum() == 500
    steps = np.diff(np.log(edges) if log else edges)
    np.testing.assert_allclose(steps, steps[0])
