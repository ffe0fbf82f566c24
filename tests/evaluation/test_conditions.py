"""Conditions compared from files: hand-made tables, what is left out, what is warned of, what is written."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from mitoseg.errors import UserError
from mitoseg.evaluation.conditions import (
    ComparisonOptions,
    choose_columns,
    compare_conditions,
    comparison_plot,
    read_groups,
)
from mitoseg.evaluation.effects import hedges_g

QUICK = ComparisonOptions(resamples=100)


def write(folder, name, /, **columns):
    path = folder / name
    table = pd.DataFrame(columns)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.fixture
def small(tmp_path):
    """Two volumes of control, one of disease; the border cuts two objects, one value is missing."""
    return {
        "control": [
            write(tmp_path, "a.csv", instance=[1, 2, 3], volume_nm3=[1.0, 2.0, 90.0], grey_mean=[5.0, 6.0, 7.0],
                  centroid_z_nm=[0.0, 1.0, 2.0], box_z0=[0, 0, 0], touches_border=[False, False, True]),
            write(tmp_path, "b.csv", instance=[1, 2], volume_nm3=[3.0, 4.0], grey_mean=[8.0, 9.0],
                  centroid_z_nm=[0.0, 1.0], box_z0=[0, 0], touches_border=[False, False]),
        ],
        "disease": [
            write(tmp_path, "c.csv", instance=[4, 5, 6, 7], volume_nm3=[5.0, 6.0, np.nan, 80.0],
                  grey_mean=[1.0, 2.0, 3.0, 4.0], centroid_z_nm=[0.0] * 4, box_z0=[0] * 4,
                  touches_border=[False, False, False, True]),
        ],
    }  # fmt: skip


def row_of(table, **keys):
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_table_by_hand(small):
    found = compare_conditions(small, QUICK)
    assert list(found.values) == ["volume_nm3", "grey_mean"]
    row = row_of(found.groups, column="volume_nm3", group="control")
    assert row[["objects", "volumes", "cut_left_out", "missing"]].tolist() == [4, 2, 1, 0]
    assert row[["mean", "median", "mean_of_volumes"]].tolist() == [2.5, 2.5, 2.5]
    assert row["mean_low"] <= 2.5 <= row["mean_high"]
    row = row_of(found.groups, column="volume_nm3", group="disease")
    assert row[["objects", "volumes", "cut_left_out", "missing"]].tolist() == [2, 1, 1, 1]
    row = row_of(found.groups, column="grey_mean", group="control")
    assert row[["objects", "cut_left_out", "mean", "mean_of_volumes"]].tolist() == [5, 0, 7, 7.25]
    test = row_of(found.tests, column="volume_nm3")
    assert test[["difference", "cliffs_delta"]].tolist() == [3, 1]
    assert test["hedges_g"] == pytest.approx(hedges_g(np.array([1.0, 2, 3, 4]), np.array([5.0, 6])))
    assert test[["p_objects", "p_objects_adjusted"]].tolist() == pytest.approx([2 / 15] * 2)
    assert math.isnan(test["p_volumes"])
    notes = found.notes
    assert notes[0].startswith("WARNING, pseudoreplication: disease has values of one volume only.")
    assert any("Holm" in note and "2 columns" in note for note in notes)
    assert any("(1 of control, 1 of disease) of: volume_nm3." in note for note in notes)
    kept = compare_conditions(small, ComparisonOptions(resamples=100, cut_objects="keep"))
    assert row_of(kept.groups, column="volume_nm3", group="control")["objects"] == 5
    assert not any("left out" in note for note in kept.notes)


def simulated(folder, shift, *, volumes=4, seed=1):
    rng = np.random.default_rng(seed)
    groups = {}
    for name, mean in (("control", 0.0), ("treated", shift)):
        groups[name] = [
            write(folder, f"{name}{i}.parquet", length_nm=rng.normal(mean, 1, 40), surface_nm2=rng.lognormal(0, 2, 40))
            for i in range(volumes)
        ]
    return groups


def test_several_volumes_have_a_test_of_volumes(tmp_path):
    found = compare_conditions(simulated(tmp_path, 1.0), QUICK)
    test = row_of(found.tests, column="length_nm")
    assert test["p_volumes"] == pytest.approx(2 / 70)
    assert test["p_volumes_adjusted"] == pytest.approx(4 / 70)
    assert test["hedges_g"] == pytest.approx(1, abs=0.25)
    assert test["hedges_g_low"] > 0
    assert found.notes[0].startswith("Judge by p_volumes")
    assert not any("pseudoreplication" in note for note in found.notes)
    assert any("without a column touches_border" in note for note in found.notes)
    again, other = (compare_conditions(simulated(tmp_path, 1.0), replace(QUICK, seed=seed)) for seed in (1, 2))
    pd.testing.assert_frame_equal(again.tests, found.tests)
    pd.testing.assert_frame_equal(again.groups, found.groups)
    assert not other.groups["mean_low"].equals(found.groups["mean_low"])
    length, surface = comparison_plot(found).axes
    assert (length.get_ylabel(), surface.get_ylabel()) == ("length (nm)", "surface (µm²)")
    assert (length.get_yscale(), surface.get_yscale()) == ("linear", "log")
    ticks = [t.get_text() for t in length.get_xticklabels()]
    assert ticks == ["control\n4 vol., 160 obj.", "treated\n4 vol., 160 obj."]
    assert "p of volumes 0.0571" in length.get_title()
    marks = [line for line in length.lines if line.get_marker() not in (".", "None")]
    drawn = sorted(float(line.get_ydata()[0]) for line in marks)
    assert drawn == pytest.approx(sorted(v.mean() for g in found.values["length_nm"].values() for v in g))
    few = compare_conditions(simulated(tmp_path, 1.0, volumes=2), QUICK)
    assert any("cannot be below 0.33" in note for note in few.notes)


def test_three_conditions_are_compared_in_pairs_and_everything_cut_is_no_value(tmp_path, small):
    small["third"] = [write(tmp_path, "d.csv", volume_nm3=[1.0, 7.0], grey_mean=[1.0, 1.0], touches_border=[0, 0])]
    found = compare_conditions(small, ComparisonOptions(resamples=100, columns=["volume_nm3"]))
    pairs = found.tests[["group_a", "group_b"]].to_numpy().tolist()
    assert pairs == [["control", "disease"], ["control", "third"], ["disease", "third"]]
    assert any("3 columns and pairs" in note for note in found.notes)
    comparison_plot(found)
    cut = {"a": ["True", "True"], "b": [False, True]}
    groups = {n: [write(tmp_path, f"{n}.csv", volume_nm3=[1.0, 2.0], touches_border=c)] for n, c in cut.items()}
    found = compare_conditions(groups, QUICK)
    assert found.groups["objects"].tolist() == [0, 1]
    assert found.groups["mean_low"].isna().all()
    assert found.tests[["difference", "hedges_g", "cliffs_delta", "p_objects"]].isna().all(axis=None)
    assert any("No values are left in: volume_nm3 of a." in note for note in found.notes)
    comparison_plot(found)


def test_a_folder_is_written(tmp_path, small):
    found = compare_conditions(small, QUICK)
    for options in ({}, {"overwrite": True}):
        found.save(tmp_path / "out", **options)
        names = ["comparison.md", "comparison.png", "groups.csv", "tests.csv"]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "tests.csv"), found.tests)
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "WARNING, pseudoreplication" in text
    assert "| volume_nm3 | disease - control | 3 [" in text
    assert imread(tmp_path / "out" / "comparison.png").shape[2] == 4
    with pytest.raises(UserError, match="exists"):
        found.save(tmp_path / "out")
    with pytest.raises(UserError, match="other files"):
        found.save(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("c.csv", None, "twice, in a and b"),
        ("no.csv", None, "no such table"),
        ("no.xlsx", None, "unknown kind"),
        ("empty.csv", "volume_nm3\n", "no rows"),
        ("broken.csv", "", "cannot be read"),
        ("broken.parquet", "", "cannot be read"),
        ("odd.csv", "volume_nm3,touches_border\n1.0,perhaps\n", "neither true nor false"),
    ],
)
def test_bad_tables(tmp_path, small, name, content, match):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=match):
        read_groups({"a": small["disease"], "b": [tmp_path / "." / name]})


def test_bad_options(small):
    bad = {
        "cut_objects": "maybe",
        "correction": "bonferroni",
        "resamples": 5,
        "permutations": 1.5,
        "level": 95,
        "seed": -1,
    }
    for name, value in bad.items():
        with pytest.raises(UserError, match=name):
            ComparisonOptions(**{name: value})
    for groups, message in (({}, "two conditions"), ({"b": []}, "no files")):
        with pytest.raises(UserError, match=message):
            read_groups({"a": small["disease"], **groups})


def test_columns_that_all_tables_have(tmp_path, small):
    other, named = write(tmp_path, "d.csv", volume_nm3=[1.0], name=["x"]), write(tmp_path, "e.csv", name=["y"])
    read, words = read_groups({"a": small["disease"], "b": [other]}), read_groups({"a": [other], "b": [named]})
    assert choose_columns(read, None) == ["volume_nm3"]
    for groups, columns, match in (
        (read, ["grey_mean"], r"grey_mean.*d\.csv.*choose from volume_nm3, name"),
        (words, ["name"], "no numbers"),
        (words, None, "no measure"),
    ):
        with pytest.raises(UserError, match=match):
            choose_columns(groups, columns)
