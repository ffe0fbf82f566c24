"""The report as a file: what is in it, what is not, and that the data come out as they went in."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from report_pages import Page, unpack
from small_report import BALLS, MISSED, SHAPE, SIZE, everything, small_scores, small_table, small_volumes, write_full

from mitoseg.errors import UserError
from mitoseg.evaluation.instances import evaluate_instances, find_overlaps
from mitoseg.evaluation.report import ReportOptions, report_prediction, write_report
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
    rows = [row["data-instance"] for row in page.all("tr") if "data-instance" in row]
    assert rows == ["20", "10", "40", "30"]
    columns = page.blocks["columns"]
    assert columns["instance"] == [20, 10, 40, 30]
    assert columns["sphericity"] == [0.8, 0.9, None, 0.7]


def test_limits(tmp_path, volumes):
    options = ReportOptions(rows=2, slices=1, pixels=40)
    given = {"image": volumes["image"], "table": small_table(), "instances": volumes["instances"]}
    page = read(write_report(tmp_path / "r.html", title="t", options=options, **given))
    assert len([row for row in page.all("tr") if "data-instance" in row]) == 2
    assert "4 mitochondria, of which the first 2 are shown" in page.text
    assert "scores" not in page.sections
    data = page.blocks["slice-data"]
    assert (data["height"], data["width"], data["z"]) == (30, 40, [0])
    assert unpack(data["codes"][0], np.uint8).size == 30 * 40


def test_the_worst_errors_are_those_that_were_made(full):
    page = read(full)
    found = [(int(b["data-z"]), int(b["data-y"]), int(b["data-x"])) for b in page.all("button") if "data-z" in b]
    assert found == [BALLS[4], MISSED]
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


def test_hostile_text_stays_text(tmp_path, volumes):
    table = small_table().assign(**{HOSTILE: 1.0, "word": HOSTILE})
    path = write_report(
        tmp_path / "r.html",
        title=HOSTILE,
        table=table,
        scores={"threshold_source": HOSTILE, "jaccard_foreground": 0.5, "crop": HOSTILE},
        provenance={HOSTILE: HOSTILE, "command": [HOSTILE], "data": {"licence": HOSTILE}},
    )
    page = read(path)
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
    crop = Box((2, 30, 10), (14, 60, 80))
    path = report_prediction(
        tmp_path / "r.html",
        title="t",
        prediction=volumes["prediction"],
        truth=volumes["truth"],
        image=volumes["image"],
        crop=crop,
        small=100,
        options=ReportOptions(slices=3),
    )
    page = read(path)
    data = page.blocks["slice-data"]
    assert (data["start"], data["size"], data["z"]) == ([2, 30, 10], [12, 30, 70], [2, 8, 13])
    ids = unpack(data["ids"][1], np.uint32, (30, 70))
    np.testing.assert_array_equal(ids > 0, volumes["instances"].read()[8, 30:60, 10:80] > 0)
    found = [(int(b["data-z"]), int(b["data-y"]), int(b["data-x"])) for b in page.all("button") if "data-z" in b]
    assert found == [BALLS[4]]


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
