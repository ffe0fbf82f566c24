import logging
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import images, map_labels, open_volume
from mitoseg.volumes.images import natural_key


def write_png(path, image):
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image)))


def write_slices(folder, image_zyx, name="slice{}.png"):
    folder.mkdir(exist_ok=True)
    for z, image_yx in enumerate(image_zyx):
        file = folder / name.format(z)
        if file.suffix.lower() == ".png":
            write_png(file, image_yx)
        else:
            tifffile.imwrite(file, image_yx, compression="zlib" if z % 2 else None)
    return str(folder)


@pytest.mark.parametrize("name", ["slice{}.png", "{}.PNG", "mask{:04d}.tif", "a-{}-b.tiff"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_slices_come_in_natural_order(tmp_path, name, dtype):
    image_zyx = np.arange(12 * 5 * 7).reshape(12, 5, 7).astype(dtype)  # 12: slice10 comes after slice2
    volume = open_volume(write_slices(tmp_path / "a", image_zyx, name))
    assert volume.shape == (12, 5, 7)
    assert volume.dtype == dtype
    assert volume.voxel_size is None
    assert np.array_equal(volume.read(), image_zyx)
    box = Box((2, 1, 3), (11, 5, 6))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(box), image_zyx[box.slices])


def test_float_slices(tmp_path):
    image_zyx = np.random.default_rng(0).random((5, 6, 7), np.float32)
    volume = open_volume(write_slices(tmp_path / "a", image_zyx, "{}.tif"), voxel_size=(50, 4, 4))
    assert np.array_equal(volume.read(), image_zyx)
    assert volume.voxel_size == (50, 4, 4)


@given(st.lists(st.integers(0, 2000), unique=True), st.sampled_from(["z{}", "{}", "s_{}_t1", "a1b{}"]))
def test_natural_order_is_the_order_of_the_numbers(numbers, name):
    names = sorted((name.format(n) for n in numbers), key=natural_key)
    assert names == [name.format(n) for n in sorted(numbers)]


@given(st.lists(st.text("a1²٣-0", max_size=5)))
def test_any_names_can_be_sorted(names):
    assert sorted(sorted(names, key=natural_key)[::-1], key=natural_key) == sorted(names, key=natural_key)


def test_other_files_are_left_alone(tmp_path):
    image_zyx = np.zeros((2, 5, 7), np.uint8)
    folder = write_slices(tmp_path / "a", image_zyx)
    (tmp_path / "a" / "Thumbs.db").write_text("")
    (tmp_path / "a" / "._slice0.png").write_text("")  # macOS leaves these on foreign disks
    (tmp_path / "a" / "folder.png").mkdir()
    assert open_volume(folder).shape == (2, 5, 7)


def as_palette(image_yx):
    """A palette PNG whose colour n is the grey n."""
    from PIL import Image

    image = Image.fromarray(image_yx, "L").convert("P")
    image.putpalette([n for n in range(256) for _ in range(3)])
    return image


def test_colour_modes_mixed_in_one_folder_of_labels(tmp_path, caplog):
    """As in Lucchi++: `%i.png`, some RGBA, some grey."""
    mask_zyx = np.zeros((12, 20, 30), np.uint8)
    mask_zyx[:, 5:12, 8:20] = 255
    mask_zyx[:, 5, 8:20] = 90  # anti-aliased edge
    folder = tmp_path / "labels"
    folder.mkdir()
    for z, mask in enumerate(mask_zyx):
        opaque = np.full_like(mask, 255)
        kinds = [mask, np.stack([mask] * 3 + [opaque], -1), np.stack([mask] * 3, -1), np.stack([mask, opaque], -1)]
        write_png(folder / f"{z}.png", kinds[z % 4])
    with caplog.at_level(logging.INFO, logger="mitoseg"):
        volume = open_volume(str(folder))
        labels = map_labels(volume)
    assert volume.shape == (12, 20, 30)
    assert np.array_equal(volume.read(), mask_zyx)
    assert np.array_equal(labels.read(), mask_zyx >= 128)
    assert "9 of 12 slices are in colour" in caplog.text
    assert "128 and above are foreground" in caplog.text


def test_palettes_and_single_bits(tmp_path):
    pytest.importorskip("PIL")
    from PIL import Image

    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 4:9] = 255
    as_palette(mask).save(tmp_path / "0.png")
    Image.fromarray(mask, "L").convert("1").save(tmp_path / "1.png")
    Image.fromarray(mask, "L").save(tmp_path / "2.png")
    volume = open_volume(str(tmp_path))
    assert volume.dtype == np.uint8
    assert (volume.read() == mask).all()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}])
def test_colour_tif_slices(tmp_path, options):
    image_zyxc = np.random.default_rng(0).integers(0, 255, (5, 20, 30, 3), np.uint8)
    for z, image_yxc in enumerate(image_zyxc):
        stored = np.moveaxis(image_yxc, -1, 0) if "planarconfig" in options else image_yxc
        tifffile.imwrite(tmp_path / f"{z}.tif", stored, photometric="rgb", **options)
    assert np.array_equal(open_volume(str(tmp_path)).read(), image_zyxc.max(-1))


def test_opening_decodes_nothing(tmp_path, monkeypatch):
    folder = write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8))

    def refuse(_):
        raise AssertionError("voxels were read")

    monkeypatch.setattr(images, "_decode", refuse)
    assert open_volume(folder).shape == (3, 5, 7)


def test_a_slice_is_decoded_once(tmp_path, monkeypatch):
    volume = open_volume(write_slices(tmp_path / "a", np.zeros((3, 20, 20), np.uint8)))
    seen = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda file: seen.append(file.name) or decode(file))
    for y in range(0, 20, 5):
        volume.read(Box((0, y, 0), (3, y + 5, 20)))
    assert sorted(seen) == ["slice0.png", "slice1.png", "slice2.png"]


def test_slices_of_different_sizes(tmp_path):
    folder = write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8))
    write_png(tmp_path / "a" / "slice3.png", np.zeros((5, 8), np.uint8))
    with pytest.raises(UserError, match=r"slices differ: slice0\.png is 5 x 7 uint8, slice3\.png is 5 x 8 uint8"):
        open_volume(folder)


def test_slices_of_different_types(tmp_path):
    folder = write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8))
    write_png(tmp_path / "a" / "slice3.png", np.zeros((5, 7), np.uint16))
    with pytest.raises(UserError, match=r"slices differ.*slice3\.png is 5 x 7 uint16"):
        open_volume(folder)


def test_a_folder_without_slices(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="holds no png or tif slices"):
        open_volume(str(tmp_path))


def test_a_folder_with_both_kinds(tmp_path):
    write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8))
    write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8), "{}.tif")
    with pytest.raises(UserError, match="both png and tif"):
        open_volume(str(tmp_path / "a"))


def test_a_stack_among_slices(tmp_path):
    tifffile.imwrite(tmp_path / "0.tif", np.zeros((5, 6, 7), np.uint8))
    with pytest.raises(UserError, match="several images"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize("axes", ["xyz", "zyxc"])
def test_axes_of_a_folder_are_known(tmp_path, axes):
    folder = write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8))
    assert open_volume(folder, axes="zyx").shape == (3, 5, 7)
    with pytest.raises(UserError, match="always z, y, x"):
        open_volume(folder, axes=axes)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("name", ["slice{}.png", "slice{}.tif"])
def test_a_damaged_slice_is_one_line(tmp_path, share, name, caplog, capfd):
    image_zyx = np.random.default_rng(0).integers(0, 255, (3, 50, 70), np.uint8)
    folder = write_slices(tmp_path / "a", image_zyx, name)
    file = tmp_path / "a" / name.format(1)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match="slice1") as caught:
        open_volume(folder).read()
    assert "\n" not in str(caught.value)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_slice_that_changes_after_opening(tmp_path):
    volume = open_volume(write_slices(tmp_path / "a", np.zeros((3, 5, 7), np.uint8)))
    write_png(tmp_path / "a" / "slice1.png", np.zeros((5, 8), np.uint8))
    with pytest.raises(UserError, match="changed its size"):
        volume.read()
