"""Files of meshes and skeletons, read back by hand; options; nothing half-written."""

import json
import struct

import numpy as np
import pytest
from shapes import ball, tube

from mitoseg.errors import UserError
from mitoseg.segmentation import export_meshes, export_skeletons
from mitoseg.segmentation.exporting import colour_of, find_objects
from mitoseg.segmentation.meshes import Mesh
from mitoseg.volumes.base import ArrayVolume

pytest.importorskip("trimesh")
pytest.importorskip("zmesh")
SIZE = (5.0, 5.0, 5.0)
LARGE = 2_000_000_000


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


def read_obj(path):
    rows = [row.split() for row in path.read_text().splitlines()]
    vertices = np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)
    faces = np.array([[int(w.split("/")[0]) for w in row[1:4]] for row in rows if row[:1] == ["f"]])
    return Mesh(vertices, faces - 1)


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
        for mesh in (ply, glb, read_obj(out / f"{record.id}.obj")):
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


def test_a_choice_of_instances(instances, tmp_path):
    assert [r.id for r in export_meshes(instances, tmp_path / "m", ids=[5], reduction=1)] == [5]
    assert [r.id for r in export_meshes(instances, tmp_path / "n", ids=[LARGE], reduction=1)] == [LARGE]


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
    ],
)
def test_bad_options(instances, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export_meshes(instances, tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label", "metadata", "message"),
    [
        (np.zeros((2, 2, 2), np.float32), {}, "float32"),
        (np.ones((2, 2, 2), np.uint8), {"kind": "mask"}, "mask"),
        (-np.ones((2, 2, 2), np.int32), {}, "negative"),
        (np.zeros((2, 2, 2), np.uint32), {}, "no instance"),
    ],
)
def test_bad_volumes(tmp_path, label, metadata, message):
    with pytest.raises(UserError, match=message):
        export_meshes(ArrayVolume(label, SIZE, metadata=metadata), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="voxel size is unknown"):
        export_meshes(ArrayVolume(np.ones((2, 2, 2), np.uint8)), tmp_path / "m")


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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_objects_are_found_across_slabs(dtype):
    label = np.zeros((40, 6, 7), dtype)
    label[3:38, 1:4, 2] = 100
    label[20, 5, 6] = np.iinfo(dtype).max
    found = find_objects(ArrayVolume(label))
    assert list(found) == [100, np.iinfo(dtype).max]
    assert str(found[100].box) == "[3:38,1:4,2:3]"
    assert [one.voxels for one in found.values()] == [105, 1]
    full = find_objects(ArrayVolume(np.full((3, 2, 2), np.iinfo(dtype).max, dtype)))
    assert [one.voxels for one in full.values()] == [12]


def test_colours_of_neighbouring_numbers_differ():
    colours = np.array([colour_of(n) for n in range(1, 40)])
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.3
