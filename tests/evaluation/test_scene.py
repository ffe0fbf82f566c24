"""The picture in 3D: what is near hides what is far, nothing is mirrored, all of the box is in it."""

import numpy as np
import pytest
from matplotlib.image import imread

from mitoseg.errors import UserError
from mitoseg.evaluation.scene import save_scene, scene_figure
from mitoseg.segmentation.exporting import colour_of
from mitoseg.segmentation.meshes import mesh_object
from mitoseg.volumes.base import ArrayVolume

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
