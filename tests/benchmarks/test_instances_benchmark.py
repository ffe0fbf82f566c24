"""The benchmark of instances: it finds the option that repairs a made mistake, and cross-validates the choice."""

import json

import numpy as np
import pytest
from written import write

SIZE = (10.0, 10.0, 10.0)


@pytest.fixture
def made(tmp_path):
    """Two bodies that a prediction joins, with a speck; the truth is two volumes in one file."""
    z, y, x = np.indices((20, 24, 60))
    truth = ((z - 10) ** 2 + (y - 12) ** 2 + (x - 14) ** 2 < 81) | ((z - 10) ** 2 + (y - 12) ** 2 + (x - 44) ** 2 < 81)
    joined = truth.copy()
    joined[9:12, 11:14, 14:44] = joined[:2, :2, :2] = True
    probability = np.where(joined, 0.9, 0.1).astype(np.float32)
    truths = write(tmp_path / "t.tif", np.concatenate([truth, truth]).astype(np.uint8) * 255, SIZE)
    paths = [write(tmp_path / f"p{i}.tif", probability, SIZE, kind="probability", threshold=0.5) for i in range(2)]
    return [
        f"predictions={','.join(paths)}",
        f"truths={truths},{truths}",
        "slices=0:20,20:40",
        "small=5",
        "labelling.fragment=1e6",
    ]


def test_the_best_options_are_found(scripts, made, tmp_path, capsys):
    out = tmp_path / "out.json"
    grid = ["grid.split=[false,true]", "grid.min_volume=[null,1e5]", "grid.postprocess=[none,clean]"]
    report = scripts("instances").main([*made, *grid, f"out={out}"])
    assert report["best"]["labelling"]["split"]
    assert report["best"]["labelling"]["min_volume"] == 1e5
    row = report["scores"]["all"]
    assert (row["truth"], row["result"], row["matched"][0]["tp"], row["splits"], row["merges"]) == (4, 4, 4, 0, 0)
    tried = {(r["named"]["split"], r["named"]["min_volume"], r["named"]["postprocess"]): r for r in report["tried"]}
    assert len(tried) == 8
    worst = tried[False, None, "none"]
    assert (worst["merges"], worst["fp"], worst["f1"]) == (2, 4, 0)
    assert report["cross_validated"]["scores"]["all"]["matched"][0]["f1"] == 1
    assert set(report["each"]) == {"p0.tif", "p1.tif"}
    assert json.loads(out.read_text(encoding="utf-8"))["best"] == report["best"]
    assert "cross-validated" in capsys.readouterr().out


def test_without_a_grid(scripts, made):
    report = scripts("instances").main([*made, "labelling.split=true", "crop=[0:20,0:24,0:30]"])
    assert report["best"]["labelling"]["split"]
    assert report["scores"]["all"]["truth"] == 2
    assert "cross_validated" not in report


BAD = [
    (["slices=0:20"], "differ in number"),
    (["slices=0:20,20:30"], "differ in shape"),
    (["grid.nonsense=[1]"], "not a list of values"),
    (["grid.neck=3"], "not a list of values"),
    (["labelling.nonsense=3"], "no such option of labelling"),
    (["labelling.neck=3"], "neck is not a fraction"),
    (["postprocess=nonsense"], "no such post-processing"),
    (["nonsense=1"], "nonsense"),
]


@pytest.mark.parametrize(("words", "line"), BAD)
def test_words_that_cannot_be_read(scripts, made, words, line):
    with pytest.raises(SystemExit, match=f"error: .*{line}"):
        scripts("instances").main([*made, *words])
