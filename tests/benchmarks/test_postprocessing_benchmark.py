"""The benchmark of post-processing: gains are those of the steps, a search finds the best, words are checked."""

import json

import numpy as np
import pytest
from scipy import ndimage
from written import write

from mitoseg.metrics import count, scores
from mitoseg.segmentation import Postprocess

SHAPE = (12, 48, 48)
SIZE = (5.0, 5.0, 5.0)


@pytest.fixture
def made(tmp_path):
    """Two noisy balls with specks: arrays of probability and truth, and the words that name their files."""
    rng, arrays, words = np.random.default_rng(0), [], {"predictions": [], "truths": [], "images": []}
    z, y, x = np.indices(SHAPE)
    for i in range(2):
        truth = (4 * (z - 6) ** 2 + (y - 20 - 4 * i) ** 2 + (x - 24) ** 2 < 14**2).astype(np.uint8)
        noisy = ndimage.gaussian_filter(truth + rng.normal(0, 0.9, SHAPE), 1)
        probability = np.clip(0.1 + 0.8 * noisy, 0, 1).astype(np.float32)
        arrays.append((probability, truth))
        words["predictions"].append(
            write(tmp_path / f"p{i}.tif", probability, SIZE, kind="probability", threshold=0.5 + 0.05 * i)
        )
        words["truths"].append(write(tmp_path / f"t{i}.tif", truth * 255, SIZE))
        words["images"].append(write(tmp_path / f"i{i}.tif", (200 - 100 * truth).astype(np.uint8), SIZE))
    return arrays, [f"{key}={','.join(paths)}" for key, paths in words.items()]


def expected(arrays, steps, part=slice(None)):
    counts = [count(steps(p, 0.5 + 0.05 * i, SIZE)[part] > 0, t[part]) for i, (p, t) in enumerate(arrays)]
    return scores(counts[0] + counts[1])


def test_gains_are_those_of_the_steps(scripts, made, tmp_path, capsys):
    arrays, words = made
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
    assert found["min_volume"]["cumulative"]["jaccard_foreground"] > found["none"]["alone"]["jaccard_foreground"]
    best = 100 * found["min_volume"]["cumulative"]["jaccard_foreground"]
    assert f"{best:.2f}" in capsys.readouterr().out


def test_the_best_of_the_grid_is_taken(scripts, made):
    arrays, words = made
    command = [*words, "postprocess=none", "grid.z_median=[null,3,9]", "grid.watershed=[null,2]"]
    report = scripts("postprocessing").main(command)
    tried = report["tried"]
    assert len(tried) == 6
    assert report["steps"]["z_median"] == tried[0]["z_median"]
    values = [row["jaccard_foreground"] for row in tried]
    assert values == sorted(values, reverse=True)
    plain = next(row for row in tried if row["z_median"] is None and row["watershed"] is None)
    assert plain["jaccard_foreground"] == expected(arrays, Postprocess())["jaccard_foreground"]


@pytest.mark.parametrize("name", ["none", "paper", "clean"])
def test_configs_are_read(scripts, made, name):
    report = scripts("postprocessing").main([*made[1], f"postprocess={name}"])
    assert report["steps"]["min_mean"] == (0.8 if name == "paper" else None)
    assert report["tried"] == []


BAD = [
    (["truths=a.tif"], "does not fit 2 predictions"),
    (["score=0:4"], "does not fit 2 predictions"),
    (["score=0:4,0:40"], "leaves the volume"),
    (["postprocess=nonsense"], "no such post-processing"),
    (["grid.nonsense=[1]"], "not a list of values of a step"),
    (["grid.z_median=3"], "not a list of values of a step"),
    (["grid.z_median=[4]"], "not odd"),
    (["nonsense=1"], "nonsense"),
    (["predictions=nowhere.tif,nowhere.tif"], "nowhere.tif"),
]


@pytest.mark.parametrize(("words", "line"), BAD)
def test_words_that_cannot_be_read(scripts, made, words, line):
    with pytest.raises(SystemExit, match=f"error: .*{line}"):
        scripts("postprocessing").main([*made[1], *words])


def test_a_mask_is_no_probability(scripts, made, tmp_path):
    mask = write(tmp_path / "m.tif", made[0][0][1], SIZE, kind="mask")
    with pytest.raises(SystemExit, match="no probabilities"):
        scripts("postprocessing").main([f"predictions={mask}", f"truths={mask}"])
