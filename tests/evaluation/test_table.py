"""The printed table says what the result says."""

import io
import re

import numpy as np
from rich.console import Console

from mitoseg.evaluation import Bootstrap, evaluate, pool_evaluations
from mitoseg.evaluation.table import score_table
from mitoseg.geometry import Box
from mitoseg.volumes.base import ArrayVolume


def printed(result, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(score_table(result, title="a [bracketed] name"))
    return out.getvalue()


def result(**options):
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 20, 20), np.uint8)
    truth[1:5, 4:16, 4:16] = 1
    probability = np.clip(0.2 + 0.6 * truth + rng.normal(0, 0.2, truth.shape), 0, 1)
    return evaluate(ArrayVolume(probability), ArrayVolume(truth, (5.0, 5.0, 5.0)), **options)


def test_every_score_is_in_the_table_and_nothing_is_cut_off():
    scores = result(bands=[1, 3])
    text = printed(scores)
    for key in ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall"):
        assert f"{scores[key]:.4f}" in text
    for key in ("average_precision", "brier_score", "adaptive_calibration_error", "jaccard_foreground_oracle"):
        assert f"{scores[key]:.4f}" in text
    assert "…" not in text
    low, high = scores["interval"]["dice"]
    words = ["a [bracketed] name", "0.5000", "(default)", "[0:6,0:20,0:20]", "2,400", "5, 5, 5 nm"]
    words += [f"{low:.4f} to {high:.4f}", "bootstrap over 6 z-slabs", "upper bound, no result"]
    assert [word for word in words if word not in text] == []
    rows = re.findall(r"│\s+([13]) │(.*)│", text)
    assert [row[0] for row in rows] == ["1", "3"]
    for distance, cells in rows:
        expected = []
        for row in scores["boundary"]:
            if row["distance"] == int(distance):
                expected += [f"{row['jaccard_foreground']:.4f}", f"{row['jaccard_mean']:.4f}"]
                left_out = (row["left_out_foreground"], row["left_out_background"])
                expected.append(", ".join(f"{100 * share:.1f}" for share in left_out))
        assert [cell.strip() for cell in cells.split("│")] == [e.replace("nan", "-") for e in expected]


def test_what_is_missing_has_no_place():
    text = printed(result(slabs=1, kind="mask"))
    assert "one z-slab: no intervals" in text
    assert " to " not in text
    assert "Brier" not in text
    assert "slab" not in printed(result(bootstrap=Bootstrap(0)))
    nothing = ArrayVolume(np.zeros((1, 4, 4), np.uint8))
    text = printed(evaluate(nothing, nothing, bands=[]))
    assert re.search(r"Dice\s+│\s+- │", text)
    assert "border" not in text
    assert "voxel_size=[z,y,x] sets it" in printed(evaluate(nothing, nothing))


def test_pooled_results_have_a_table():
    parts = [result(crop=Box((0, 0, 0), (3, 20, 20))), result(crop=Box((3, 0, 0), (6, 20, 20)), threshold=0.4)]
    text = printed(pool_evaluations(parts))
    assert "0.5000, 0.4000" in text
    assert "[3:6,0:20,0:20]" in text
