"""Figures: the right colours at the right places, the right slices, and no global state."""

import sys

import numpy as np
import pytest
from matplotlib.image import imread

from mitoseg.errors import UserError
from mitoseg.evaluation.figures import FALSE, HIT, MISSED, TRUTH, nice_length, overlay_figure, save_overlays, stretch
from mitoseg.geometry import Box
from mitoseg.volumes.base import ArrayVolume

HEIGHT, WIDTH = 30, 40


def slices():
    """Truth on the left half, result on the top half: hit, false, missed and true background by quadrant."""
    image = np.full((HEIGHT, WIDTH), 100, np.uint8)
    image[::2] = 120
    truth, result = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), bool)
    truth[:, : WIDTH // 2] = 1
    result[: HEIGHT // 2] = True
    truth[:3, WIDTH // 2 :] = 255
    return image, truth, result


def shown(figure, panel):
    return np.asarray(figure.axes[panel].images[0].get_array())


def distance(pixel, colour):
    return np.abs(np.asarray(pixel)[:3] - colour).max()


def test_panels_show_image_truth_and_errors():
    figure = overlay_figure(*slices(), voxel_size=(5, 5, 5))
    assert len(figure.axes) == 3
    assert np.ptp(shown(figure, 0), axis=-1).max() == 0
    y, x = HEIGHT // 4 + 2, WIDTH // 4
    assert distance(shown(figure, 1)[y, x], TRUTH) < 0.6
    assert np.ptp(shown(figure, 1)[y, x + WIDTH // 2]) == 0
    for colour, pixel in ((HIT, (y, x)), (FALSE, (y, x + WIDTH // 2)), (MISSED, (y + HEIGHT // 2, x))):
        found = shown(figure, 2)[pixel]
        assert min((HIT, FALSE, MISSED), key=lambda c: distance(found, c)) == colour
    assert np.ptp(shown(figure, 2)[y + HEIGHT // 2, x + WIDTH // 2]) == 0
    ignored = shown(figure, 2)[1, WIDTH - 2]
    assert np.ptp(ignored) < 1e-6
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["found (TP)", "false (FP)", "missed (FN)", "not counted"]


def test_no_window_and_no_pyplot_state():
    figure = overlay_figure(*slices())
    assert type(figure.canvas).__name__ == "FigureCanvasAgg"
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("voxel_size", "expected"), [((5, 5, 5), "50 nm"), ((50, 4.6, 200), "2 µm"), (None, "10 px"), ((4, 4), "20 nm")]
)
def test_the_scale_bar_has_a_round_length(voxel_size, expected):
    figure = overlay_figure(*slices(), voxel_size=voxel_size)
    (text,) = figure.axes[0].texts
    assert text.get_text() == expected
    (bar,) = figure.axes[0].patches
    assert 0.1 * WIDTH <= bar.get_width() <= 0.25 * WIDTH + 1e-9


@pytest.mark.parametrize("longest", [0.011, 0.99, 1.0, 5.0, 9.99, 10.0, 1999.0, 2000.0])
def test_nice_lengths_are_not_longer_and_not_short(longest):
    assert 0.4 * longest <= nice_length(longest) <= longest * (1 + 1e-9)


def test_pixels_that_are_not_square_keep_their_shape():
    image, truth, result = slices()
    figure = overlay_figure(image, truth, result, voxel_size=(40, 10, 5))
    box = figure.axes[0].get_position()
    width, height = figure.get_size_inches()
    assert (box.height * height) / (box.width * width) == pytest.approx(HEIGHT * 10 / (WIDTH * 5))


def test_a_flat_image_is_no_error():
    assert stretch(np.full((3, 3), 7, np.uint16)).max() == 0
    assert stretch(np.array([[-1.0, 0.0], [2.0, 3.0]])).tolist()[1][1] == pytest.approx(1, abs=0.01)


def test_shapes_must_agree():
    image, truth, result = slices()
    with pytest.raises(ValueError, match="shapes differ"):
        overlay_figure(image, truth[1:], result)


def volumes(with_foreground):
    truth = np.zeros((20, HEIGHT, WIDTH), np.uint8)
    truth[with_foreground, 5:9, 5:9] = 1
    image = np.random.default_rng(0).integers(0, 255, truth.shape).astype(np.uint8)
    return ArrayVolume(image), ArrayVolume(truth), ArrayVolume(truth.copy(), metadata={"kind": "mask"})


def saved(folder, with_foreground, **options):
    image, truth, prediction = volumes(with_foreground)
    return [path.name for path in save_overlays(folder, image, truth, prediction, **options)]


def test_slices_with_mitochondria_are_chosen_evenly(tmp_path):
    assert saved(tmp_path, [2, 3, 4, 5, 16, 17], count=3) == ["z0003.png", "z0005.png", "z0017.png"]
    assert saved(tmp_path, [7], count=3) == ["z0007.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z0003.png", "z0005.png", "z0007.png", "z0017.png"]
    pixels = imread(tmp_path / "z0007.png")
    assert pixels.shape[1] > 3 * pixels.shape[0] / 2


def test_without_mitochondria_any_slice_will_do(tmp_path):
    assert saved(tmp_path, [], count=2) == ["z0005.png", "z0015.png"]
    assert saved(tmp_path, [], count=0) == []


def test_the_crop_is_what_is_shown(tmp_path):
    assert saved(tmp_path, [1, 12], count=5, crop=Box((10, 0, 0), (20, 20, 20))) == ["z0012.png"]


def test_volumes_must_agree(tmp_path):
    image, truth, _ = volumes([1])
    with pytest.raises(UserError, match="differ in shape"):
        save_overlays(tmp_path, image, truth, ArrayVolume(np.zeros((1, 2, 3), np.float32)))
