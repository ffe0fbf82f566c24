"""The benchmarks that search: of instances and of post-processing. Gains are those of the steps; words are checked."""

import json

import numpy as np
import pytest
from scipy import ndimage
from written import write

from mitoseg.metrics import count, scores
from mitoseg.segmentation import Postprocess

SHAPE, SIZE, LARGE = (12, 48, 48), (5.0, 5.0, 5.0), (10.0, 10.0, 10.0)


@pytest.fixture
def joined(tmp_path):
    """Two bodies that a prediction joins, with a speck; the truth is two volumes in one file."""
    z, y, x = np.indices((20, 24, 60))
    truth = ((z - 10) ** 2 + (y - 12) ** 2 + (x - 14) ** 2 < 81) | ((z - 10) ** 2 + (y - 12) ** 2 + (x - 44) ** 2 < 81)
    joined = truth.copy()
    joined[9:12, 11:14, 14:44] = joined[:2, :2, :2] = True
    probability = np.where(joined, 0.9, 0.1).astype(np.float32)
    truths = write(tmp_path / "truth.tif", np.concatenate([truth, truth]).astype(np.uint8) * 255, LARGE)
    about = {"kind": "probability", "threshold": 0.5}
    paths = [write(tmp_path / f"joined{i}.tif", probability, LARGE, **about) for i in range(2)]
    words = [f"predictions={','.join(paths)}", f"truths={truths},{truths}", "slices=0:20,20:40", "small=5"]
    return [*words, "labelling.fragment=1e6"]


@pytest.fixture
def balls(tmp_path):
    """Two noisy balls with specks: arrays of probability and truth, and the words that name their files."""
    rng, arrays, words = np.random.default_rng(0), [], {"predictions": [], "truths": [], "images": []}
    z, y, x = np.indices(SHAPE)
    for i in range(2):
        truth = (4 * (z - 6) ** 2 + (y - 20 - 4 * i) ** 2 + (x - 24) ** 2 < 14**2).astype(np.uint8)
        noisy = ndimage.gaussian_filter(truth + rng.normal(0, 0.9, SHAPE), 1)
        probability = np.clip(0.1 + 0.8 * noisy, 0, 1).astype(np.float32)
        arrays.append((probability, truth))
        found = write(tmp_path / f"p{i}.tif", probability, SIZE, kind="probability", threshold=0.5 + 0.05 * i)
        words["predictions"].append(found)
        words["truths"].append(write(tmp_path / f"t{i}.tif", truth * 255, SIZE))
        words["images"].append(write(tmp_path / f"i{i}.tif", (200 - 100 * truth).astype(np.uint8), SIZE))
    return arrays, [f"{key}={','.join(paths)}" for key, paths in words.items()]


def test_the_best_options_of_instances_are_found(scripts, joined, tmp_path, capsys):
    out = tmp_path / "out.json"
    grid = ["grid.split=[false,true]", "grid.min_volume=[null,1e5]", "grid.postprocess=[none,clean]"]
    report = scripts("instances").main([*joined, *grid, f"out={out}"])
    assert report["best"]["labelling"]["split"]
    assert report["best"]["labelling"]["min_volume"] == 1e5
    row = report["scores"]["all"]
    assert (row["truth"], row["result"], row["matched"][0]["tp"], row["splits"], row["merges"]) == (4, 4, 4, 0, 0)
    tried = {(r["named"]["split"], r["named"]["min_volume"], r["named"]["postprocess"]): r for r in report["tried"]}
    assert len(tried) == 8
    worst = tried[False, None, "none"]
    assert (worst["merges"], worst["fp"], worst["f1"]) == (2, 4, 0)
    assert report["cross_validated"]["scores"]["all"]["matched"][0]["f1"] == 1
    assert set(report["each"]) == {"joined0.tif", "joined1.tif"}
    assert json.loads(out.read_text(encoding="utf-8"))["best"] == report["best"]
    assert "cross-validated" in capsys.readouterr().out
    report = scripts("instances").main([*joined, "labelling.split=true", "crop=[0:20,0:24,0:30]"])
    assert report["best"]["labelling"]["split"]
    assert report["scores"]["all"]["truth"] == 2
    assert "cross_validated" not in report


def expected(arrays, steps, part=slice(None)):
    counts = [count(steps(p, 0.5 + 0.05 * i, SIZE)[part] > 0, t[part]) for i, (p, t) in enumerate(arrays)]
    return scores(counts[0] + counts[1])


def test_gains_are_those_of_the_steps(scripts, balls, tmp_path, capsys):
    arrays, words = balls
    out = tmp_path / "out.json"
    grid = ["grid.smooth=[5.0]", "grid.threshold=[0.4]", "grid.z_median=[3]", "grid.min_volume=[4e4]"]
    command = [*words[:2], "postprocess=none", "score=2:9,2:9", *grid, f"out={out}"]
    scripts("postprocessing").main(command)
    report = json.loads(out.read_text(encoding="utf-8"))
    all_on = {"smooth": 5.0, "threshold": 0.4, "z_median": 3, "min_volume": 4e4}
    found = report["gains"]
    assert list(found) == ["none", *all_on]
    part = slice(2, 9)
    assert found["none"]["alone"] == pytest.approx(expected(arrays, Postprocess(), part))
    before = {}
    for name, value in all_on.items():
        before[name] = value
        without = {key: v for key, v in all_on.items() if key != name}
        assert found[name]["alone"] == pytest.approx(expected(arrays, Postprocess(**{name: value}), part))
        assert found[name]["cumulative"] == pytest.approx(expected(arrays, Postprocess(**before), part))
        assert found[name]["without"] == pytest.approx(expected(arrays, Postprocess(**without), part))
    assert report["thresholds"] == {"p0.tif": 0.5, "p1.tif": 0.55}
    assert set(report["each"]) == {"p0.tif", "p1.tif"}
    best = found["min_volume"]["cumulative"]["jaccard_foreground"]
    assert best > found["none"]["alone"]["jaccard_foreground"]
    assert f"{100 * best:.2f}" in capsys.readouterr().out


def test_the_best_of_the_grid_is_taken(scripts, balls):
    arrays, words = balls
    command = [*words, "postprocess=none", "grid.z_median=[null,3,9]", "grid.watershed=[null,2]"]
    report = scripts("postprocessing").main(command)
    tried = report["tried"]
    assert len(tried) == 6
    assert report["steps"]["z_median"] == tried[0]["z_median"]
    values = [row["jaccard_foreground"] for row in tried]
    assert values == sorted(values, reverse=True)
    plain = next(row for row in tried if row["z_median"] is None and row["watershed"] is None)
    assert plain["jaccard_foreground"] == expected(arrays, Postprocess())["jaccard_foreground"]
    report = scripts("postprocessing").main([*words, "postprocess=paper"])
    assert (report["steps"]["min_mean"], report["tried"]) == (0.8, [])


BAD = {
    "instances": [
        ("slices=0:20", "differ in number"),
        ("slices=0:20,20:30", "differ in shape"),
        ("grid.nonsense=[1]", "not a list of values"),
        ("grid.neck=3", "not a list of values"),
        ("labelling.nonsense=3", "no such option of labelling"),
        ("labelling.neck=3", "neck is not a fraction"),
        ("postprocess=nonsense", "no such post-processing"),
        ("nonsense=1", "nonsense"),
    ],
    "postprocessing": [
        ("truths=a.tif", "does not fit 2 predictions"),
        ("score=0:4", "does not fit 2 predictions"),
        ("score=0:4,0:40", "leaves the volume"),
        ("postprocess=nonsense", "no such post-processing"),
        ("grid.nonsense=[1]", "not a list of values of a step"),
        ("grid.z_median=3", "not a list of values of a step"),
        ("grid.z_median=[4]", "not odd"),
        ("nonsense=1", "nonsense"),
        ("predictions=nowhere.tif,nowhere.tif", "nowhere.tif"),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_words_that_cannot_be_read(scripts, joined, balls, tmp_path, name):
    words = {"instances": joined, "postprocessing": balls[1]}[name]
    for word, line in BAD[name]:
        with pytest.raises(SystemExit, match=f"error: .*{line}"):
            scripts(name).main([*words, word])
    mask = write(tmp_path / "m.tif", balls[0][0][1], SIZE, kind="mask")
    with pytest.raises(SystemExit, match="no probabilities"):
        scripts("postprocessing").main([f"predictions={mask}", f"truths={mask}"])
