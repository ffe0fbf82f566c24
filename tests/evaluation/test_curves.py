"""Figures of scores: what they show, and what has none."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from mitoseg.errors import UserError
from mitoseg.evaluation import evaluate
from mitoseg.evaluation.figures import boundary_figure, precision_recall_figure, reliability_figure, save_curves
from mitoseg.storage import plain
from mitoseg.volumes.base import ArrayVolume


def result(foreground=True, **options):
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 30, 30), np.uint8)
    truth[1:5, 5:25, 5:25] = foreground
    probability = np.clip(0.25 + 0.5 * truth + rng.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)
    return evaluate(ArrayVolume(probability), ArrayVolume(truth, (5.0, 5.0, 5.0)), **options)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_boundary_starts_with_everything_and_shows_both_distances():
    found = result(bands=[1, 2, 4])
    (ax,) = boundary_figure(found, reference=0.964).axes
    lines = {line.get_label(): line for line in ax.lines}
    fg_3d = lines["mitochondria, 3D"]
    assert fg_3d.get_xdata().tolist() == [0, 1, 2, 4]
    expected = [row["jaccard_foreground"] for row in found["boundary"] if row["dims"] == 3]
    assert fg_3d.get_ydata().tolist() == [found["jaccard_foreground"], *expected]
    flat = lines["mean of both classes, in plane"].get_ydata()
    assert flat[1:].tolist() == [row["jaccard_mean"] for row in found["boundary"] if row["dims"] == 2]
    assert set(lines["reference, 0.964"].get_ydata()) == {0.964}
    assert "reference" not in " ".join(texts(boundary_figure(found).axes[0]))


def test_precision_and_recall_show_the_threshold_and_name_the_oracle():
    found = result()
    (ax,) = precision_recall_figure(found, title="a map").axes
    assert ax.get_title() == "a map"
    used = next(line for line in ax.lines if line.get_label().startswith("threshold 0.500"))
    assert (used.get_xdata()[0], used.get_ydata()[0]) == (found["recall"], found["precision"])
    assert "oracle, best on these voxels" in " ".join(texts(ax))
    assert f"{found['average_precision']:.3f}" in " ".join(texts(ax))


def test_lines_of_equal_jaccard_are_that():
    (ax,) = precision_recall_figure(result()).axes
    lines = [line for line in ax.lines if line.get_linewidth() < 1]
    assert len(lines) == 5
    for line, level in zip(lines, (0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        recall, precision = line.get_data()
        assert 1 / (1 / recall + 1 / precision - 1) == pytest.approx(level)


def test_reliability_shows_bins_errors_and_voxels():
    found = result()
    ax, below = reliability_figure(found).axes
    shown = [line for line in ax.lines if "equal width" in line.get_label()]
    assert shown[0].get_xdata().tolist() == found["reliability"]["confidence"]
    assert f"{found['expected_calibration_error']:.4f}" in " ".join(texts(ax))
    assert [bar.get_height() for bar in below.patches] == found["reliability"]["voxels"]


def test_files_come_from_a_result_and_from_metrics_alike(tmp_path):
    found = result()
    paths = save_curves(tmp_path / "a", found, title="t", reference=0.9)
    assert [path.name for path in paths] == ["boundary.png", "precision_recall.png", "reliability.png"]
    read = json.loads(json.dumps(plain(found)))
    for path, other in zip(paths, save_curves(tmp_path / "b", read, title="t", reference=0.9), strict=True):
        assert np.array_equal(imread(path), imread(other))


def test_what_has_nothing_to_show_is_not_written(tmp_path):
    names = [path.name for path in save_curves(tmp_path, result(bands=[], kind="mask"))]
    assert names == []
    assert [p.name for p in save_curves(tmp_path, result(foreground=False))] == ["boundary.png", "reliability.png"]
    ignored = evaluate(
        ArrayVolume(np.full((1, 9, 9), 0.5, np.float32)), ArrayVolume(np.full((1, 9, 9), 255, np.uint8))
    )
    assert [p.name for p in save_curves(tmp_path, ignored)] == ["boundary.png"]


def test_pooled_thresholds_have_a_name(tmp_path):
    found = result()
    found["threshold"] = [0.4, 0.5]
    (ax,) = precision_recall_figure(found).axes
    assert any(text.startswith("the thresholds used") for text in texts(ax))


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        save_curves(tmp_path / "file" / "figures", result())
