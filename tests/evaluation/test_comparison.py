"""One crop under several methods: as many panels, the colours of the other figures, and one legend."""

import numpy as np
import pytest

from mitoseg.evaluation.figures import comparison_figure, overlay_figure


def slices():
    rng = np.random.default_rng(0)
    image_yx = rng.integers(0, 256, (30, 40), np.uint8)
    truth_yx = np.zeros((30, 40), np.uint8)
    truth_yx[5:20, 5:20] = 1
    result_yx = np.zeros((30, 40), bool)
    result_yx[10:25, 10:25] = True
    return image_yx, truth_yx, result_yx


def pixels(ax):
    return np.asarray(ax.images[0].get_array())


def test_each_result_looks_as_it_does_alone():
    image_yx, truth_yx, result_yx = slices()
    results = {"one, fg JAC 30.0": result_yx, "nothing": np.zeros_like(result_yx)}
    figure = comparison_figure(image_yx, truth_yx, results, title="here", voxel_size=(5, 5, 5))
    assert [ax.get_title() for ax in figure.axes] == ["here", "truth", *results]
    alone = overlay_figure(image_yx, truth_yx, result_yx, voxel_size=(5, 5, 5))
    for ours, theirs in zip(figure.axes[:3], alone.axes, strict=True):
        np.testing.assert_array_equal(pixels(ours), pixels(theirs))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["mitochondria", "found (TP)", "false (FP)", "missed (FN)"]


def test_panels_do_not_overlap_and_lie_in_the_figure():
    image_yx, truth_yx, result_yx = slices()
    figure = comparison_figure(image_yx, truth_yx, {str(i): result_yx for i in range(5)})
    boxes = [ax.get_position() for ax in figure.axes]
    assert len(boxes) == 7
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_shapes_must_agree():
    image_yx, truth_yx, result_yx = slices()
    with pytest.raises(ValueError, match="shapes differ"):
        comparison_figure(image_yx, truth_yx, {"one": result_yx[1:]})
