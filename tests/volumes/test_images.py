"""Folders of slices and single pictures, and slices that are missing by the numbers in their names."""

import logging
import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from made_files import check, refused, write_png, write_slices
from PIL import Image

from mitoseg.geometry import Box
from mitoseg.volumes import images, map_labels, open_volume
from mitoseg.volumes.base import CroppedVolume
from mitoseg.volumes.images import find_gap, natural_key
from mitoseg.volumes.labels import map_mask
from mitoseg.volumes.opening import warn_of_gaps


@pytest.mark.parametrize("name", ["slice{}.png", "{}.PNG", "mask{:04d}.tif", "a-{}-b.tiff"])
def test_slices_come_in_natural_order(tmp_path, name):
    for dtype in ("uint8", "uint16", *(() if name.lower().endswith("png") else ("float32",))):
        image_zyx = np.arange(12 * 5 * 7).reshape(12, 5, 7).astype(dtype)  # 12: slice10 comes after slice2
        folder = tmp_path / dtype
        write_slices(folder, image_zyx, name)
        for other in ("Thumbs.db", "._slice0.png"):  # macOS leaves these on foreign disks
            (folder / other).write_text("")
        (folder / "folder.png").mkdir()
        check(folder, image_zyx)


@given(st.lists(st.integers(0, 2000), unique=True), st.sampled_from(["z{}", "{}", "s_{}_t1", "a1b{}"]))
def test_natural_order_is_the_order_of_the_numbers(numbers, name):
    names = sorted((name.format(n) for n in numbers), key=natural_key)
    assert names == [name.format(n) for n in sorted(numbers)]


@given(st.lists(st.text("a1²٣-0", max_size=5)))
def test_any_names_can_be_sorted(names):
    assert sorted(sorted(names, key=natural_key)[::-1], key=natural_key) == sorted(names, key=natural_key)


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
        volume = check(str(folder), mask_zyx)
        labels = map_labels(volume)
    assert np.array_equal(labels.read(), mask_zyx >= 128)
    assert "9 of 12 slices are in colour" in caplog.text
    assert "128 and above are foreground" in caplog.text


def test_palettes_and_single_bits(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 4:9] = 255
    greys = Image.fromarray(mask, "L").convert("P")  # whose colour n is the grey n
    greys.putpalette([n for n in range(256) for _ in range(3)])
    for z, image in enumerate((greys, Image.fromarray(mask, "L").convert("1"), Image.fromarray(mask, "L"))):
        image.save(tmp_path / f"{z}.png")
    check(str(tmp_path), np.stack([mask] * 3))
    stored = classes_yx()
    image = Image.fromarray(stored, "P")
    image.putpalette([n for grey in (200, 10, 90, 40, 255) for n in (grey,) * 3])
    image.save(tmp_path / "a.png")
    assert np.array_equal(open_volume(str(tmp_path / "a.png")).read()[0], np.array([200, 10, 90, 40, 255])[stored])


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
"""The colours of VOC's first classes, as labelme and CVAT write them."""


def classes_yx():
    stored = np.zeros((20, 30), np.uint8)
    for value in range(1, 5):
        stored[2:18, 6 * value - 4 : 6 * value] = value
    return stored


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_the_index_of_a_colour_is_the_label(tmp_path, suffix):
    stored = classes_yx()
    for palette in (VOC, [0, 0, 0] * 5):
        image = Image.fromarray(stored, "P")
        image.putpalette(palette)
        folder = tmp_path / str(max(palette))
        folder.mkdir()
        for z in range(2):
            image.save(folder / f"{z}.{suffix}")
        if suffix == "tif":
            options = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
            write_slices(folder, [stored] * 2, "{}.tif", **options)
        for path, depth in ((folder, 2), (folder / f"0.{suffix}", 1)):
            volume = open_volume(str(path))
            assert np.array_equal(volume.read(), [stored] * depth)
            labels = map_labels(volume, foreground=[2, 4])
            assert np.array_equal(labels.read(), [np.isin(stored, (2, 4))] * depth)
            assert pickle.loads(pickle.dumps(labels)).read().sum() == labels.read().sum()


@pytest.mark.parametrize("kind", ["png", "RGBA png", "tif"])
def test_colours_are_classes_of_labels(tmp_path, kind):
    stored = classes_yx()
    colours = np.array(VOC, np.uint8).reshape(-1, 3)[stored]
    colours[0, 0] = 77  # a grey
    if kind == "RGBA png":
        colours = np.concatenate([colours, np.where(stored, 255, 0)[..., None].astype(np.uint8)], -1)
    path = tmp_path / f"a.{kind[-3:]}"
    write_png(path, colours) if "png" in kind else tifffile.imwrite(path, colours, photometric="rgb")
    volume = open_volume(str(path))
    refused(r"4 colours: 0 \(.*#000080 \(.*#800000 \(.*foreground=#", map_labels, volume)
    part = CroppedVolume(volume, Box((0, 5, 0), (1, 20, 30)))
    assert np.array_equal(part.as_labels().read()[0], volume.as_labels().read()[0, 5:])
    chosen = map_labels(volume, foreground=["#800000", "#808000"])
    assert np.array_equal(chosen.read()[0], np.isin(stored, (1, 3)))
    assert "#800000 (" in chosen.rule
    all_colours = stored > 0
    all_colours[0, 0] = kind != "RGBA png"  # there the grey is transparent
    assert np.array_equal(map_labels(volume, rule="nonzero").read()[0], all_colours)


def test_slices_that_imagej_calibrated(tmp_path, caplog):
    stored = np.arange(3 * 20 * 30).reshape(3, 20, 30).astype(np.uint16)
    for z, image_yx in enumerate(stored):
        metadata = {"axes": "YX", "cf": 0, "c0": -32768.0, "c1": 1.0 + z // 2}
        tifffile.imwrite(tmp_path / f"{z}.tif", image_yx, imagej=True, metadata=metadata)
    refused("calibrated in different ways", open_volume, str(tmp_path))
    (tmp_path / "2.tif").unlink()
    assert np.array_equal(open_volume(str(tmp_path)).read(), stored[:2].astype(int) - 32768)


def test_tables_of_colours_that_differ_or_begin_with_a_colour(tmp_path, caplog):
    """Programs that choose the colours of each slice anew number them as they occur."""
    mask_zyx = np.stack([classes_yx() > 0] * 2)
    for name, orders in (("differ", ((0, 1), (1, 0))), ("turned", ((1, 0), (1, 0)))):
        (tmp_path / name).mkdir()
        for z, order in enumerate(orders):
            table = np.zeros((2, 3), np.uint8)
            table[order[1]] = (200, 0, 0)
            image = Image.fromarray(np.array(order, np.uint8)[mask_zyx[z].astype(int)], "P")
            image.putpalette(table.ravel().tolist())
            image.save(tmp_path / name / f"{z}.png")
        assert np.array_equal(map_labels(open_volume(str(tmp_path / name))).read(), mask_zyx), name
    table = np.zeros((3, 256), np.uint16)
    table[0, 0] = 65535
    folder = write_slices(tmp_path / "tif", np.uint8(~mask_zyx), "{}.tif", photometric="palette", colormap=table)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(map_labels(open_volume(folder)).read(), mask_zyx)
    assert caplog.text.count("has indexed colours") <= 1
    write_png(tmp_path / "differ" / "0.png", mask_zyx[0] * np.uint8(77))  # a grey beside tables
    line = refused("foreground=", map_labels, open_volume(str(tmp_path / "differ")), foreground=1)
    assert "77 (" in line
    assert "#c80000 (" in line


def test_one_colour_on_black_is_a_mask(tmp_path):
    mask = classes_yx() == 2
    for colour in ((255, 0, 0), (0, 90, 0)):
        write_png(tmp_path / "a.png", mask[..., None] * np.array(colour, np.uint8))
        assert np.array_equal(map_labels(open_volume(str(tmp_path / "a.png"))).read()[0], mask)
    write_png(tmp_path / "a.png", np.where(mask[..., None], np.array((255, 0, 0), np.uint8), np.uint8(255)))
    refused("no label is 0", map_labels, open_volume(str(tmp_path / "a.png")))


def test_jpeg_keeps_masks_alone(tmp_path):
    ids, mask = classes_yx() * 50, (classes_yx() > 0) * np.uint8(255)
    for name, stored in (("ids", ids), ("mask", mask)):
        large = np.repeat(np.repeat(stored, 9, 0), 9, 1)
        (tmp_path / f"{name}.jpg").write_bytes(imagecodecs.jpeg_encode(large, level=90))
        Image.fromarray(large).save(tmp_path / f"{name}.webp", quality=60)
    for name in ("ids.jpg", "ids.webp"):
        refused("compressed with loss", map_labels, open_volume(str(tmp_path / name)))
        refused("compressed with loss", map_mask, open_volume(str(tmp_path / name)), kind="instances")
    Image.fromarray(large).save(tmp_path / "lossless.webp", lossless=True)
    assert np.array_equal(map_labels(open_volume(str(tmp_path / "lossless.webp"))).read()[0], large > 0)
    found = map_labels(open_volume(str(tmp_path / "mask.jpg"))).read()[0, ::9, ::9]
    assert (found == (mask > 0)).mean() > 0.9


def test_colour_tif_slices(tmp_path):
    image_zyxc = np.random.default_rng(0).integers(0, 255, (5, 20, 30, 3), np.uint8)
    for options in ({}, {"compression": "zlib"}, {"planarconfig": "separate"}):
        stored = np.moveaxis(image_zyxc, -1, 1) if "planarconfig" in options else image_zyxc
        folder = write_slices(tmp_path / "a", stored, "{}.tif", photometric="rgb", **options)
        assert np.array_equal(open_volume(folder).read(), image_zyxc.max(-1))


def test_a_slice_is_decoded_once(tmp_path, monkeypatch):
    folder = write_slices(tmp_path / "a", np.zeros((3, 20, 20), np.uint8))
    seen = []  # none when it was opened
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda file, **how: seen.append(file.name) or decode(file, **how))
    volume = open_volume(folder)
    assert seen == []
    for y in range(0, 20, 5):
        volume.read(Box((0, y, 0), (3, y + 5, 20)))
    assert sorted(seen) == ["slice0.png", "slice1.png", "slice2.png"]


def test_folders_that_are_no_volume(tmp_path):
    image_zyx = np.zeros((3, 5, 7), np.uint8)
    folder = write_slices(tmp_path / "a", image_zyx)
    volume = open_volume(folder)
    for other in (np.zeros((5, 8), np.uint8), np.zeros((5, 7), np.uint16)):
        write_png(tmp_path / "a" / "slice3.png", other)
        says = rf"slices differ: slice0\.png is 5 x 7 uint8, slice3\.png is 5 x {other.shape[1]} {other.dtype}"
        refused(says, open_volume, folder)
    write_png(tmp_path / "a" / "slice1.png", np.zeros((5, 8), np.uint8))
    refused("changed its size", volume.read)  # after it was opened
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("")
    for name in ("slice{}.png", "{}.tif"):
        write_slices(tmp_path / "both", image_zyx, name)
    write_slices(tmp_path / "stack", [image_zyx], "{}.tif", photometric="minisblack")
    for name, says in (("none", "no png or tif slices"), ("both", "both png and tif"), ("stack", "several images")):
        refused(says, open_volume, tmp_path / name)
    assert open_volume(write_slices(tmp_path / "b", image_zyx), axes="zyx").shape == (3, 5, 7)
    for axes in ("xyz", "zyxc"):
        refused("always z, y, x", open_volume, tmp_path / "b", axes=axes)


OTHERS = {"header.wkw": "as OME-TIFF", "knossos.conf": "cubes as TIFF", "info": "precomputed"}
OTHERS |= {"a.json": "polygons are not voxels", "datasource-properties.json": "FOLDER/segmentation/1"}


def test_folders_of_other_programs(tmp_path):
    for mark, says in OTHERS.items():
        (tmp_path / mark / "1").mkdir(parents=True)
        (tmp_path / mark / mark).touch()
        for folder in (tmp_path / mark, tmp_path / mark / "1")[: 1 + (mark != "a.json")]:
            refused(says, open_volume, folder)


def test_what_is_left_out_is_told(tmp_path, caplog):
    image_zyx = np.arange(4 * 5 * 7, dtype=np.uint8).reshape(4, 5, 7)
    folder = write_slices(tmp_path / "one kind", image_zyx)
    open_volume(folder)
    assert not caplog.messages
    (tmp_path / "one kind" / "slice3.png").rename(tmp_path / "one kind" / "slice3.jpg")
    open_volume(folder)
    assert "1 other pictures are not slices, such as slice3.jpg" in caplog.text
    for i, image_yx in enumerate(image_zyx):
        write_slices(tmp_path / "channels", [image_yx], f"z{i // 2}_c{i % 2}.png")
    open_volume(tmp_path / "channels")
    assert "the names count two things, such as z1_c1.png" in caplog.text
    frames, turned = [Image.fromarray(image_yx) for image_yx in image_zyx], Image.Exif()
    turned[274] = 6
    frames[0].save(tmp_path / "turned.jpg", exif=turned)
    open_volume(tmp_path / "turned.jpg")
    assert "rotated for display" in caplog.text
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    refused("several pictures", open_volume, tmp_path / "animated.png")


MICROMETRES = [f"Slice_{i:05d}_z={i / 200:.4f}um.tif" for i in range(30)]
FINE = [
    ["slice_001.tif", "slice_002.tif", "slice_003.tif"],
    *(["z0000.png", "z0005.png", "z0010.png"], ["47.png", "48.png"], ["1.png"]),
    ["a.png", "c.png", "d.png"],  # none has a number
    ["s3_1.tif", "s3_2.tif", "s3_3.tif"],
    MICROMETRES,
    [f"s{i}_t{j}.tif" for i in range(3) for j in range(2)],  # a grid
    ["em_120301_001.tif", "em_120507_002.tif", "em_121142_003.tif"],  # times of day
    ["1203_01.tif", "1205_07.tif", "1211_42.tif"],
    ["20261105_120000.tif", "20261105_120130.tif", "20261105_120301.tif"],
    ["a1.png", "b7.png", "c3.png", "d.png"],
]
_BY = "by the numbers of the files"
GAPS = {
    f"1 slice is missing {_BY}, between s2.tif and s4.tif": ["s1.tif", "s2.tif", "s4.tif"],
    f"3 slices are missing {_BY}, first between s_10.png and s_25.png": [f"s_{i}.png" for i in (0, 5, 10, 25, 30, 40)],
    "the numbers of the slices jump once, between 2.png and 5.png": ["0.png", "2.png", "5.png", "7.png"],
    f"1 slice is missing {_BY}, between {MICROMETRES[6]} and Slice_00008": [*MICROMETRES[:7], *MICROMETRES[8:]],
    f"slice 1 is there twice {_BY}, as a_01.png and": ["a_01.png", "a_1.png", "a_02.png"],
    f"slice 1 is there twice {_BY}, as s 001 - Copy.tif and s 001.tif": [
        *("s 001 - Copy.tif", "s 001.tif", "s 002.tif", "s 003.tif")
    ],
    f"slice 0 is there twice {_BY}, as em_0.tif and mito_0.tif, and 4 more": [
        f"{kind}_{i}.tif" for kind in ("em", "mito") for i in range(5)
    ],
}


def test_what_names_say_is_missing():
    assert [names for names in FINE if find_gap(names)] == []
    for gap, names in GAPS.items():
        assert find_gap(names).startswith(gap)


@given(first=st.integers(0, 999), step=st.integers(1, 7), count=st.integers(4, 40), data=st.data())
def test_what_is_taken_out_is_counted(first, step, count, data):
    numbers = [first + i * step for i in range(count)]
    assert find_gap([f"em12_{i:03d}.tif" for i in numbers]) is None
    gone = data.draw(st.sets(st.sampled_from(numbers[2:-1]), min_size=1))  # the first two tell the step
    told = find_gap([f"em12_{i:03d}.tif" for i in numbers if i not in gone])
    assert told.split()[0] == str(len(gone))


@given(st.lists(st.text("ab01_ ²", min_size=1, max_size=6), max_size=8))
def test_any_names_can_be_looked_at(names):
    find_gap(names)


def test_a_folder_says_so(tmp_path, caplog):
    write_slices(tmp_path, np.zeros((4, 4, 5), np.uint8), "slice_{:03d}.tif")
    (tmp_path / "slice_002.tif").rename(tmp_path / "slice_004.tif")
    (tmp_path / "slice_003.tif").unlink()
    volume = open_volume(tmp_path)
    assert volume.shape == (3, 4, 5)
    refused(r"2 slices are missing .*'.*'; correct the folder, or give missing_slices=ignore", volume.check_complete)
    with caplog.at_level(logging.WARNING):
        warn_of_gaps(volume)
    assert caplog.messages == [f"{tmp_path}: {volume.find_gaps().what}"]
    write_slices(tmp_path, np.zeros((5, 4, 5), np.uint8), "slice_{:03d}.tif")
    open_volume(tmp_path).check_complete()
