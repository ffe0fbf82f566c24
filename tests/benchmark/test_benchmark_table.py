"""Rows, the three files and the terminal; the abstract's figures as it gives them; where the picture is taken."""

import csv
import io
import re

import numpy as np
import pytest
from rich.console import Console

from mitoseg.benchmark.report import (
    COLUMNS,
    Page,
    as_html,
    choose_box,
    markdown,
    method_row,
    picture_box,
    published_rows,
    terminal,
    text,
    write_tables,
)
from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume


@pytest.fixture
def row(tmp_path):
    """A finished method."""
    kept = {"jaccard_foreground": 0.8, "jaccard_mean": 0.9, "left_out_foreground": 0.2, "left_out_background": 0.01}
    metrics = {
        **{"jaccard_foreground": 0.7625, "jaccard_background": 0.98, "jaccard_mean": 0.87125, "kind": "probability"},
        **{"threshold": 0.4, "interval": {"jaccard_foreground": [0.7, 0.8]}, "precision": 0.9, "recall": None},
        "boundary": [
            {"distance": 2, "dims": 2, **kept, "jaccard_foreground": 0.1},
            {"distance": 2, "dims": 3, **kept},
        ],
    }
    costs = {"training_seconds": 12.0, "prediction_seconds": 360, "peak_memory": {"process": 2e9, "device": None}}
    write_json(tmp_path / "record.json", {"status": "finished", "title": "a <b> | c", "commit": "abc"})
    write_json(tmp_path / "metrics.json", {"test": metrics})
    write_json(tmp_path / "costs.json", costs | {"protocol": "trained here"})
    return method_row("forest", tmp_path, "test", 2)


def test_a_row_holds_scores_costs_and_where_they_come_from(row):
    assert set(row) == set(COLUMNS)
    assert (row["jaccard_foreground"], row["band_jaccard_foreground"], row["band"]) == (0.7625, 0.8, 2)
    assert (row["jaccard_foreground_low"], row["threshold"], row["peak_memory_bytes"]) == (0.7, 0.4, 2e9)


def test_published_figures_stand_alone_under_the_labels_of_the_abstract():
    rows = published_rows()
    labelled = [(r["method"], r["jaccard_published"]) for r in rows]
    expected = [("Lucchi et al.", 0.948), ("Neila et al.", 0.762), ("Lucchi et al.", 0.867), ("proposed", 0.964)]
    assert labelled == [(f"{name} (abstract)", value) for name, value in expected]
    assert all("not stated" in r["protocol"] for r in rows)
    assert [("which paper" in r["protocol"]) for r in rows] == [True, False, True, False]
    scores = [key for key in COLUMNS if "jaccard" in key and key != "jaccard_published"]
    assert all(r[key] is None for r in rows for key in scores)


def test_a_method_without_a_result_says_why(tmp_path):
    assert method_row("m", tmp_path, "test", 2)["protocol"] == "no result: not run"
    write_json(tmp_path / "record.json", {"status": "failed", "error": "out of luck"})
    row = method_row("m", tmp_path, "test", 2)
    assert (row["status"], row["protocol"], row["jaccard_foreground"]) == ("failed", "no result: out of luck", None)


def test_the_files(row, tmp_path):
    page = Page([row, *published_rows()], "Methods & more", ["a note"], picture=True)
    lines = markdown(page).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({re.sub(r"\\\|", "", line).count("|") for line in table}) == 1
    assert "76.2" in table[2]
    assert "76.2" not in table[3]
    assert all(cell.strip() for line in table for cell in line.strip("|").split("|"))
    assert "methods.png" in markdown(page)
    write_tables(tmp_path, page)
    found = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert [float(r["jaccard_published"]) for r in found[1:]] == [0.948, 0.762, 0.867, 0.964]
    assert float(found[0]["jaccard_foreground"]) == 0.7625
    html = as_html(page)
    assert "a &lt;b&gt; | c" in html
    assert html.count("<tr") == 6
    assert html.count("<td>") == 5 * len(page.columns())
    assert "methods.png" not in as_html(Page([row], "t"))


def test_the_terminal_shows_methods_and_a_line_of_the_abstract(row):
    console = Console(width=90, file=io.StringIO())
    console.print(terminal(Page([row | {"crop": "[0:1]", "crop_jaccard_foreground": 0.5}, *published_rows()], "t")))
    shown = console.file.getvalue()
    assert "76.2, 87.1" in shown
    assert "50.0, -" in shown
    assert "proposed (abstract) 96.4" in " ".join(shown.split())
    assert "…" not in shown


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [(0, "percent", "0.0"), (0.004, "seconds", "0.004 s"), (3600, "seconds", "60.0 min"), ("", "text", "-")],
)
def test_cells(value, kind, shown):
    assert text(value, kind) == shown


@pytest.mark.parametrize("size", [(5, 7), (8, 4), (1, 1), (20, 24), (99, 3)])
def test_the_place_holds_most_mitochondria(size):
    label_zyx = (np.random.default_rng(0).random((9, 20, 24)) < 0.2).astype(np.uint8)
    label_zyx[4, 3:12, 11:20] |= np.random.default_rng(1).integers(0, 2, (9, 9), np.uint8)
    label_zyx[8, :4] = 255
    height, width = min(size[0], 20), min(size[1], 24)
    box = choose_box(label_zyx, size)
    assert box.shape == (1, height, width)
    best = max(
        (label_zyx[z, y : y + height, x : x + width] == 1).sum()
        for z in range(0, 9, 4)
        for y in range(20 - height + 1)
        for x in range(24 - width + 1)
    )
    assert (label_zyx[box.slices] == 1).sum() == best


@pytest.mark.parametrize(
    ("size", "box", "line"),
    [
        (None, ["2:3", "0:5", "5:"], None),
        ([5], None, "not a size"),
        ([0, 5], None, "not a size"),
        ("big", None, "not a size"),
        (None, ["0:2", "0:5", "0:5"], "one slice"),
        (None, ["3:4", "0:5", "0:5"], "leaves the volume"),
    ],
)
def test_a_given_place(size, box, line):
    volume = ArrayVolume(np.zeros((4, 10, 10), np.uint8))
    region = Region(volume, volume, Box((1, 0, 0), (4, 10, 10)))
    if line is None:
        assert str(picture_box(region, size, box)) == "[2:3,0:5,5:10]"
        return
    with pytest.raises(UserError, match=line):
        picture_box(region, size, box)
