"""What the local server hands out: layers, scales, chunks and surfaces, no browser; boxes at any halving."""

import io
import json
import re
import socket
import struct
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from made_volumes import SIZE, places, save, two_cells

pytest.importorskip("neuroglancer", reason="neuroglancer is not installed")

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.viewers.neuroglancer.scene import Level, Levels, ServedVolume, make_scene, open_levels, sample, serving
from mitoseg.viewers.shown import Shown
from mitoseg.volumes import ArrayVolume, Volume, VolumeInfo, open_volume
from mitoseg.volumes.base import CroppedVolume

SHAPE = (5, 6, 7)


def shown(**values):
    metadata = {"probability": {"threshold": 0.4}}
    volumes = {
        kind: ArrayVolume(array, SIZE, f"{kind}.tif", {"kind": kind, **metadata.get(kind, {})})
        for kind, array in values.items()
    }
    return Shown(volumes, SIZE)


def fetch(link, path):
    host = re.match(r"http://[^/]+", link)[0]
    with urllib.request.urlopen(host + path, timeout=30) as answer:
        return answer.read()


def keys(viewer):
    """The names under which the volumes of a viewer are served, by layer."""
    layers = viewer.state.to_json()["layers"]
    return {layer["name"]: layer["source"][0]["url"].removeprefix("python://volume/") for layer in layers}


def chunk_xyz(viewer, layer, start, end, factors=(1, 1, 1)):
    """A chunk as the browser gets it, over HTTP."""
    where = "/".join(",".join(map(str, part)) for part in (factors, start, end))
    data = fetch(viewer.get_viewer_url(), f"/neuroglancer/npz/{keys(viewer)[layer]}/{where}")
    return np.load(io.BytesIO(zlib.decompress(data)))


def test_layers_scales_and_place():
    probability = np.linspace(0, 1, 210, dtype=np.float32).reshape(SHAPE)
    state = make_scene(shown(image=places(SHAPE), probability=probability, truth=np.eye(7)[None, :6].repeat(5, 0)))
    found = state.to_json()
    assert found["dimensions"] == {"x": [4e-9, "m"], "y": [5e-9, "m"], "z": [3e-8, "m"]}
    assert found["position"] == [3.5, 3.5, 2.5]
    visible = {layer["name"]: layer.get("visible", True) for layer in found["layers"]}
    assert visible == {"image": True, "probability": True, "mask": False, "truth": False}
    kinds = {layer["name"]: layer["type"] for layer in found["layers"]}
    assert kinds == {"image": "image", "probability": "image", "mask": "segmentation", "truth": "segmentation"}
    low, high = found["layers"][0]["shaderControls"]["grey"]["range"]
    assert (low, high) == pytest.approx(np.percentile(places(SHAPE)[[1, 2, 3]], (0.5, 99.5)), abs=30)
    assert found["layers"][1]["shaderControls"]["value"]["range"] == [0, 1]


def test_chunks_over_http_are_the_volume():
    image = places(SHAPE)
    probability = (image / image.max()).astype(np.float32)
    labels = np.where(image % 2, -1, image.astype(np.int32))
    state = make_scene(shown(image=image, probability=probability, instances=np.abs(labels), truth=labels))
    with serving(state) as viewer:
        info = json.loads(fetch(viewer.get_viewer_url(), f"/neuroglancer/info/{keys(viewer)['image']}"))
        assert info["shape"] == [7, 6, 5]
        assert info["coordinateSpace"]["x"] == [4e-9, "m"]
        start, end = (2, 1, 3), (7, 5, 5)
        part = (slice(3, 5), slice(1, 5), slice(2, 7))
        for layer, expected in {
            "image": image,
            "probability": probability,
            "mask": (probability >= 0.4).astype(np.uint8),
            "instances": np.abs(labels).astype(np.uint32),
            "truth": np.maximum(labels, 0).astype(np.uint32),
        }.items():
            found = chunk_xyz(viewer, layer, start, end)
            np.testing.assert_array_equal(found.T, expected[part])
            assert found.dtype == expected.dtype
        assert chunk_xyz(viewer, "image", (1, 1, 1), (2, 3, 2), (2, 1, 4)).tolist() == [[[413], [423]]]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            chunk_xyz(viewer, "image", (0, 0, 0), (8, 1, 1))


def test_the_client_is_served_without_a_network():
    with serving(make_scene(shown(image=places(SHAPE)))) as viewer:
        link = viewer.get_viewer_url()
        folder = "/" + link.split("/", 3)[3]
        page = fetch(link, folder).decode()
        names = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert names
        assert not [name for name in names if "//" in name]
        assert all(fetch(link, folder + name) for name in names)
    with pytest.raises(urllib.error.URLError):
        fetch(link, "/")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float16, np.float64, np.int64])
def test_every_type_of_grey_values_travels(dtype):
    values = (places(SHAPE) % 2).astype(dtype)
    with serving(make_scene(shown(image=values))) as viewer:
        found = chunk_xyz(viewer, "image", (0, 0, 0), (7, 6, 5))
        np.testing.assert_array_equal(found.T, values)
        assert found.dtype.name in {"uint8", "int16", "float32"}


def test_surfaces_lie_where_the_voxels_are():
    labels = two_cells()
    state = make_scene(shown(instances=labels))
    assert state.to_json()["layers"][0]["segments"] == ["3", "7"]
    (without,) = make_scene(shown(instances=labels), surfaces=False).to_json()["layers"]
    assert "segments" not in without
    assert "meshes" not in without["source"][0]["subsources"]
    with serving(state) as viewer:
        for number in (3, 7):
            data = fetch(viewer.get_viewer_url(), f"/neuroglancer/mesh/{keys(viewer)['instances']}/{number}")
            (count,) = struct.unpack_from("<I", data)
            vertices_xyz = np.frombuffer(data, "<f4", 3 * count, 4).reshape(-1, 3) / [4e-9, 5e-9, 3e-8]
            faces = np.frombuffer(data, "<u4", offset=4 + 12 * count)
            assert faces.max() == count - 1
            where = np.argwhere(labels == number)[:, ::-1]
            np.testing.assert_allclose(vertices_xyz.min(0), where.min(0), atol=0.75)
            np.testing.assert_allclose(vertices_xyz.max(0), where.max(0) + 1, atol=0.75)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(viewer.get_viewer_url(), f"/neuroglancer/mesh/{keys(viewer)['instances']}/5")


class Watched(Volume):
    """A volume of any size that remembers what was read; it cannot be read as a whole."""

    def __init__(self, shape, dtype, **metadata):
        super().__init__(VolumeInfo("huge", shape, np.dtype(dtype), SIZE, metadata))
        self.most = 0

    def read(self, box=None):
        self.most = max(self.most, self.check_box(box).size)
        assert self.most <= 2**24
        return np.full(box.shape, 3, self.dtype)


def test_little_is_read_of_a_huge_volume():
    huge = (20_000, 30_000, 40_000)
    volumes = {"image": Watched(huge, np.uint8), "instances": Watched(huge, np.uint64, kind="instances")}
    with serving(make_scene(Shown(volumes, (5.0, 5.0, 5.0)))) as viewer:
        assert volumes["instances"].most == 0
        assert volumes["image"].most <= 512**2
        chunk_xyz(viewer, "instances", (9_000, 5_000, 100), (9_064, 5_064, 164), (1, 1, 1))
        chunk_xyz(viewer, "image", (9_000, 5_000, 100), (9_064, 5_064, 164), (4, 4, 4))
        assert volumes["instances"].most == 64**3
        assert volumes["image"].most == 256**3


def test_a_damaged_file_is_told_in_a_line(caplog):
    class Broken(Watched):
        def read(self, box=None):
            raise UserError("the file cannot be read", self.path, "it is damaged")

    levels = Levels([Level((1, 1, 1), Broken(SHAPE, np.uint8))], labels=False)
    served = ServedVolume(levels, SIZE, labels=False)
    with pytest.raises(ValueError, match="cannot be read"):
        served.get_encoded_subvolume("npz", [0, 0, 0], [7, 6, 5], "1,1,1")
    assert "the file cannot be read: 'huge'" in caplog.text


@pytest.mark.parametrize(
    ("bind", "line"),
    [("127.0.0.1", r"the port is taken: \d+; choose another, or port=0"), ("192.0.2.1", "cannot listen")],
)
def test_a_port_or_an_address_that_cannot_be_had(bind, line):
    state = make_scene(shown(image=places(SHAPE)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=line), serving(state, bind=bind, port=taken.getsockname()[1]):
            pass


def test_truth_is_read_as_by_the_other_commands(tmp_path, caplog):
    """Colours are told apart; what is not told which value is background is shown by its numbers, with a warning."""
    colours_zyxc = np.zeros((*SHAPE, 3), np.uint8)
    colours_zyxc[1:3, 1:3, 1:3], colours_zyxc[3:, 3:, 3:] = (200, 0, 0), (0, 0, 200)
    tifffile.imwrite(tmp_path / "a.tif", colours_zyxc, photometric="rgb", metadata={"axes": "ZYXS"})
    truth = open_volume(tmp_path / "a.tif", voxel_size=SIZE)
    with serving(make_scene(Shown({"image": ArrayVolume(places(SHAPE), SIZE), "truth": truth}, SIZE))) as viewer:
        found = chunk_xyz(viewer, "truth", (0, 0, 0), SHAPE[::-1])
    assert len(np.unique(found)) == 3
    assert "2 colours" in caplog.text


LEVELS = (7, 9, 10)


def mean_oracle(values, factors):
    """Means of blocks in one go; a block that is cut by one voxel counts its last one twice."""
    padded = np.pad(values.astype(float), [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)], "edge")
    z, y, x = (n // f for n, f in zip(padded.shape, factors, strict=True))
    blocks = padded.reshape(z, factors[0], y, factors[1], x, factors[2])
    return blocks.mean(axis=(1, 3, 5))


@given(st.data())
def test_any_box_at_any_halving(data):
    values = places(LEVELS, np.float32)
    factors = tuple(data.draw(st.sampled_from([1, 2])) for _ in LEVELS)
    whole = mean_oracle(values, factors)
    start = [data.draw(st.integers(0, n - 1)) for n in whole.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, whole.shape, strict=True)]
    box = Box(tuple(start), tuple(stop))
    levels = Levels([Level((1, 1, 1), ArrayVolume(values))], labels=False)
    np.testing.assert_allclose(levels.read(box, factors), whole[box.slices])
    for bad, by in ((Box((0, 0, 0), (8, 9, 10)), (1, 1, 1)), (Box((0, 0, 0), (1, 1, 1)), (3, 1, 1))):
        with pytest.raises(ValueError, match="no box"):
            levels.read(bad, by)


def test_labels_are_not_averaged():
    values = places(LEVELS, np.uint32)
    levels = Levels([Level((1, 1, 1), ArrayVolume(values))], labels=True)
    found = levels.read(Box((0, 1, 0), (2, 3, 3)), (4, 2, 4))
    np.testing.assert_array_equal(found, values[::4, ::2, ::4][0:2, 1:3, 0:3])


def test_the_coarsest_level_that_fits_is_read():
    marked = [Level((f, f, f), ArrayVolume(np.full([-(-n // f) for n in LEVELS], f, np.uint8))) for f in (1, 2, 4)]
    levels = Levels(marked, labels=False)
    for factors, expected in [((1, 1, 1), 1), ((2, 1, 2), 1), ((2, 2, 2), 2), ((2, 4, 4), 2), ((8, 4, 4), 4)]:
        stop = tuple(-(-n // f) for n, f in zip(LEVELS, factors, strict=True))
        found = levels.read(Box((0, 0, 0), stop), factors)
        assert found.shape == stop
        assert (found == expected).all()


def test_levels_of_an_ome_zarr_image(tmp_path):
    values = np.random.default_rng(1).integers(0, 200, (20, 300, 610), np.uint8)
    volume = open_volume(save(tmp_path / "a.ome.zarr", values, voxel_size=(5.0, 5.0, 5.0)))
    found = open_levels(volume)
    assert [level.factors for level in found] == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    box = Box((0, 20, 30), (5, 75, 152))
    stored = Levels(found, labels=False).read(box, (4, 4, 4)).astype(float)
    np.testing.assert_allclose(stored, mean_oracle(values, (4, 4, 4))[box.slices], atol=1.01)  # rounded level by level
    assert len(open_levels(open_volume(str(tmp_path / "a.ome.zarr" / "1")))) == 1
    assert len(open_levels(CroppedVolume(volume, Box((1, 0, 0), (20, 300, 610))))) == 1


def test_a_sample_comes_from_the_middle():
    values = places((9, 8, 10))
    np.testing.assert_array_equal(sample(ArrayVolume(values), slices=3, side=2), values[[2, 4, 6], 3:5, 4:6])
    assert sample(ArrayVolume(values[:1])).shape == (1, 8, 10)
