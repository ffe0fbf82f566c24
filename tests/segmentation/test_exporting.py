"""Skeletons of tubes, branches and specks; files of meshes and skeletons, read back; nothing half-written."""

import json

import numpy as np
import pytest
from solids import ball, round_tube

from mitoseg.errors import UserError
from mitoseg.segmentation import export_meshes, export_skeletons
from mitoseg.segmentation.centreline import Skeleton, skeletonize, smooth_lines, swc
from mitoseg.segmentation.exporting import colour_of, find_objects
from mitoseg.segmentation.meshes import Mesh
from mitoseg.volumes.base import ArrayVolume

trimesh, *_ = (pytest.importorskip(library) for library in ("trimesh", "kimimaro", "zmesh"))

SIZE = (5.0, 5.0, 5.0)
LARGE = 2_000_000_000


@pytest.mark.parametrize(
    ("direction", "size", "tolerance"),
    [((0, 0, 1), (5, 5, 5), 0.01), ((0.4, -0.7, 0.6), (5, 5, 5), 0.01), ((0.3, 0.8, 0.5), (50, 5, 5), 0.05)],
)
def test_the_length_of_a_tube(direction, size, tolerance):
    skeleton = skeletonize(round_tube(direction, 700, 50, size), size)
    assert skeleton.length == pytest.approx(800, rel=tolerance)
    assert (skeleton.degree == 1).sum() == 2
    middle = np.sort(skeleton.radii)[len(skeleton.radii) // 3 :]
    assert np.median(middle) == pytest.approx(50, abs=max(size) if max(size) < 20 else 10)


def test_points_are_x_y_z_in_nm_on_the_axis():
    mask = round_tube((0, 0, 1), 300, 30, (5, 5, 5))
    skeleton = skeletonize(mask, (5, 5, 5), start=(100, 200, 300))
    middle = np.abs(skeleton.points[:, 0] - (300 + mask.shape[2] / 2) * 5) < 100
    assert middle.sum() > 30
    assert skeleton.points[middle, 1] == pytest.approx((200 + mask.shape[1] / 2) * 5, abs=3)
    assert skeleton.points[middle, 2] == pytest.approx((100 + mask.shape[0] / 2) * 5, abs=3)


def test_a_branch_has_a_junction():
    one, other = round_tube((0, 0, 1), 800, 30, (5, 5, 5)), round_tube((0, 1, 0), 800, 30, (5, 5, 5))
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
    points, edges = np.eye(1, 3) * np.arange(30.0)[:, None], np.arange(29)[:, None] + [0, 1]
    assert smooth_lines(Skeleton(points, np.ones(30), edges)).points == pytest.approx(points, abs=1e-9)
    zigzag = Skeleton(points + np.array([[0, i % 2, 0] for i in range(30)]), np.ones(30), edges)
    smooth = smooth_lines(zigzag)
    assert smooth.points[[0, -1]] == pytest.approx(zigzag.points[[0, -1]])
    assert smooth.length < 30 < zigzag.length


def test_swc_is_a_forest_with_parents_first():
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [9, 9, 9], [8, 9, 9]], float)
    edges = np.array([[1, 0], [1, 2], [3, 1], [5, 4]])
    rows = [row.split() for row in swc(Skeleton(points, np.arange(6.0), edges), 7).splitlines() if row[0] != "#"]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row[6] for row in rows].count("-1") == 2
    assert all(int(row[6]) < int(row[0]) for row in rows)
    place = {row[0]: tuple(map(float, row[2:5])) for row in rows}
    found = {frozenset((place[row[0]], place[row[6]])) for row in rows if row[6] != "-1"}
    assert found == {frozenset(tuple(points[i].tolist()) for i in edge) for edge in edges.tolist()}
    assert [float(row[5]) for row in rows if row[2:5] == ["1.000", "1.000", "0.000"]] == [3]


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


@pytest.fixture(scope="module")
def instances():
    """A ball (2), a tube that the border cuts (5) and a speck with a large number."""
    label = np.zeros((40, 50, 60), np.uint32)
    one, other = ball(60, SIZE), round_tube((0, 0, 1), 150, 25, SIZE)
    label[5:, 5:, 5:][tuple(map(slice, one.shape))][one] = 2
    other = other[:, :, 3:]
    label[25:, 32:, :][tuple(map(slice, other.shape))][other] = 5
    label[2, 45, 55:57] = LARGE
    return ArrayVolume(label, SIZE, metadata={"kind": "instances"})


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
    scene = trimesh.load(out / "instances.glb", process=False)
    assert list(scene.geometry) == ["2", "5"]
    assert all((scene.graph[name][0] == np.eye(4)).all() for name in scene.geometry)
    label = instances.read()
    for record in records:
        box, glb = find_objects(instances)[record.id].box, scene.geometry[str(record.id)]
        ply, obj = (trimesh.load(out / f"{record.id}.{name}", process=False) for name in ("ply", "obj"))
        for body in (ply, glb, obj):
            mesh = Mesh(np.asarray(body.vertices, float), np.asarray(body.faces, np.int64))
            assert (len(mesh.vertices), len(mesh.faces)) == (record.vertices, record.faces)
            assert mesh.is_closed
            assert mesh.volume == pytest.approx((label == record.id).sum() * 125, rel=0.01)
            assert mesh.volume == pytest.approx(record.volume_nm3, rel=1e-4)
            assert mesh.area == pytest.approx(record.surface_nm2, rel=1e-4)
            assert mesh.vertices.min(axis=0) == pytest.approx(np.array(box.start[::-1]) * 5.0, abs=5)
            assert mesh.vertices.max(axis=0) == pytest.approx(np.array(box.stop[::-1]) * 5.0, abs=5)
        for colour in (ply.visual.vertex_colors[0], glb.visual.material.baseColorFactor):
            assert colour[:3] / 255 == pytest.approx(colour_of(record.id), abs=0.01)
    assert [r.touches_border for r in records] == [False, True]
    listed = json.loads((out / "meshes.json").read_text())
    assert listed["unit"] == "nm"
    assert [o["faces"] for o in listed["objects"]] == [r.faces for r in records]


def test_skeletons_of_all(instances, tmp_path):
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
    for chosen in ([LARGE], [5]):
        records = export_meshes(instances, folder, ids=chosen, reduction=1, overwrite=True)
        assert [r.id for r in records] == chosen
    assert not (folder / "2.ply").exists()
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="other files"):
        export_meshes(instances, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_error_leaves_nothing(instances, tmp_path, monkeypatch):
    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_meshes(instances, tmp_path / "m", progress=stop)
    assert list(tmp_path.iterdir()) == []
    for library, function in (("trimesh", export_meshes), ("kimimaro", export_skeletons)):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(UserError, match=rf"{library}.*pip install \"mitoseg\[mesh\]\""):
            function(instances, tmp_path / "m")

    colours = np.array([colour_of(n) for n in range(1, 40)])
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.3
