"""Scores of blocks: counted by hand, with both classes as they occur and balanced, and at each threshold."""

import numpy as np
import pytest
from written import write


@pytest.fixture
def made(tmp_path):
    """20 blocks of 8 x 8 in one slice: 4 of mitochondria (3 found), 15 of background (2 taken for some), 1 dropped."""
    truth = np.zeros((1, 32, 40), np.uint8)
    truth[0, :8, :32] = 1
    truth[0, 8:16, :4] = 1
    answers = np.full(truth.shape, 0.9, np.float32)  # only the middle of a block is looked at
    answers[:, 4::8, 4::8] = 0.1
    answers[0, 4, [4, 12, 20]] = [0.9, 0.8, 0.7]
    answers[0, 20, [4, 12]] = [0.6, 0.75]
    answers[0, 12, 4] = 0.95
    return {
        "prediction": write(tmp_path / "p.tif", answers, kind="probability", threshold=0.5),
        "truth": write(tmp_path / "t.tif", truth),
    }


@pytest.fixture
def lines(scripts, capsys):
    def call(**words):
        scripts("block_scores").main([f"{key}={value}" for key, value in {"block": 8, **words}.items()])
        head, *rest = capsys.readouterr().out.splitlines()
        return head, {tuple(line.split()[:3:2]): [float(word) for word in line.split()[4::2]] for line in rest}

    return call


def test_counts_by_hand(made, lines):
    head, found = lines(**made)
    assert head == "19 blocks, 4 of mitochondria"
    fg, bg = 3 / (4 + 2), 13 / (15 + 1)
    assert found["file", "all"] == pytest.approx([100 * fg, 100 * bg, 50 * (fg + bg)], abs=0.051)
    weight = 4 / 15
    fg, bg = 3 / (4 + 2 * weight), 13 * weight / (15 * weight + 1)
    assert found["file", "balanced"] == pytest.approx([100 * fg, 100 * bg, 50 * (fg + bg)], abs=0.051)


def test_thresholds_by_prior_and_by_validation(made, lines):
    _, found = lines(**made, prior=0.72, choose=made["prediction"], choose_truth=made["truth"])
    assert set(found) == {(by, kind) for by in ("file", "prior", "validation") for kind in ("all", "balanced")}
    assert found["prior", "all"][0] == pytest.approx(100 * 2 / 5, abs=0.051)
    assert found["validation", "balanced"][0] == max(
        found[by, "balanced"][0] for by in ("file", "prior", "validation")
    )


def test_mistakes_are_said(made, lines, tmp_path):
    for shape, line in (((32, 32), "of one shape"), ((32, 40), "all of one class")):
        truth = write(tmp_path / f"{line}.tif", np.eye(*shape, dtype=np.uint8)[None])
        with pytest.raises(SystemExit, match=line):
            lines(prediction=made["prediction"], truth=truth)
