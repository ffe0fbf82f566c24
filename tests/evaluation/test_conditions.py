"""Conditions compared: tables by hand, what is left out and warned of; effects, intervals and tests against SciPy."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import mannwhitneyu, permutation_test

from mitoseg.errors import UserError
from mitoseg.evaluation.conditions import (
    ComparisonOptions,
    choose_columns,
    compare_conditions,
    comparison_plot,
    read_groups,
)
from mitoseg.evaluation.effects import adjust, bootstrap, cliffs_delta, hedges_g, object_test, volume_test

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


VALUES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@given(VALUES, VALUES)
def test_cliffs_delta_counts_pairs(a, b):
    pairs = [(y > x) - (y < x) for x, y in itertools.product(a, b)]
    assert cliffs_delta(np.array(a), np.array(b)) == pytest.approx(sum(pairs) / len(pairs))


def test_effects_by_hand_as_a_linear_function_of_u_and_of_nothing():
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    u = mannwhitneyu(b, a).statistic
    assert cliffs_delta(a, b) == pytest.approx(2 * u / 1600 - 1)
    assert object_test(a, b) == mannwhitneyu(b, a).pvalue
    a, b = np.array([1.0, 2, 3, 4]), np.array([3.0, 5, 7])
    pooled = math.sqrt((3 * (5 / 3) + 2 * 4) / 5)
    assert hedges_g(a, b) == pytest.approx((1 - 3 / 19) * 2.5 / pooled)
    assert hedges_g(b, a) == -hedges_g(a, b)
    assert math.isnan(hedges_g(a[:1], b))
    assert math.isnan(hedges_g(np.full(5, 0.1), np.full(5, 0.1)))

    none, some = np.zeros(0), np.ones(3)
    assert all(math.isnan(f(none, some)) for f in (cliffs_delta, hedges_g, object_test))
    ends = bootstrap([none], [some], resamples=100, level=0.9, seeds=([1], [2]))
    assert all(math.isnan(low) for low, _ in ends.values())
    assert math.isnan(volume_test([none, some], [some, some], permutations=100, rng=np.random.default_rng(1))[0])


def test_the_permutation_test_is_scipys():
    rng = np.random.default_rng(3)
    a, b = [rng.normal(0, 1, 5) for _ in range(4)], [rng.normal(1, 1, 7) for _ in range(3)]
    p, least = volume_test(a, b, permutations=1000, rng=rng)

    def apart(x, y, axis=-1):
        return np.abs(x.mean(axis=axis) - y.mean(axis=axis))

    means = [np.array([v.mean() for v in group]) for group in (a, b)]
    oracle = permutation_test(means, apart, alternative="greater", n_resamples=10_000)
    assert p == pytest.approx(oracle.pvalue)
    assert least == pytest.approx(1 / 35)


@pytest.mark.parametrize(("count", "p"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70)])
def test_groups_far_apart_have_the_least_p(count, p):
    far = [np.array([100.0 + i]) for i in range(count)]
    near = [np.array([float(i)]) for i in range(count)]
    assert volume_test(near, far, permutations=1000, rng=np.random.default_rng(1)) == pytest.approx((p, p))
    assert volume_test(near, near, permutations=1000, rng=np.random.default_rng(1))[0] == 1


def test_random_permutations_stand_in_for_all():
    rng = np.random.default_rng(5)
    a, b = [rng.normal(0, 1, 3) for _ in range(7)], [rng.normal(1, 1, 3) for _ in range(7)]
    exact, _ = volume_test(a, b, permutations=5000, rng=rng)
    drawn, least = volume_test(a, b, permutations=3000, rng=rng)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert least == 1 / 3001
    a = [np.array([0.0] * 1000), np.array([10.0])]  # a volume counts once
    b = [np.array([0.0]), np.array([10.0] * 1000)]
    assert volume_test(a, b, permutations=100, rng=np.random.default_rng(1))[0] == 1


def test_intervals_over_objects_are_scipys():
    rng = np.random.default_rng(7)
    a, b = rng.gamma(2, 3, 60), rng.gamma(2, 4, 50)
    ours = bootstrap([a], [b], resamples=4000, level=0.9, seeds=([1, 0], [1, 1]))
    for name, statistic in (("mean", np.mean), ("median", np.median)):
        for side, values in (("a", a), ("b", b)):
            theirs = scipy_bootstrap(
                (values,), statistic, confidence_level=0.9, method="percentile", n_resamples=4000, rng=2
            ).confidence_interval
            assert ours[f"{name}_{side}"] == pytest.approx(tuple(theirs), rel=0.05)
    for name, statistic in (("hedges_g", hedges_g), ("cliffs_delta", cliffs_delta)):
        theirs = scipy_bootstrap(
            (a, b), statistic, vectorized=False, confidence_level=0.9, method="percentile", n_resamples=2000, rng=2
        ).confidence_interval
        assert ours[name] == pytest.approx(tuple(theirs), abs=0.06)


def test_intervals_over_volumes_are_wider_where_volumes_differ():
    rng = np.random.default_rng(9)
    a = [rng.normal(shift, 1, 50) for shift in (0, 3, 6, 9)]
    b = [rng.normal(shift, 1, 50) for shift in (1, 4, 7, 10)]
    seeds = ([1, 0], [1, 1])
    by_volume = bootstrap(a, b, resamples=500, level=0.95, seeds=seeds)
    pooled = bootstrap([np.concatenate(a)], [np.concatenate(b)], resamples=500, level=0.95, seeds=seeds)
    assert np.ptp(by_volume["difference"]) > 3 * np.ptp(pooled["difference"])
    assert bootstrap(a, b, resamples=500, level=0.95, seeds=seeds) == by_volume
    assert bootstrap(a, b[:2], resamples=500, level=0.95, seeds=seeds)["mean_a"] == by_volume["mean_a"]


def test_false_alarms_when_volumes_differ_but_conditions_do_not():
    """Objects of a volume share its shift: U cries wolf far more often than 1 in 20, the test of volumes does not."""
    rng = np.random.default_rng(11)
    alarms = np.zeros(2)
    for _ in range(200):
        volumes = [rng.normal(rng.normal(0, 0.7), 1, 30) for _ in range(10)]
        a, b = volumes[:5], volumes[5:]
        p_volumes, _ = volume_test(a, b, permutations=252, rng=rng)
        alarms += [object_test(np.concatenate(a), np.concatenate(b)) < 0.05, p_volumes < 0.05]
    by_object, by_volume = alarms / 200
    assert by_object > 0.3
    assert by_volume < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_a_true_difference_is_found_with_its_size():
    rng = np.random.default_rng(13)
    a, b = ([rng.normal(mean, 1, 80) for _ in range(6)] for mean in (0, 0.8))
    assert hedges_g(np.concatenate(a), np.concatenate(b)) == pytest.approx(0.8, abs=0.15)
    low, high = bootstrap(a, b, resamples=500, level=0.95, seeds=([1], [2]))["hedges_g"]
    assert low < 0.8 < high
    assert volume_test(a, b, permutations=1000, rng=rng)[0] == pytest.approx(2 / 924)


def test_corrections_by_hand():
    assert adjust([0.01, 0.04, 0.03, 0.005], "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.01, 0.04, 0.03, 0.005], "benjamini_hochberg") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjust([0.01, 0.04], "none") == [0.01, 0.04]
    assert all(math.isnan(p) for p in adjust([math.nan, math.nan], "holm"))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(["holm", "benjamini_hochberg"]))
def test_corrections_only_raise_and_keep_the_order(p_values, correction):
    adjusted = np.array(adjust(p_values, correction))
    assert (adjusted >= np.array(p_values) - 1e-12).all()
    assert adjusted.max() <= 1
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()
