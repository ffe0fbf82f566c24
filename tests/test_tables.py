"""What a spreadsheet would compute is quoted in every table, and our own tables are read back as they were."""

import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitoseg.benchmark.report import COLUMNS, Page, write_tables
from mitoseg.cli.sweeps.jobs import write_results
from mitoseg.evaluation.report.markup import Content
from mitoseg.evaluation.report.page import render
from mitoseg.tables import as_written, frame_csv, read_csv, to_csv, to_markdown, write_table
from mitoseg.workflows.many import Row, read_rows, write_rows

WIDE = ("\uff1d", "\uff0b", "\uff0d", "\uff20")  # full-width = + - @, which some spreadsheets compute
NASTY = ["=cmd|' /C calc'!A0.tif", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=quoted", "'kept'", "plain"]


def computed(text):
    """The cells of a CSV text that a spreadsheet would compute."""
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    return [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", *WIDE)) and not is_number(cell)]


def is_number(text):
    try:
        return text == text.strip() and "_" not in text and float(text) is not None
    except ValueError:
        return False


@given(st.lists(st.one_of(st.sampled_from(NASTY), st.text()), min_size=1))
@example(["-1.5", "+2e-3", "-inf", "-", "=", "''=x", *WIDE])
def test_text_comes_back_and_is_not_computed(cells):
    text = to_csv(["name"], [[cell] for cell in cells])
    assert computed(text) == []
    assert [as_written(row[0]) if row else "" for row in csv.reader(io.StringIO(text, newline=""))][1:] == cells


def test_a_frame_comes_back(tmp_path):
    table = pd.DataFrame({"=name": NASTY, "x": [-1.5, float("nan"), *range(7)], "n": range(-4, 5)})
    write_table(tmp_path / "a.csv", table)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "a.csv"), table)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count("-1.5") == 1
    assert frame_csv(table[["x", "n"]], 6) == table[["x", "n"]].to_csv(index=False, float_format="%.6g")


@pytest.mark.parametrize("name", NASTY)
def test_every_table_quotes(tmp_path, name):
    rows = [Row(name, f"out/{name}", "failed", "12", "-1.5", "0.5", f"no such file: {name}")]
    write_rows(tmp_path, rows)
    assert list(read_rows(tmp_path).values()) == rows
    job = {"status": "failed", "varied": {"seed": "1", "input": name}, "error": name, "seconds": 1.0}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text(json.dumps(job))
    write_results(tmp_path)
    cells = dict.fromkeys(COLUMNS) | {"method": name, "source": "measured"}
    (tmp_path / "page").mkdir()
    write_tables(tmp_path / "page", Page([cells], "title"))
    write_table(tmp_path / "saved.csv", pd.DataFrame({name: [name]}))
    found = {path.name: computed(path.read_bytes().decode()) for path in tmp_path.rglob("*.csv")}
    assert found == {"summary.csv": [], "results.csv": [], "table.csv": [], "saved.csv": []}


def test_markdown_and_html_escape(tmp_path):
    name = "a|b <script>alert(1)</script>\n| c"
    assert to_markdown([["head"], [name]]).splitlines()[2:] == ["| a\\|b &lt;script>alert(1)&lt;/script> \\| c |"]
    cells = dict.fromkeys(COLUMNS) | {"method": name, "source": "measured"}
    write_tables(tmp_path, Page([cells], "<script>"))
    assert "<script>" not in (tmp_path / "table.html").read_text()
    assert "<script>" not in (tmp_path / "table.md").read_text().partition("\n")[2]
    assert "<script>alert" not in render(Content("t", table=pd.DataFrame({name: [name]})))
