"""NIfTI, NRRD, Imaris and single pictures, and what is not read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_files import SPACINGS, check, put, refused, write_imaris, write_nifti, write_nrrd
from PIL import Image

from mitoseg.geometry import Box
from mitoseg.volumes import check_same_shape, images, open_volume
from mitoseg.volumes.medical import Grid
from mitoseg.volumes.opening import FORMATS, written_suffixes

SHAPE = (4, 5, 7)
BOX = Box((1, 0, 2), (3, 4, 7))


def numbered(dtype="uint16"):
    return (np.arange(np.prod(SHAPE)) * 3 % 251).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, suffix):
    for dtype in ("uint8", ">u2", "int16", "float32", "uint64"):
        image_zyx = numbered(dtype)
        check(write_nifti(tmp_path / f"a{suffix}", image_zyx), image_zyx, (50.0, 6.0, 5.0))
    matrix = np.diag([5, 6, 50, 1])
    for unit in ("mm", "unknown"):  # lengths of mm are a scanner's, or nm without a word
        assert open_volume(write_nifti(tmp_path / f"b{suffix}", numbered(), matrix, unit)).voxel_size is None


def test_directions_of_nifti(tmp_path):
    """Axes may be permuted and turned round, and lie askew; skewed ones are not a grid."""
    image_zyx = numbered()
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 0.05, 0.005, -0.006, 1  # stored z, x, y
    turned = check(write_nifti(tmp_path / "a.nii", image_zyx.transpose(1, 2, 0), affine), image_zyx, (50.0, 6.0, 5.0))
    assert turned.directions == "+-+"
    plain = open_volume(write_nifti(tmp_path / "b.nii", image_zyx))
    refused(r"oriented differently.*\+\+\+", check_same_shape, plain, turned)
    askew = np.eye(4)
    askew[:2, :2] = [[0.995, -0.0998334], [0.0998334, 0.995]]
    size = open_volume(write_nifti(tmp_path / "c.nii", image_zyx, askew / 100)).voxel_size
    assert size == pytest.approx((10.0, 10.0, 10.0), rel=1e-3)
    skewed = np.diag([0.01, 0.01, 0.01, 1])
    skewed[0, 1] = 0.005
    refused("right angles", open_volume, write_nifti(tmp_path / "d.nii", image_zyx, skewed))
    for matrix in (np.full((3, 3), np.nan), np.zeros((3, 3))):
        refused("no grid", Grid.of, "a.nii", matrix)


def test_scaled_numbers_of_nifti(tmp_path):
    path = write_nifti(tmp_path / "a.nii", numbered("int16").astype(np.int16), slope=(2.0, -3.0))
    volume = open_volume(str(path))
    assert volume.dtype == np.float32
    import nibabel

    np.testing.assert_allclose(volume.read(), nibabel.load(path).get_fdata().T)
    np.testing.assert_array_equal(volume.read(BOX), volume.read()[BOX.slices])
    assert volume.state()


SPACE = (
    "space: left-posterior-superior",
    "space directions: (0.005,0,0) (0,0.006,0) (0,0,0.05)",
    'space units: "um" "um" "um"',
)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("voxels", [None, "a.data"])
def test_nrrd(tmp_path, encoding, voxels):
    pytest.importorskip("nrrd")
    for header in (SPACE, SPACINGS):
        for dtype in ("uint8", ">u2", "float32"):
            path = write_nrrd(tmp_path / "a.nhdr", numbered(dtype), header, encoding=encoding, voxels=voxels)
            volume = check(path, numbered(dtype), (50.0, 6.0, 5.0))
            assert volume.directions == ("+--" if header is SPACE else "")


def test_what_pynrrd_writes(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    for name, options in (("a.nrrd", {}), ("b.nrrd", {"encoding": "raw"}), ("c.nhdr", {})):
        header = {"spacings": [5, 6, 50], **options}
        nrrd.write(str(tmp_path / name), numbered(), header, detached_header=name == "c.nhdr", index_order="C")
        check(tmp_path / name, numbered(), None)  # without a unit
    permuted = {"space": "RAS", "space directions": np.array([[0, 0, 0.05], [0.005, 0, 0], [0, 0.006, 0]])}
    stored = numbered().transpose(1, 2, 0)
    nrrd.write(str(tmp_path / "d.nrrd"), stored, permuted | {"space units": ["um"] * 3}, index_order="C")
    assert check(tmp_path / "d.nrrd", numbered(), (50.0, 6.0, 5.0)).directions == "+++"


UNREAD = {"data file: LIST\na.raw": "several files", "data file: slice%03d.raw 1 4 1": "several files"}
UNREAD |= {"data file: gone.raw": "is not there", "byte skip: 900": "cut short"}


def test_nrrd_that_is_not_read(tmp_path):
    pytest.importorskip("nrrd")
    for header, says in UNREAD.items():
        refused(says, open_volume, str(write_nrrd(tmp_path / "a.nhdr", numbered(), [header])))
    path = write_nrrd(tmp_path / "a.nrrd", numbered(), encoding="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused(r"cut short|damaged", lambda: open_volume(str(path)).read())
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # another checksum
    refused("CRC", lambda: open_volume(str(path)).read())
    header = write_nrrd(tmp_path / "b.nrrd", numbered()[:2], encoding="gzip").read_bytes()
    path.write_bytes(header.replace(b"sizes: 7 5 2", b"sizes: 7 5 4"))
    refused("cut short, 140 bytes are missing", lambda: open_volume(str(path)).read())


def test_a_library_that_is_missing(tmp_path, monkeypatch):
    for module, name in (("nibabel", "a.nii"), ("nrrd", "a.nrrd")):
        monkeypatch.setitem(sys.modules, module, None)
        (tmp_path / name).write_bytes(b"")
        refused(r'pip install "mitoseg\[formats\]"', open_volume, str(tmp_path / name))


def test_imaris(tmp_path):
    image_zyx = numbered()
    path = write_imaris(tmp_path / "a.ims", image_zyx)
    check(path, image_zyx, (50.0, 6.0, 5.0))
    volume = open_volume(f"{path}:/DataSet/ResolutionLevel 1/TimePoint 0/Channel 0/Data")
    np.testing.assert_array_equal(volume.read(), image_zyx[:, ::2, ::2])
    assert volume.voxel_size == pytest.approx((50, 10, 8.75))
    refused(r"no dataset 'x'.*Channel 0/Data", open_volume, f"{path}:/x")
    assert open_volume(str(write_imaris(tmp_path / "b.ims", image_zyx, unit=""))).voxel_size is None
    path = write_imaris(tmp_path / "c.ims", image_zyx, channels=2)
    refused(r"2 channels or time points.*c\.ims:/DataSet/.*Channel 1/Data", open_volume, str(path))
    check(f"{path}:/DataSet/ResolutionLevel 0/TimePoint 0/Channel 1/Data", image_zyx, (50.0, 6.0, 5.0))


def test_a_picture_is_a_slice(tmp_path):
    grey_yx = np.repeat(np.arange(40, dtype=np.uint8)[:, None] * 6, 50, 1)
    for suffix in ("png", "bmp", "gif", "webp", "jpg"):
        Image.fromarray(grey_yx).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        volume = open_volume(str(tmp_path / f"a.{suffix}"), voxel_size=(50, 5, 5))
        assert (volume.shape, volume.dtype, volume.voxel_size) == ((1, 40, 50), np.uint8, (50, 5, 5))
        np.testing.assert_allclose(volume.read()[0].astype(int), grey_yx, atol=2 if suffix == "jpg" else 0)
        (tmp_path / suffix).mkdir()
        for z in range(3):
            (tmp_path / suffix / f"{z}.{suffix}").write_bytes((tmp_path / f"a.{suffix}").read_bytes())
        assert open_volume(str(tmp_path / suffix)).shape == (3, 40, 50)
    frames = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in (1, 90)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    refused("several pictures", open_volume, str(tmp_path / "b.gif"))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    refused("cannot be read", open_volume, str(tmp_path / "b.png"))


OTHER_KINDS = {"a.am": "export it as NRRD or TIFF", "a.json": "labelme.*CVAT", "a.wkw": "webKnossos", "a.mhd": "nrrd"}
OTHER_KINDS |= {"a.czi": "TIFF", "a.txt": "or a picture"}


def test_files_of_other_kinds(tmp_path):
    for name, says in OTHER_KINDS.items():
        (tmp_path / name).write_text("x")
        refused(says, open_volume, str(tmp_path / name))


def test_multisets_of_paintera(tmp_path):
    import zarr

    about = {"dimensions": [7, 5, 4], "dataType": "uint16", "blockSize": [7, 5, 4], "compression": {"type": "raw"}}
    zarr.create_array(store=tmp_path / "a.zarr", data=numbered(), attributes={"isLabelMultiset": True})
    put(tmp_path / "a.n5", about | {"isLabelMultiset": True})
    for name in ("a.zarr", "a.n5"):
        refused(r"multiset of Paintera.*scalar labels", open_volume, str(tmp_path / name))


def test_napari_asks_for_every_format():
    import mitoseg.viewers

    manifest = Path(mitoseg.viewers.__file__).parent / "napari_plugin" / "napari.yaml"
    found = yaml.safe_load(manifest.read_text())["contributions"]
    patterns = found["readers"][0]["filename_patterns"]
    wanted = {
        f"*{suffix}" for one in FORMATS if one is not images.FORMAT for suffix in one.suffixes
    }  # pictures are napari's own
    assert wanted <= set(patterns)
    for writer, dtype in zip(found["writers"], ("uint32", "uint8"), strict=True):
        of_zarr = {".ome.zarr"}  # which ends in .zarr
        assert {*writer["filename_extensions"]} == {*written_suffixes(dtype)} - of_zarr


def test_what_a_header_of_nrrd_says_in_its_own_way(tmp_path):
    """Fields in capitals, names of axes, a flat image with a pixel size, voxels in a file of their own."""
    image_zyx = numbered("uint8")
    write = {"Type": "UCHAR", "Dimension": 3, "Sizes": "4 5 7", "Encoding": "RAW", "Labels": '"z" "y" "x"'}
    write |= {"Spacings": "50 6 5", "Units": '"nm" "nm" "nm"', "Data File": "a.raw"}
    text = "NRRD0004\n" + "".join(f"{field}: {value}\n" for field, value in write.items()) + "\n"
    (tmp_path / "a.nhdr").write_text(text)
    (tmp_path / "a.raw").write_bytes(np.ascontiguousarray(image_zyx.T).tobytes())
    volume = check(tmp_path / "a.nhdr", image_zyx, (50.0, 6.0, 5.0))
    before = volume.state()
    (tmp_path / "a.raw").write_bytes(bytes(image_zyx.size + 1))
    assert volume.state() != before
    flat = 'NRRD0004\ntype: uchar\ndimension: 2\nsizes: 7 5\nencoding: raw\nspacings: 5 6\nunits: "nm" "nm"\n\n'
    (tmp_path / "b.nrrd").write_bytes(flat.encode() + image_zyx[0].tobytes())
    assert open_volume(str(tmp_path / "b.nrrd")).voxel_size == (5.0, 6.0, 5.0)
