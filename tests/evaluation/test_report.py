"""The report: what is in the file and what is not, and each of its pieces against what it should be."""

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pandas import DataFrame
from PIL import Image
from scipy import ndimage
from small_report import (
    BALLS,
    MISSED,
    RADII,
    SHAPE,
    SIZE,
    Page,
    ball,
    everything,
    small_scores,
    small_table,
    small_volumes,
    unpack,
    write_full,
)

from mitoseg.errors import UserError
from mitoseg.evaluation.figures import bins
from mitoseg.evaluation.instances import evaluate_instances, find_overlaps
from mitoseg.evaluation.report import ReportOptions, report_prediction, write_report
from mitoseg.evaluation.report.errors import crop_window, worst_faults
from mitoseg.evaluation.report.markup import Content, pack
from mitoseg.evaluation.report.page import render
from mitoseg.evaluation.report.pictures import (
    coarse_labels,
    hold,
    plain_table,
    pool,
    scene_section,
    small_image,
    small_labels,
    surfaces,
)
from mitoseg.evaluation.report.tables import whole_instances
from mitoseg.geometry import Box
from mitoseg.storage import plain
from mitoseg.volumes import ArrayVolume

EVERYTHING = ["headline", "slices", "scene-part", "distributions", "measurements", "scores", "curves", "errors"]
HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(1)> & \"q\" {{main}} \\1"


@pytest.fixture(scope="module")
def volumes():
    return small_volumes()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report with everything."""
    return write_full(tmp_path_factory.mktemp("report") / "report.html")


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there(full):
    page = read(full)
    assert page.sections == [*EVERYTHING, "origin"]
    named = {a.get("href", "").removeprefix("#") for a in page.all("a")}
    assert set(page.sections) - {"headline"} <= named
    for words in ("a small one", "mitochondria per µm³", "median volume", "evaluate.py 'a b'", "CC0", "95 % interval"):
        assert words in page.text


def test_nothing_is_asked_of_any_other_place(full):
    text, page = full.read_text(encoding="utf-8"), read(full)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|importScripts|sendBeacon|\bimport\(", text)
    assert "http://" not in text
    assert "https://" not in text
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, label in (("img", "alt"), ("canvas", "aria-label"), ("svg", "aria-label"), ("html", "lang")):
        assert all(element.get(label) for element in page.all(tag))


def test_slices_come_out_as_they_went_in(full, volumes):
    data = read(full).blocks["slice-data"]
    assert (data["height"], data["width"], tuple(data["size"])) == (*SHAPE[1:], SHAPE)
    assert data["z"] == [0, 4, 8, 11, 15]
    assert data["voxel_nm"] == list(SIZE)
    assert data["layers"] == ["errors", "instances", "truth", "result"]
    truth, instances = volumes["truth"].read(), volumes["instances"].read()
    for z, code, ids, picture in zip(data["z"], data["codes"], data["ids"], data["images"], strict=True):
        code_yx = unpack(code, np.uint8, SHAPE[1:])
        np.testing.assert_array_equal((code_yx & 1) > 0, truth[z] == 1)
        np.testing.assert_array_equal((code_yx & 2) > 0, instances[z] > 0)
        np.testing.assert_array_equal((code_yx & 4) > 0, truth[z] == 255)
        np.testing.assert_array_equal(unpack(ids, np.uint32, SHAPE[1:]), instances[z])
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"), float)
        image = volumes["image"].read()[z].astype(float)
        assert np.corrcoef(shown.ravel(), image.ravel())[0, 1] > 0.9


def test_the_table_and_its_file(full):
    page = read(full)
    (link,) = (a for a in page.all("a") if a.get("id") == "csv")
    text = base64.b64decode(link["href"].removeprefix("data:text/csv;base64,")).decode()
    assert text == small_table().to_csv(index=False, lineterminator="\n")
    assert page.rows == ["20", "10", "40", "30"]
    columns = page.blocks["columns"]
    assert columns["instance"] == [20, 10, 40, 30]
    assert columns["sphericity"] == [0.8, 0.9, None, 0.7]


def test_limits(tmp_path, volumes):
    options = ReportOptions(rows=2, slices=1, pixels=40)
    given = {"image": volumes["image"], "table": small_table(), "instances": volumes["instances"]}
    page = read(write_report(tmp_path / "r.html", title="t", options=options, **given))
    assert page.rows == ["20", "10"]
    assert "4 mitochondria, of which the first 2 are shown" in page.text
    assert "scores" not in page.sections
    data = page.blocks["slice-data"]
    assert (data["height"], data["width"], data["z"]) == (30, 40, [0])
    assert unpack(data["codes"][0], np.uint8).size == 30 * 40


def test_the_worst_errors_are_those_that_were_made(full):
    page = read(full)
    assert page.places == [BALLS[4], MISSED]
    assert sum(picture["src"].startswith("data:image/webp;") for picture in page.all("img")) == 2
    assert "false object" in page.text
    assert "missed object" in page.text


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        ({}, []),
        ({"image"}, ["slices"]),
        ({"truth"}, ["slices"]),
        ({"image", "truth", "mask"}, ["slices", "errors"]),
        ({"instances"}, ["headline", "slices", "scene-part", "distributions", "measurements"]),
        ({"table"}, ["headline", "distributions", "measurements"]),
        ({"scores"}, ["headline", "scores", "curves"]),
        ({"provenance"}, ["origin"]),
    ],
    ids=lambda value: "+".join(sorted(value)) or "nothing",
)
def test_sections_are_absent_when_their_data_are(tmp_path, given, sections):
    parts = {name: value for name, value in everything().items() if name in given}
    page = read(write_report(tmp_path / "r.html", title="t", options=ReportOptions(slices=2), **parts))
    assert page.sections == sections


def test_hostile_text_stays_text(tmp_path):
    table = small_table().assign(**{HOSTILE: 1.0, "word": HOSTILE})
    scores = {"threshold_source": HOSTILE, "jaccard_foreground": 0.5, "crop": HOSTILE}
    origin = {HOSTILE: HOSTILE, "command": [HOSTILE], "data": {"licence": HOSTILE}}
    page = read(write_report(tmp_path / "r.html", title=HOSTILE, table=table, scores=scores, provenance=origin))
    assert len(page.all("script")) == 2  # the numbers of the table, and ours
    assert all(picture["src"].startswith("data:image/svg+xml;") for picture in page.all("img"))
    assert page.text.count(HOSTILE) >= 8
    assert HOSTILE in page.blocks["columns"]


def test_a_report_of_an_evaluation(tmp_path, volumes):
    scores = small_scores(volumes)
    given = {"title": "t", "prediction": volumes["prediction"], "truth": volumes["truth"], "scores": scores}
    page = read(report_prediction(tmp_path / "r.html", **given, small=500))
    assert page.sections == EVERYTHING
    assert page.blocks["slice-data"]["images"] == []
    assert page.blocks["scene-data"]["instances"] == [4, 1, 3, 2]  # the largest first
    assert "4mitochondria" in page.text
    assert "scene-part" not in read(report_prediction(tmp_path / "r.html", **given, small=10**6)).sections


def test_scores_of_instances_are_a_table_of_their_own(tmp_path, volumes):
    overlaps = find_overlaps(volumes["instances"], volumes["true_ids"])
    scores = {**small_scores(volumes), "instances": evaluate_instances([overlaps], small=1)}
    page = read(write_report(tmp_path / "r.html", title="t", scores=plain(scores)))
    matched = scores["instances"]["all"]["matched"][0]
    assert (matched["tp"], matched["fp"], matched["fn"]) == (3, 1, 1)
    assert "F1 of instances" in page.text
    assert "all0.5440.75" in page.text  # IoU over 0.5, 4 true, 4 found, F1 0.75
    assert "Those below 1 voxels are left out: 0 true, 0 found." in page.text


def test_a_crop_keeps_the_coordinates_of_the_volume(tmp_path, volumes):
    shown = {name: volumes[name] for name in ("prediction", "truth", "image")}
    shown |= {"crop": Box((2, 30, 10), (14, 60, 80)), "options": ReportOptions(slices=3)}
    page = read(report_prediction(tmp_path / "r.html", title="t", small=100, **shown))
    data = page.blocks["slice-data"]
    assert (data["start"], data["size"], data["z"]) == ([2, 30, 10], [12, 30, 70], [2, 8, 13])
    ids = unpack(data["ids"][1], np.uint32, (30, 70))
    np.testing.assert_array_equal(ids > 0, volumes["instances"].read()[8, 30:60, 10:80] > 0)
    assert page.places == [BALLS[4]]


def test_mistakes_leave_nothing(tmp_path, volumes):
    path = tmp_path / "r.html"
    with pytest.raises(UserError, match="differ in shape"):
        write_report(path, title="t", image=volumes["image"], truth=ArrayVolume(np.zeros((1, 2, 3), np.uint8)))
    with pytest.raises(UserError, match="leaves the volume"):
        write_report(path, title="t", image=volumes["image"], crop=Box((0, 0, 0), (99, 1, 1)))
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="exists"):
        write_report(path, title="t", overwrite=False)
    assert path.read_text(encoding="utf-8") == "mine"


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


def test_the_plain_table_against_scipy(monkeypatch, volumes):
    monkeypatch.setattr("mitoseg.evaluation.report.pictures.SLAB_VOXELS", 3 * SHAPE[1] * SHAPE[2])
    volume = volumes["instances"]
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


def test_small_instances_are_left_out_of_what_is_held(volumes):
    label = volumes["instances"].read().copy()
    label[0, 0, :3] = 5
    held = hold(ArrayVolume(label), Box((0, 0, 0), (12, 60, 80)), small=4)
    np.testing.assert_array_equal(held.read(Box((5, 2, 0), (12, 60, 70))), label[5:12, 2:60, :70])
    assert not (held.read(Box((0, 0, 0), (1, 60, 80))) == 5).any()


def surface_volume(surface):
    a, b, c = (surface.vertices.astype(float)[surface.faces[:, i]] for i in range(3))
    return abs(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def scene_of(instances, triangles=150_000, size=SIZE):
    options = ReportOptions(triangles=triangles)
    content = Content("t", instances=ArrayVolume(instances), voxel_size=size, options=options)
    return surfaces(content, content.box), content


def test_surfaces_enclose_what_they_should_and_come_out_as_they_went_in(volumes):
    instances = volumes["instances"].read()
    (found, cell), content = scene_of(instances)
    assert cell == 10  # the thickness of a section
    assert sorted(surface.instance for surface in found) == [10, 20, 30, 40]
    for surface in found:
        there = instances == surface.instance
        assert surface_volume(surface) == pytest.approx(there.sum() * np.prod(SIZE), rel=0.2)
        middle = (np.argwhere(there).mean(axis=0) + 0.5) * SIZE
        np.testing.assert_allclose(surface.vertices.mean(axis=0), middle, atol=4)
    data = scene_section(content)["data"]
    positions = (unpack(data["positions"], np.int16, (-1, 3)) / 32767.0 + 1) / 2 * data["extent"]
    corners = np.cumsum(unpack(data["corners"], np.int32)).reshape(-1, 3)
    np.testing.assert_allclose(positions, np.concatenate([s.vertices for s in found]), atol=0.02)
    first = np.cumsum([0, *data["vertices"]])
    start = np.cumsum([0, *data["triangles"]])
    for i, surface in enumerate(found):
        np.testing.assert_array_equal(corners[start[i] : start[i + 1]] - first[i], surface.faces)
    assert data["instances"] == [s.instance for s in found]


def test_fewer_triangles_where_they_are_asked_for_and_thin_instances_are_drawn(volumes):
    instances = volumes["instances"].read()
    counts = [sum(len(s.faces) for s in scene_of(instances, budget)[0][0]) for budget in (10**6, 2000, 600)]
    assert counts[0] > 2000 >= counts[1] > 600 >= counts[2] > 0
    thin = np.zeros((40, 40, 40), np.uint32)
    thin[20, 20, 5:35] = 1
    (found, _), _ = scene_of(thin, 200, (5, 5, 5))
    assert [surface.instance for surface in found] == [1]


def test_errors_against_scipy(volumes):
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


def test_errors_of_each_slab_and_none_where_voxels_are_ignored(monkeypatch, volumes):
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
