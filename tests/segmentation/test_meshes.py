"""Meshes and skeletons against spheres, boxes, tubes and the voxels they come from; their files, read back by hand."""

import json
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapes import ball, tube

from mitoseg.errors import UserError
from mitoseg.segmentation import export_meshes, export_skeletons
from mitoseg.segmentation import meshes as module
from mitoseg.segmentation.exporting import colour_of, find_objects
from mitoseg.segmentation.meshes import Mesh, even_spacing, hold_volume, mesh_object, simplify, taubin
from mitoseg.segmentation.skeletons import Skeleton, skeletonize, smooth_lines, swc
from mitoseg.volumes.base import ArrayVolume

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


def test_smoothing_takes_the_steps_away():
    mask = ball(100, (5, 5, 5))
    true = 4 * np.pi * 100**2
    assert mesh_object(mask, (5, 5, 5), smoothing=0).area > 1.07 * true
    assert mesh_object(mask, (5, 5, 5)).area < 1.02 * true


def test_vertices_are_x_y_z_in_nm_and_fill_the_voxels():
    mask = np.zeros((3, 4, 6), bool)
    mask[1, 1:3, 1:5] = True
    mesh = mesh_object(mask, (40, 5, 4), start=(10, 20, 30), smoothing=0)
    # x: voxels 31 to 34, y: 21 and 22, z: 11; the ends of the interpolated z lie on its faces too
    assert mesh.vertices.min(axis=0) == pytest.approx([31 * 4, 21 * 5, 11 * 40], abs=1e-6)
    assert mesh.vertices.max(axis=0) == pytest.approx([35 * 4, 23 * 5, 12 * 40], abs=1e-6)


def test_an_object_at_the_border_is_closed_by_a_flat_face():
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


def test_a_held_volume_is_reached_or_the_way_there_ends():
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


def test_a_pause_between_slices_stays():
    mask = np.zeros((5, 6, 6), bool)
    mask[[0, 4], 2:4, 2:4] = True
    fine, _ = even_spacing(mask, (20, 5, 5))
    assert np.flatnonzero(fine.any(axis=(1, 2))).tolist() == [0, 1, 2, 3, 16, 17, 18, 19]


KIMIMARO = pytest.importorskip("kimimaro")


@pytest.mark.parametrize(
    ("direction", "size", "tolerance"),
    [((0, 0, 1), (5, 5, 5), 0.01), ((0.4, -0.7, 0.6), (5, 5, 5), 0.01), ((0.3, 0.8, 0.5), (50, 5, 5), 0.05)],
)
def test_the_length_of_a_tube(direction, size, tolerance):
    skeleton = skeletonize(tube(direction, 700, 50, size), size)
    assert skeleton.length == pytest.approx(800, rel=tolerance)
    assert (skeleton.degree == 1).sum() == 2
    middle = np.sort(skeleton.radii)[len(skeleton.radii) // 3 :]
    assert np.median(middle) == pytest.approx(50, abs=max(size) if max(size) < 20 else 10)


def test_points_are_x_y_z_in_nm_on_the_axis():
    mask = tube((0, 0, 1), 300, 30, (5, 5, 5))
    skeleton = skeletonize(mask, (5, 5, 5), start=(100, 200, 300))
    middle = np.abs(skeleton.points[:, 0] - (300 + mask.shape[2] / 2) * 5) < 100
    assert middle.sum() > 30
    assert skeleton.points[middle, 1] == pytest.approx((200 + mask.shape[1] / 2) * 5, abs=3)
    assert skeleton.points[middle, 2] == pytest.approx((100 + mask.shape[0] / 2) * 5, abs=3)


def test_a_branch_has_a_junction():
    one, other = tube((0, 0, 1), 800, 30, (5, 5, 5)), tube((0, 1, 0), 800, 30, (5, 5, 5))
    size = max(one.shape[2], other.shape[1])
    mask = np.zeros((one.shape[0], size, size), bool)
    middle = size // 2
    mask[:, middle - one.shape[1] // 2 :, :][:, : one.shape[1]] |= one
    mask[:, middle:, middle - other.shape[2] // 2 :][:, :, : other.shape[2]] |= other[:, middle:]
    skeleton = skeletonize(mask, (5, 5, 5))
    assert (skeleton.degree == 1).sum() == 3
    assert (skeleton.degree == 3).sum() == 1


def test_a_speck_has_one_point():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    skeleton = skeletonize(mask, (10, 5, 5), start=(4, 0, 0))
    assert skeleton.points.tolist() == [[7.5, 7.5, 55]]
    assert skeleton.length == 0
    assert swc(skeleton, 3).splitlines()[-1].split()[0::6] == ["1", "-1"]
    with pytest.raises(ValueError, match="empty"):
        skeletonize(np.zeros((2, 2, 2), bool), (5, 5, 5))


def test_smoothing_leaves_ends_and_lines():
    points = np.array([[float(i), 0, 0] for i in range(30)])
    edges = np.stack([np.arange(29), np.arange(1, 30)], axis=1)
    straight = Skeleton(points, np.ones(30), edges)
    assert smooth_lines(straight).points == pytest.approx(points, abs=1e-9)
    zigzag = points + np.array([[0, i % 2, 0] for i in range(30)])
    smooth = smooth_lines(Skeleton(zigzag, np.ones(30), edges))
    assert smooth.points[[0, -1]] == pytest.approx(zigzag[[0, -1]])
    assert smooth.length < 30 < Skeleton(zigzag, np.ones(30), edges).length


def test_swc_is_a_forest_with_parents_first():
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [9, 9, 9], [8, 9, 9]], float)
    edges = np.array([[1, 0], [1, 2], [3, 1], [5, 4]])
    rows = [row.split() for row in swc(Skeleton(points, np.arange(6.0), edges), 7).splitlines() if row[0] != "#"]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row[6] for row in rows].count("-1") == 2
    found = set()
    by_number = {row[0]: row for row in rows}
    for row in rows:
        assert int(row[6]) < int(row[0])
        if row[6] != "-1":
            ends = [tuple(map(float, by_number[n][2:5])) for n in (row[0], row[6])]
            found.add(frozenset(ends))
    assert found == {frozenset(tuple(points[i].tolist()) for i in edge) for edge in edges.tolist()}
    assert [float(row[5]) for row in rows if row[2:5] == ["1.000", "1.000", "0.000"]] == [3]


def test_skeletons_need_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kimimaro", None)
    with pytest.raises(UserError, match=r"kimimaro.*pip install \"mitoseg\[mesh\]\""):
        skeletonize(ball(20, (5, 5, 5)), (5, 5, 5))


pytest.importorskip("trimesh")
pytest.importorskip("zmesh")
SIZE = (5.0, 5.0, 5.0)
LARGE = 2_000_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["stl"]}, "formats.*ply, obj, glb"),
        ({"formats": []}, "formats"),
        ({"ids": [7]}, "number: 7.*3 of them, from 2"),
        ({"reduction": 0.5}, "reduction.*1 up"),
        ({"reduction": float("nan")}, "reduction"),
        ({"smoothing": 1.5}, "smoothing"),
        ({"min_volume": -1}, "min_volume"),
        ({"min_volume": 1e12}, "no instance"),
        ({"voxel_size": [5, 5]}, "voxel size"),
        ({"instances": ArrayVolume(np.zeros((2, 2, 2), np.float32), SIZE)}, "float32"),
        ({"instances": ArrayVolume(np.ones((2, 2, 2), np.uint8), SIZE, metadata={"kind": "mask"})}, "mask"),
        ({"instances": ArrayVolume(-np.ones((2, 2, 2), np.int32), SIZE)}, "negative"),
        ({"instances": ArrayVolume(np.zeros((2, 2, 2), np.uint32), SIZE)}, "no instance"),
        ({"instances": ArrayVolume(np.ones((2, 2, 2), np.uint8))}, "voxel size is unknown"),
    ],
)
def test_bad_options_and_volumes(instances, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export_meshes(**{"instances": instances, "folder": tmp_path / "m", **options})
    assert list(tmp_path.iterdir()) == []


def test_simplified_and_smoothed_surfaces():
    full = mesh_object(ball(100, (5, 5, 5)), (5, 5, 5))
    few = simplify(full, 10)
    assert len(few.faces) == pytest.approx(len(full.faces) / 10, rel=0.05)
    assert few.volume == pytest.approx(full.volume, rel=0.01)
    assert simplify(full, 1) is full
    assert len(simplify(full, 1e6).faces) >= 395
    far = simplify(Mesh(full.vertices + 1e6, full.faces), 10)
    assert far.volume == pytest.approx(few.volume, rel=1e-3)
    rough = mesh_object(ball(100, (5, 5, 5)), (5, 5, 5), smoothing=0)
    smooth = taubin(rough.vertices, rough.faces, 10)
    assert Mesh(smooth, rough.faces).volume == pytest.approx(rough.volume, rel=0.005)
    assert taubin(rough.vertices, rough.faces, 0) is rough.vertices


@pytest.fixture(scope="module")
def instances():
    """A ball (2), a tube that the border cuts (5) and a speck with a large number."""
    label = np.zeros((40, 50, 60), np.uint32)
    one, other = ball(60, SIZE), tube((0, 0, 1), 150, 25, SIZE)
    label[5:, 5:, 5:][tuple(map(slice, one.shape))][one] = 2
    other = other[:, :, 3:]
    label[25:, 32:, :][tuple(map(slice, other.shape))][other] = 5
    label[2, 45, 55:57] = LARGE
    return ArrayVolume(label, SIZE, metadata={"kind": "instances"})


def read_ply(path):
    head, _, body = path.read_bytes().partition(b"end_header\n")
    counts = {w[1]: int(w[2]) for w in (row.split() for row in head.decode().splitlines()) if w[0] == "element"}
    assert b"format binary_little_endian 1.0" in head
    point = np.dtype([("xyz", "<f4", 3), ("rgba", "u1", 4)])
    points = np.frombuffer(body, point, counts["vertex"])
    triangle = np.dtype([("n", "u1"), ("index", "<i4", 3)])
    faces = np.frombuffer(body, triangle, counts["face"], points.nbytes)
    assert len(body) == points.nbytes + faces.nbytes
    assert (faces["n"] == 3).all()
    return Mesh(points["xyz"].astype(float), faces["index"].astype(int)), points["rgba"][0]


def read_glb(path):
    data = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    tree, blob = json.loads(data[20 : 20 + size]), data[28 + size :]

    def values(index):
        accessor = tree["accessors"][index]
        view = tree["bufferViews"][accessor["bufferView"]]
        dtype, width = (
            {5126: "<f4", 5125: "<u4"}[accessor["componentType"]],
            {"VEC3": 3, "SCALAR": 1}[accessor["type"]],
        )
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        return np.frombuffer(blob, dtype, accessor["count"] * width, start).reshape(-1, width)

    found = {}
    for node in tree["nodes"]:
        if "mesh" in node:
            assert "matrix" not in node
            (part,) = tree["meshes"][node["mesh"]]["primitives"]
            colour = tree["materials"][part["material"]]["pbrMetallicRoughness"]["baseColorFactor"]
            mesh = Mesh(
                values(part["attributes"]["POSITION"]).astype(float),
                values(part["indices"]).reshape(-1, 3).astype(int),
            )
            assert len(values(part["attributes"]["NORMAL"])) == len(mesh.vertices)
            found[node["name"]] = mesh, colour
    return found


def test_all_formats_hold_the_same_closed_meshes(instances, tmp_path):
    told = []
    out = tmp_path / "a" / "meshes"
    records = export_meshes(
        instances, out, formats=("ply", "obj", "glb"), reduction=4, min_volume=1000, progress=lambda *n: told.append(n)
    )
    assert [r.id for r in records] == [2, 5]
    assert told == [(1, 2), (2, 2)]
    names = sorted(p.name for p in out.iterdir())
    assert names == ["2.obj", "2.ply", "5.obj", "5.ply", "instances.glb", "meshes.json"]
    scene = read_glb(out / "instances.glb")
    assert list(scene) == ["2", "5"]
    label = instances.read()
    for record in records:
        ply, rgba = read_ply(out / f"{record.id}.ply")
        glb, colour = scene[str(record.id)]
        box = find_objects(instances)[record.id].box
        rows = [row.split() for row in (out / f"{record.id}.obj").read_text().splitlines()]
        vertices = np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)
        faces = np.array([[int(w.split("/")[0]) for w in row[1:4]] for row in rows if row[:1] == ["f"]])
        for mesh in (ply, glb, Mesh(vertices, faces - 1)):
            assert (len(mesh.vertices), len(mesh.faces)) == (record.vertices, record.faces)
            assert mesh.is_closed
            assert mesh.volume == pytest.approx((label == record.id).sum() * 125, rel=0.01)
            assert mesh.volume == pytest.approx(record.volume_nm3, rel=1e-4)
            assert mesh.area == pytest.approx(record.surface_nm2, rel=1e-4)
            assert mesh.vertices.min(axis=0) == pytest.approx(np.array(box.start[::-1]) * 5.0, abs=5)
            assert mesh.vertices.max(axis=0) == pytest.approx(np.array(box.stop[::-1]) * 5.0, abs=5)
        assert rgba[:3] / 255 == pytest.approx(colour_of(record.id), abs=0.01)
        assert colour[:3] == pytest.approx(colour_of(record.id), abs=0.01)
    assert [r.touches_border for r in records] == [False, True]
    listed = json.loads((out / "meshes.json").read_text())
    assert listed["unit"] == "nm"
    assert [o["faces"] for o in listed["objects"]] == [r.faces for r in records]


def test_skeletons_of_all(instances, tmp_path):
    pytest.importorskip("kimimaro")
    records = export_skeletons(instances, tmp_path / "s")
    assert [r.id for r in records] == [2, 5, LARGE]
    names = {"2.swc", "5.swc", f"{LARGE}.swc", "skeletons.json"}
    assert {p.name for p in (tmp_path / "s").iterdir()} == names
    rows = np.loadtxt(tmp_path / "s" / "5.swc")
    assert rows.shape[1] == 7
    ends = rows[[0, -1], 2:5]
    assert np.ptp(ends[:, 0]) == pytest.approx(185, abs=10)
    assert records[1].length_nm == pytest.approx(185, abs=12)


def test_only_a_folder_of_meshes_is_replaced(instances, tmp_path):
    folder = tmp_path / "m"
    export_meshes(instances, folder, ids=[2])
    with pytest.raises(UserError, match="exists"):
        export_meshes(instances, folder, ids=[5])
    export_meshes(instances, folder, ids=[5], overwrite=True)
    assert not (folder / "2.ply").exists()
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="other things"):
        export_meshes(instances, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_error_leaves_nothing(instances, tmp_path, monkeypatch):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_meshes(instances, tmp_path / "m", progress=stop)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(UserError, match=r"trimesh.*mitoseg\[mesh\]"):
        export_meshes(instances, tmp_path / "m")


def test_colours_of_neighbouring_numbers_differ():
    colours = np.array([colour_of(n) for n in range(1, 40)])
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.3
