"""Meshes against spheres, boxes and the voxels they come from."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from solids import ball

from mitoseg.errors import UserError
from mitoseg.segmentation import meshes as module
from mitoseg.segmentation.meshes import Mesh, even_spacing, hold_volume, mesh_object, simplify, taubin

CUBE = Mesh(
    np.array([[x, y, z] for x in (0.0, 2.0) for y in (0.0, 3.0) for z in (0.0, 4.0)]),
    np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
              [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]),
)  # fmt: skip


def test_volume_area_and_closedness_of_a_box():
    assert CUBE.volume == pytest.approx(24)
    assert CUBE.area == pytest.approx(2 * (6 + 8 + 12))
    assert CUBE.is_closed
    assert not Mesh(CUBE.vertices, CUBE.faces[1:]).is_closed
    turned = CUBE.faces.copy()
    turned[0] = turned[0, ::-1]
    assert not Mesh(CUBE.vertices, turned).is_closed
    assert Mesh(CUBE.vertices + 1e6, CUBE.faces).volume == pytest.approx(24)


@pytest.mark.parametrize(("radius", "size"), [(100, (5, 5, 5)), (40, (5, 5, 5)), (100, (10, 8, 6)), (200, (40, 8, 8))])
@pytest.mark.parametrize("reduction", [1, 8])
def test_a_ball(radius, size, reduction):
    if reduction > 1:
        pytest.importorskip("zmesh")
    mask = ball(radius, size)
    mesh = mesh_object(mask, size, reduction=reduction)
    centre = (np.array(mask.shape) * size / 2)[::-1]
    distance = np.linalg.norm(mesh.vertices - centre, axis=1)
    assert mesh.is_closed
    assert mesh.volume == pytest.approx(mask.sum() * np.prod(size), rel=0.01)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    # Steps of voxels would make the surface 7 to 8 % too large (cubic voxels).
    assert mesh.area == pytest.approx(4 * np.pi * radius**2, rel=0.03 if max(size) < 3 * min(size) else 0.06)
    assert np.abs(distance - radius).max() < max(size)


def test_vertices_are_x_y_z_in_nm_and_fill_the_voxels():
    mask = np.zeros((3, 4, 6), bool)
    mask[1, 1:3, 1:5] = True
    mesh = mesh_object(mask, (40, 5, 4), start=(10, 20, 30), smoothing=0)
    # x: voxels 31 to 34, y: 21 and 22, z: 11; the ends of the interpolated z lie on its faces too
    assert mesh.vertices.min(axis=0) == pytest.approx([31 * 4, 21 * 5, 11 * 40], abs=1e-6)
    assert mesh.vertices.max(axis=0) == pytest.approx([35 * 4, 23 * 5, 12 * 40], abs=1e-6)

    mask = ball(60, (5, 5, 5))[13:]
    mesh = mesh_object(mask, (5, 5, 5))
    assert mesh.is_closed
    bottom = mesh.vertices[mesh.vertices[:, 2] < 1]
    assert len(bottom) > 100
    assert np.abs(bottom[:, 2]).max() < 1


def voxels(*places):
    mask = np.zeros((5, 6, 4), bool)
    mask[tuple(np.transpose(places))] = True
    return mask


@settings(max_examples=40, deadline=None)
@example(voxels((0, 0, 0), (0, 0, 2), (0, 1, 1), (1, 0, 1)), (5.0, 5.0, 5.0), 0)
@given(arrays(bool, (5, 6, 4)), st.sampled_from([(5.0, 5.0, 5.0), (30.0, 5.0, 6.0)]), st.sampled_from([0, 6]))
def test_any_mask_gives_a_closed_mesh_inside_its_box(mask, size, smoothing):
    if not mask.any():
        with pytest.raises(ValueError, match="empty"):
            mesh_object(mask, size)
        return
    mesh = mesh_object(mask, size, smoothing=smoothing)
    assert mesh.is_closed
    assert mesh.volume > 0
    margin = 0.5 * min(size) + 1e-6
    assert (mesh.vertices >= -margin).all()
    assert (mesh.vertices <= np.array(mask.shape)[::-1] * size[::-1] + margin).all()


def test_a_torn_mesh_is_simplified_less(monkeypatch):
    full = mesh_object(ball(60, (5, 5, 5)), (5, 5, 5))
    asked = []

    class Tearing:
        Mesh = staticmethod(lambda vertices, faces, normals: Mesh(vertices, faces))

        @staticmethod
        def simplify_fqmr(mesh, target_count):
            asked.append(target_count)
            return Mesh(mesh.vertices, mesh.faces[1:])

    monkeypatch.setattr(module, "import_extra", lambda *_: Tearing)
    assert simplify(full, 8, least_faces=10) is full
    assert asked == [round(len(full.faces) / r) for r in (8, 4, 2)]


def test_without_the_extra_there_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zmesh", None)
    mask = ball(30, (5, 5, 5))
    assert mesh_object(mask, (5, 5, 5)).is_closed
    with pytest.raises(UserError, match=r"zmesh.*pip install \"mitoseg\[mesh\]\""):
        mesh_object(mask, (5, 5, 5), reduction=4)

    assert Mesh(hold_volume(CUBE.vertices, CUBE.faces, 26, 1), CUBE.faces).volume == pytest.approx(26, rel=5e-3)
    moved = hold_volume(CUBE.vertices, CUBE.faces, 1e9, 0.1)
    assert np.linalg.norm(moved - CUBE.vertices, axis=1).max() == pytest.approx(0.1)


def test_slices_between_slices():
    mask = np.zeros((2, 20, 20), bool)
    mask[0, 5:15, 5:15] = True
    mask[1, 5:15, 9:19] = True
    fine, size = even_spacing(mask, (30, 5, 5))
    assert size == (5, 5, 5)
    assert fine.shape == (12, 20, 20)
    assert (fine[:3] == mask[0]).all()
    assert (fine[-3:] == mask[1]).all()
    left = [int(np.flatnonzero(z[10])[0]) for z in fine]
    assert left == sorted(left)
    assert set(left) >= {5, 7, 9}
    assert even_spacing(mask, (10, 5, 5))[0] is mask
    pause = np.zeros((5, 6, 6), bool)
    pause[[0, 4], 2:4, 2:4] = True
    fine, _ = even_spacing(pause, (20, 5, 5))
    assert np.flatnonzero(fine.any(axis=(1, 2))).tolist() == [0, 1, 2, 3, 16, 17, 18, 19]


def test_simplified_and_smoothed_surfaces():
    pytest.importorskip("zmesh")
    full = mesh_object(ball(100, (5, 5, 5)), (5, 5, 5))
    few = simplify(full, 10)
    assert len(few.faces) == pytest.approx(len(full.faces) / 10, rel=0.05)
    assert few.volume == pytest.approx(full.volume, rel=0.01)
    assert simplify(full, 1) is full
    assert len(simplify(full, 1e6).faces) >= 395
    far = simplify(Mesh(full.vertices + 1e6, full.faces), 10)
    assert far.volume == pytest.approx(few.volume, rel=1e-3)
    rough = mesh_object(ball(100, (5, 5, 5)), (5, 5, 5), smoothing=0)
    assert full.area < 1.02 * 4 * np.pi * 100**2 < 1.07 * 4 * np.pi * 100**2 < rough.area  # without the voxels' steps
    smooth = taubin(rough.vertices, rough.faces, 10)
    assert Mesh(smooth, rough.faces).volume == pytest.approx(rough.volume, rel=0.005)
    assert taubin(rough.vertices, rough.faces, 0) is rough.vertices
