import logging
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from tiff_files import write

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import open_volume


def test_pages_of_different_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for n in (20, 20, 21):
            tif.write(np.zeros((n, 30), np.uint8), metadata=None)
    with pytest.raises(UserError, match="not one stack"):
        open_volume(str(tmp_path / "a.tif"))


def test_a_file_that_is_damaged_inside_is_one_line(tmp_path, caplog, capfd):
    image_zyx = np.random.default_rng(0).integers(0, 9, (6, 100, 100), np.uint8)
    path = write(tmp_path / "a.tif", image_zyx, compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.tif").write_bytes(data)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"damaged.*|cannot be read"):
        open_volume(path).read()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff", b"PK\3\4"]
)
def test_what_is_no_tiff(tmp_path, content, caplog):
    (tmp_path / "a.tif").write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"a\.tif"):
        open_volume(str(tmp_path / "a.tif"))
    assert caplog.records == []


def write_ome_set(folder, image_zyx, **options):
    """An OME image whose slices lie in two files."""
    uuid = "urn:uuid:0000000{}-0000-0000-0000-000000000000"
    planes = "".join(
        f'<TiffData IFD="{z % 3}" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{z // 3}.ome.tif">{uuid.format(z // 3)}</UUID></TiffData>'
        for z in range(6)
    )
    for part in (0, 1):
        text = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid.format(part)}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="37" '
            'SizeZ="6" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{planes}</Pixels></Image></OME>"
        )
        slices = image_zyx[part * 3 : part * 3 + 3]
        write(folder / f"{part}.ome.tif", slices, description=text.encode(), metadata=None, **options)
    return str(folder / "0.ome.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_an_ome_image_in_several_files(tmp_path, image_zyx, options):
    path = write_ome_set(tmp_path, image_zyx, **options)
    volume = open_volume(path)
    assert np.array_equal(volume.read(), image_zyx)
    box = Box((1, 2, 3), (5, 36, 49))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(UserError, match="3 of the 6 slices that the OME-TIFF lists are not there"):
        open_volume(path)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png"])
@pytest.mark.parametrize("colour", [False, True])
def test_a_strip_that_unpacks_to_far_too_much(tmp_path, codec, colour):
    shape = (40, 50, 3) if colour else (40, 50)
    encode = {"jpeg": imagecodecs.jpeg8_encode, "jpeg2000": imagecodecs.jpeg2k_encode, "png": imagecodecs.png_encode}
    large = encode[codec](np.zeros((400, 500, *shape[2:]), np.uint8))
    options = {"photometric": "rgb" if colour else "minisblack", "compression": codec, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        tags = [tif.pages.first.tags[name] for name in ("StripOffsets", "StripByteCounts")]
        places = [(tag.offset, tag.dtype) for tag in tags]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for (place, _), value in zip(places, (len(data), len(large)), strict=True):
        data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, value)
    (tmp_path / "a.tif").write_bytes(data + large)
    with pytest.raises(UserError, match="unpacks to 500 x 400 pixels"):
        open_volume(tmp_path / "a.tif").read()
