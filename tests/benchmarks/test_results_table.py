"""The table of results: means and deviations by hand, and runs that lack something."""

import json
import math
import re
from statistics import stdev

import numpy as np
import pytest

from mitoseg.evaluation import evaluate
from mitoseg.storage import write_json
from mitoseg.volumes.base import ArrayVolume

FG, MEAN = "jaccard_foreground", "jaccard_mean"


@pytest.fixture
def table(scripts, capsys):
    def call(*words):
        scripts("results_table").main([str(word) for word in words])
        return capsys.readouterr().out

    return call


def scores(seed, wrong=0.1):
    rng = np.random.default_rng(seed)
    truth = np.zeros((4, 24, 24), np.uint8)
    truth[:, 6:18, 6:18] = 1
    mask = np.where(rng.random(truth.shape) < wrong, 1 - truth, truth).astype(np.uint8)
    return evaluate(ArrayVolume(mask, metadata={"kind": "mask"}), ArrayVolume(truth), bands=[1, 2])


def make_run(folder, seed, name="paper", seam=True, **more):
    found = {"validation": scores(seed + 10), "test": scores(seed), "test_clean": scores(seed, wrong=0.01)}
    write_json(folder / "metrics.json", found)
    if seam:
        write_json(folder / "without_seam" / "metrics.json", scores(seed, wrong=0.2))
    (folder / "config.yaml").write_text(f"name: {name}\nseed: {seed}\n")
    arguments = ["train", "data=lucchi", 'data.root="/some/where"', f"seed={seed}", "epochs=9", "hydra.mode=RUN"]
    origin = {"seed": seed, "commit": "0123456789abcdef", "dirty": False, "arguments": arguments}
    write_json(folder / "provenance.json", origin | more)
    return found


def rows(text):
    """Cells of every row, by the first cell, without the heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def cells_of(text):
    """The cells of a table's only row by the heads."""
    head, row = rows(text)
    return dict(zip(head, row, strict=True))


def percent(values):
    values = [100 * v for v in values]
    return f"{sum(values) / len(values):.1f} ± {stdev(values):.1f}"


def test_mean_deviation_costs_and_command(table, tmp_path):
    costs = {"parameters": 145058, "peak_memory": {"process": 2_000_000_000, "device": None}}
    runs = [make_run(tmp_path / f"seed={s}", s, training_seconds=60.0 * s, **costs) for s in (1, 2, 3)]
    cells = cells_of(table(*sorted(tmp_path.iterdir()), "boundary=false"))
    assert (cells["method"], cells["seeds"], cells["commit"]) == ("paper", "1, 2, 3", "0123456")
    for part in ("test", "test_clean"):
        assert cells[f"{part}: fg"] == percent(run[part][FG] for run in runs)
        assert cells[f"{part}: mean"] == percent(run[part][MEAN] for run in runs)
    seams = [json.loads((tmp_path / f"seed={s}" / "without_seam" / "metrics.json").read_text()) for s in (1, 2, 3)]
    assert cells["without_seam: fg"] == percent(seam[FG] for seam in seams)
    assert (cells["parameters"], cells["minutes"], cells["peak GB"]) == ("145,058", "2.0 ± 1.0", "2.0 ± 0.0")
    assert cells["command"] == "`python train.py data=lucchi epochs=9`"


def test_curves_are_pooled_over_seeds(table, tmp_path):
    runs = [make_run(tmp_path / str(s), s) for s in (1, 2)]
    text = table(tmp_path / "1", tmp_path / "2", "parts=test")
    found = [row for row in rows(text) if row[0] == "paper"][1:]
    assert [row[1] for row in found] == ["0", "1", "2"]
    assert found[0][2] == percent(run["test"][FG] for run in runs)
    for row, d in zip(found[1:], (1, 2), strict=True):
        for column, dims in ((2, 3), (5, 2)):
            of_band = [r for run in runs for r in run["test"]["boundary"] if (r["distance"], r["dims"]) == (d, dims)]
            assert row[column] == percent(r[FG] for r in of_band)
            assert row[column + 1] == percent(r[MEAN] for r in of_band)
            assert row[column + 2].startswith(f"{100 * of_band[0]['left_out_foreground']:.1f}, ")
    assert "without_seam" not in text


def test_methods_have_a_row_each_or_one_under_a_given_name(table, tmp_path):
    for seed, name in ((1, "a"), (2, "b")):
        make_run(tmp_path / name, seed, name)
    words = [tmp_path / "a", tmp_path / "b", "boundary=false"]
    assert [row[0] for row in rows(table(*words))] == ["method", "a", "b"]
    assert cells_of(table(*words, "name=both"))["method"] == "both"


def test_what_is_missing_is_a_dash_and_metrics_of_evaluate_will_do(table, tmp_path):
    make_run(tmp_path / "1", 1)
    make_run(tmp_path / "2", 2, seam=False)
    (tmp_path / "2" / "provenance.json").unlink()
    cells = cells_of(table(tmp_path / "1", tmp_path / "2", "boundary=false"))
    assert "±" in cells["test: fg"]
    assert "±" not in cells["without_seam: fg"]
    assert cells["minutes"] == cells["parameters"] == cells["peak GB"] == "-"
    assert cells["seeds"] == "1"
    found = scores(1)
    write_json(tmp_path / "x" / "metrics.json", {**found, "jaccard_background": math.nan})
    for given in (tmp_path / "x", tmp_path / "x" / "metrics.json"):
        cells = cells_of(table(given, "boundary=false"))
        assert (cells["method"], cells["test: fg"], cells["test: bg"]) == ("x", f"{100 * found[FG]:.1f}", "-")
    for words, line in (([], "RUN"), ([tmp_path], "no scores in"), ([tmp_path / "none.json"], "no scores in")):
        with pytest.raises(SystemExit, match=line):
            table(*words)
