"""Figures: the right colours at the right places, slices and curves, no global state; in 3D nothing is mirrored."""

import itertools
import json
import sys
from functools import partial

import numpy as np
import pytest
from matplotlib.image import imread

from mitoseg.errors import UserError
from mitoseg.evaluation import evaluate
from mitoseg.evaluation.figures import (
    FALSE,
    HIT,
    MISSED,
    TRUTH,
    bar_length,
    boundary_figure,
    comparison_figure,
    distribution_figure,
    overlay_figure,
    precision_recall_figure,
    reliability_figure,
    save_curves,
    save_overlays,
    stretch,
)
from mitoseg.evaluation.scene import save_scene, scene_figure
from mitoseg.geometry import Box
from mitoseg.segmentation.exporting import colour_of
from mitoseg.segmentation.meshes import mesh_object
from mitoseg.storage import plain
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


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_panels_show_image_truth_and_errors():
    figure = overlay_figure(*slices(), voxel_size=(5, 5, 5))

    def distance(pixel, colour):
        return np.abs(np.asarray(pixel)[:3] - colour).max()

    image, truth, errors = map(shown, figure.axes)
    assert np.ptp(image, axis=-1).max() == 0
    y, x = HEIGHT // 4 + 2, WIDTH // 4
    assert distance(truth[y, x], TRUTH) < 0.6
    assert np.ptp(truth[y, x + WIDTH // 2]) == 0
    for colour, pixel in ((HIT, (y, x)), (FALSE, (y, x + WIDTH // 2)), (MISSED, (y + HEIGHT // 2, x))):
        assert min((HIT, FALSE, MISSED), key=lambda c: distance(errors[pixel], c)) == colour
    assert np.ptp(errors[y + HEIGHT // 2, x + WIDTH // 2]) == 0
    assert np.ptp(errors[1, WIDTH - 2]) < 1e-6  # ignored
    names = ["mitochondria", "found (TP)", "false (FP)", "missed (FN)", "not counted"]
    assert texts(figure.legends[0]) == names
    assert type(figure.canvas).__name__ == "FigureCanvasAgg"
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_panels_do_not_overlap_lie_in_the_figure_and_look_as_each_does_alone():
    image, truth, result = slices()
    results = {str(i): result for i in range(5)}
    figure = comparison_figure(image, truth, results, title="here", voxel_size=(5, 5, 5))
    assert [ax.get_title() for ax in figure.axes] == ["here", "truth", *results]
    alone = overlay_figure(image, truth, result, voxel_size=(5, 5, 5))
    for ours, theirs in zip(figure.axes[:3], alone.axes, strict=True):
        np.testing.assert_array_equal(shown(ours), shown(theirs))
    boxes = [ax.get_position() for ax in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("voxel_size", "expected"), [((5, 5, 5), "50 nm"), ((50, 4.6, 200), "2 µm"), (None, "10 px"), ((4, 4), "20 nm")]
)
def test_the_scale_bar_has_a_round_length(voxel_size, expected):
    figure = overlay_figure(*slices(), voxel_size=voxel_size)
    assert [text.get_text() for text in figure.axes[0].texts] == [expected]
    (bar,) = figure.axes[0].patches
    assert 0.1 * WIDTH <= bar.get_width() <= 0.25 * WIDTH + 1e-9


@pytest.mark.parametrize("longest", [0.011, 0.99, 1.0, 5.0, 9.99, 10.0, 1999.0, 2000.0])
def test_nice_lengths_are_not_longer_and_not_short(longest):
    assert 0.4 * longest <= bar_length(4 * longest, None)[0] <= longest * (1 + 1e-9)


def test_odd_images_and_pixels_that_are_not_square():
    figure = overlay_figure(*slices(), voxel_size=(40, 10, 5))
    box = figure.axes[0].get_position()
    width, height = figure.get_size_inches()
    assert (box.height * height) / (box.width * width) == pytest.approx(HEIGHT * 10 / (WIDTH * 5))
    assert stretch(np.full((3, 3), 7, np.uint16)).max() == 0
    assert stretch(np.array([[-1.0, 0.0], [2.0, 3.0]])).tolist()[1][1] == pytest.approx(1, abs=0.01)
    image, truth, result = slices()
    for shapes in ((image, truth[1:], result), (image, truth, result[1:])):
        with pytest.raises(ValueError, match="shapes differ"):
            overlay_figure(*shapes)


def saved(folder, with_foreground, **options):
    rng = np.random.default_rng(0)
    image, truth = rng.integers(0, 255, (20, 20, 20)).astype(np.uint8), np.zeros((20, 20, 20), np.uint8)
    truth[with_foreground, 5:9, 5:9] = 1
    prediction = ArrayVolume(truth.copy(), metadata={"kind": "mask"})
    return [path.name for path in save_overlays(folder, ArrayVolume(image), ArrayVolume(truth), prediction, **options)]


def test_slices_with_mitochondria_are_chosen_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("mitoseg.evaluation.figures.overlay_figure", partial(overlay_figure, dpi=30))
    assert saved(tmp_path, [2, 3, 4, 5, 16, 17], count=3) == ["z0003.png", "z0005.png", "z0017.png"]
    assert saved(tmp_path, [7], count=3) == ["z0007.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z0003.png", "z0005.png", "z0007.png", "z0017.png"]
    pixels = imread(tmp_path / "z0007.png")
    assert pixels.shape[1] > 3 * pixels.shape[0] / 2
    assert saved(tmp_path, [], count=2) == ["z0005.png", "z0015.png"]  # any will do
    assert saved(tmp_path, [], count=0) == []
    one, other = (ArrayVolume(np.zeros(shape, np.uint8)) for shape in ((2, 9, 9), (1, 9, 9)))
    with pytest.raises(UserError, match="differ in shape"):
        save_overlays(tmp_path, one, one, other)
    assert saved(tmp_path, [1, 12], count=5, crop=Box((10, 0, 0), (20, 20, 20))) == ["z0012.png"]


def result(foreground=True, **options):
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 30, 30), np.uint8)
    truth[1:5, 5:25, 5:25] = foreground
    probability = np.clip(0.25 + 0.5 * truth + rng.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)
    return evaluate(ArrayVolume(probability), ArrayVolume(truth, (5.0, 5.0, 5.0)), **options)


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
    assert "reference" not in " ".join(texts(boundary_figure(found).axes[0].get_legend()))


def test_precision_and_recall_show_thresholds_and_reliability_bins_and_voxels():
    found = result()
    (ax,) = precision_recall_figure(found, title="a map").axes
    assert ax.get_title() == "a map"
    used = next(line for line in ax.lines if line.get_label().startswith("threshold 0.500"))
    assert (used.get_xdata()[0], used.get_ydata()[0]) == (found["recall"], found["precision"])
    legend = " ".join(texts(ax.get_legend()))
    assert "oracle, best on these voxels" in legend
    assert f"{found['average_precision']:.3f}" in legend
    lines = [line for line in ax.lines if line.get_linewidth() < 1]
    for line, level in zip(lines, (0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        recall, precision = line.get_data()
        assert 1 / (1 / recall + 1 / precision - 1) == pytest.approx(level)
    pooled = {**found, "threshold": [0.4, 0.5]}
    assert "the thresholds used" in " ".join(texts(precision_recall_figure(pooled).axes[0].get_legend()))
    ax, below = reliability_figure(found).axes
    (line,) = [line for line in ax.lines if "equal width" in line.get_label()]
    assert line.get_xdata().tolist() == found["reliability"]["confidence"]
    assert f"{found['expected_calibration_error']:.4f}" in " ".join(texts(ax.get_legend()))
    assert [bar.get_height() for bar in below.patches] == found["reliability"]["voxels"]


def test_files_come_from_a_result_and_from_metrics_alike_where_there_is_something_to_show(tmp_path):
    found = result()
    paths = save_curves(tmp_path / "a", found, title="t", reference=0.9)
    assert [path.name for path in paths] == ["boundary.png", "precision_recall.png", "reliability.png"]
    read = json.loads(json.dumps(plain(found)))
    for path, other in zip(paths, save_curves(tmp_path / "b", read, title="t", reference=0.9), strict=True):
        assert np.array_equal(imread(path), imread(other))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        save_curves(tmp_path / "file" / "figures", found)
    assert save_curves(tmp_path, result(bands=[], kind="mask")) == []
    assert [p.name for p in save_curves(tmp_path, result(foreground=False))] == ["boundary.png", "reliability.png"]
    half, ignored = np.full((1, 9, 9), 0.5, np.float32), np.full((1, 9, 9), 255, np.uint8)
    nothing = evaluate(ArrayVolume(half), ArrayVolume(ignored))
    assert [p.name for p in save_curves(tmp_path, nothing)] == ["boundary.png"]


@pytest.mark.parametrize("decades", [0.1, 0.7, 1.1, 2.5, 9])
def test_labels_of_a_logarithmic_axis_do_not_overlap(decades):
    figure = distribution_figure(np.logspace(-1.5, decades - 1.5, 50), "surface", "µm²", log=True)
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = figure.axes[0].get_xlim()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    labels = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    spans = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in labels))
    assert len(spans) > 1
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


RIGHT = {"elevation": 90 - 1e-6, "azimuth": -90}
"""Straight from above: x to the right, y up."""


def block(z, y, x):
    mask = np.zeros((10, 40, 60), bool)
    mask[z, y, x] = True
    return mask


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float) / 255


def places(picture, number):
    """Pixels (y, x) that have the hue of an instance, dark or light."""
    colour = np.array(colour_of(number))
    unit = (picture - picture.min(-1, keepdims=True)) / np.maximum(np.ptp(picture, axis=-1)[..., None], 1e-9)
    wanted = (colour - colour.min()) / np.ptp(colour)
    return np.argwhere((np.abs(unit - wanted).max(axis=-1) < 0.08) & (np.ptp(picture, axis=-1) > 0.15))


def scene_of(one, two, **eye):
    meshes = {number: mesh_object(block(*where), (5, 5, 5)) for number, where in ((1, one), (2, two))}
    return pixels(scene_figure(meshes, (50, 200, 300), dpi=50, **eye))


def test_objects_are_where_they_lie_and_what_is_near_hides_what_is_far():
    picture = scene_of(np.s_[:, 2:12, 2:12], np.s_[:, 28:38, 48:58], **RIGHT)
    one, two = (places(picture, number).mean(axis=0) for number in (1, 2))
    assert one[1] + picture.shape[1] / 3 < two[1]
    assert two[0] + picture.shape[0] / 4 < one[0]
    low_and_high = np.s_[:3, 10:30, 20:40], np.s_[7:, 8:32, 18:42]
    above = scene_of(*low_and_high, **RIGHT)
    below = scene_of(*low_and_high, elevation=-90 + 1e-6, azimuth=-90)
    assert len(places(above, 1)) < 20 < len(places(above, 2))
    assert len(places(below, 1)) > 500


def test_light_comes_from_the_upper_left():
    z, y, x = np.ogrid[-8:9, -8:9, -8:9]
    mesh = mesh_object(np.pad(z**2 + y**2 + x**2 < 50, 1), (5, 5, 5))
    picture = pixels(scene_figure({1: mesh}, (95, 95, 95), dpi=50))
    ball = places(picture, 1)
    for axis in (0, 1):
        low, high = np.quantile(ball[:, axis], (0.1, 0.9))
        near, far = (picture[tuple(ball[half].T)].mean() for half in (ball[:, axis] < low, ball[:, axis] > high))
        assert near > far + 0.08


@pytest.mark.parametrize("shape", [(2000, 2000, 2000), (5000, 2000, 2000), (300, 1000, 6000), (300, 6000, 1000)])
def test_nothing_is_cut_off(shape):
    mesh = mesh_object(block(np.s_[2:8], np.s_[2:8], np.s_[2:8]), (20, 20, 20))
    picture = pixels(scene_figure({1: mesh}, shape, dpi=30))
    assert (np.concatenate([picture[[0, -1]], picture[:, [0, -1]].swapaxes(0, 1)]) == 1).all()
    assert (picture < 1).any()


def test_a_picture_without_the_extra(tmp_path, monkeypatch):
    for module in ("zmesh", "trimesh", "kimimaro"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    label = np.zeros((30, 80, 90), np.uint16)
    label[5:25, 10:60, 20:50] = 3
    label[0, 70, 80] = 9
    volume = ArrayVolume(label, (20.0, 5.0, 5.0))
    path = tmp_path / "new" / "scene.png"
    assert save_scene(path, volume, dpi=40) == 2
    picture = imread(path)[..., :3]
    assert len(places(picture, 3)) > 200
    rows, columns = np.nonzero((picture < 1).any(axis=-1))
    height, width = picture.shape[:2]
    assert [rows.min(), height - 1 - rows.max(), columns.min(), width - 1 - columns.max()] == [8] * 4
    assert save_scene(path, volume, min_volume=5000, overwrite=True, dpi=40) == 1
    for name, given, options, match in (
        ("new/scene.png", volume, {}, "exists"),
        ("b.png", volume, {"min_volume": 1e12}, "no instance"),
        ("b.png", ArrayVolume(label), {}, "voxel size"),
    ):
        with pytest.raises(UserError, match=match):
            save_scene(tmp_path / name, given, **options)
    assert not (tmp_path / "b.png").exists()
    with pytest.raises(ValueError, match="no meshes"):
        scene_figure({}, (1, 1, 1))
