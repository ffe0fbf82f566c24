"""Volumes in files, for the tests: as mitoseg and as other programs write them, and one table of all kinds."""

import bz2
import gzip
import json
import pickle
import struct
from importlib.util import find_spec
from pathlib import Path

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import create_volume, open_volume

WAYS = {
    "plain": {},
    "generic": {"metadata": None},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej_channels": {"imagej": True},  # tifffile's default takes six slices for channels
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "bigtiff": {"bigtiff": True},
    "big_endian": {"byteorder": ">"},
    "zlib": {"compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "zlib_predictor": {"compression": "zlib", "predictor": True},
    "rows": {"rowsperstrip": 5},
    "zlib_rows": {"compression": "zlib", "rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "zlib_tiles": {"compression": "zlib", "tile": (16, 32), "bigtiff": True},
    "volumetric": {"volumetric": True, "tile": (4, 16, 16), "compression": "zlib"},
    "ome_zlib": {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
}


def write(path, image, **options):
    tifffile.imwrite(path, image, **{"photometric": "minisblack", **options})
    return str(path)


def save(path, image_zyx, **options):
    """Write a volume with mitoseg; its path."""
    image_zyx = np.asarray(image_zyx)
    with create_volume(path, image_zyx.shape, image_zyx.dtype, **options) as writer:
        writer.write(Box.of_shape(image_zyx.shape), image_zyx)
    return str(path)


def refused(says, call, *arguments, **options):
    """A call ends in one line for the user that matches; the line."""
    with pytest.raises(UserError, match=says) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(path, image_zyx, size=None, **options):
    """A file opens with these voxels, as a whole, in part and in another process, and this voxel size; the volume."""
    volume = open_volume(path, **options)
    assert (volume.shape, volume.voxel_size) == (image_zyx.shape, size)
    assert volume.dtype == image_zyx.dtype.newbyteorder("=")
    part = Box(tuple(n // 5 for n in volume.shape), tuple(-(-9 * n // 10) for n in volume.shape))
    for one in (volume, pickle.loads(pickle.dumps(volume))):
        for box in (volume.box, part):
            found_zyx = one.read(box)
            assert found_zyx.dtype == volume.dtype
            np.testing.assert_array_equal(found_zyx, image_zyx[box.slices])
    return volume


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


def write_png(path, image):
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(image)))


def write_slices(folder, image_zyx, name="slice{}.png", **options):
    folder.mkdir(exist_ok=True)
    for z, image_yx in enumerate(image_zyx):
        file = folder / name.format(z)
        write_png(file, image_yx) if file.suffix.lower() == ".png" else tifffile.imwrite(file, image_yx, **options)
    return str(folder)


def write_array(path, image, version=3, **options):
    array = zarr.create_array(store=path, shape=image.shape, dtype=image.dtype, zarr_format=version, **options)
    array[...] = image
    return str(path)


NAMES = {"z": "space", "y": "space", "x": "space", "c": "channel", "t": "time"}


def write_ome(path, image_zyx, version, axes="zyx", scales=((50, 4.6, 4.5),), unit="nanometer"):
    """An OME-Zarr image of two levels; version 0.4 is Zarr format 2, version 0.5 format 3."""
    group = zarr.create_group(store=path, zarr_format=2 if version == "0.4" else 3)
    shape = tuple(image_zyx.shape["zyx".index(a)] if a in "zyx" else 1 for a in axes)
    for level, step in (("s0", 1), ("s1", 2)):
        stored = image_zyx.reshape(shape)[tuple(slice(None, None, step) if a in "zyx" else slice(None) for a in axes)]
        group.create_array(level, shape=stored.shape, dtype=stored.dtype)[...] = stored
    every = [[dict(zip("zyx", size, strict=True)).get(a, 1.0) for a in axes] for size in scales]
    transforms = [{"type": "scale", "scale": scale} for scale in every]
    image = {
        "version": version,
        "axes": [{"name": a, "type": NAMES[a], **({"unit": unit} if a in "zyx" and unit else {})} for a in axes],
        "datasets": [
            {"path": "s0", "coordinateTransformations": transforms[:1]},
            {"path": "s1", "coordinateTransformations": [{"type": "scale", "scale": [2.0] * len(axes)}]},
        ],
        **({"coordinateTransformations": transforms[1:]} if transforms[1:] else {}),
    }
    about = {"multiscales": [image]}
    group.attrs.update(about if version == "0.4" else {"ome": {"version": version, **about}})
    return str(path)


def write_n5(path, image_zyx, attributes=None, blocks=(64, 64, 64), compression="gzip"):
    """As other programs write it: axes x, y, z."""
    import tensorstore

    metadata = {"dimensions": list(image_zyx.shape[::-1]), "dataType": image_zyx.dtype.name}
    metadata |= {"blockSize": list(blocks), "compression": {"type": compression}}
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True).result()[...].write(image_zyx.transpose()).result()
    put(path, attributes or {})
    return str(path)


def put(path, attributes):
    """Add attributes to a group or dataset of N5."""
    file = Path(path, "attributes.json")
    found = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found | attributes))


def write_bdv_xml(file, unit):
    """What BigDataViewer writes beside its volumes."""
    setup = f"<id>0</id><voxelSize><unit>{unit}</unit><size>0.004 0.005 0.05</size></voxelSize>"
    file.write_text(f"<SpimData><ViewSetups><ViewSetup>{setup}</ViewSetup></ViewSetups></SpimData>")


def write_nifti(path, image_zyx, affine=None, unit="micron", slope=None):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([0.005, 0.006, 0.05, 1]) if affine is None else affine
    image = nibabel.Nifti1Image(image_zyx.T, affine, dtype=image_zyx.dtype)
    image.header.set_xyzt_units(unit)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return str(path)


SPACINGS = ("spacings: 5 6 50", 'units: "nm" "nm" "nm"')


def write_nrrd(path, image_zyx, header=SPACINGS, *, encoding="raw", voxels=None):
    """Written by hand, with the voxels in a file of their own if ``voxels`` names one."""
    kind = {"uint16": "unsigned short", "uint8": "uchar", "float32": "float"}[image_zyx.dtype.name]
    sizes = " ".join(map(str, image_zyx.shape[::-1]))
    lines = ["NRRD0004", f"type: {kind}", f"dimension: {image_zyx.ndim}", f"sizes: {sizes}", f"encoding: {encoding}"]
    endian = {">": "big"}.get(image_zyx.dtype.byteorder, "little")
    lines += [f"endian: {endian}", *header, *([f"data file: {voxels}"] if voxels else [])]
    pack = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding]
    data = pack(image_zyx.tobytes())
    path.write_bytes("\n".join([*lines, "", ""]).encode() + (b"" if voxels else data))
    if voxels:
        (path.parent / voxels).write_bytes(data)
    return path


def write_imaris(path, image_zyx, channels=1, unit="um"):
    def letters(text):
        return np.array(list(str(text)), "S1")

    with h5py.File(path, "w") as h5:
        about = h5.create_group("DataSetInfo/Image")
        z, y, x = image_zyx.shape
        ends = {"ExtMin0": -1, "ExtMax0": x * 0.005 - 1, "ExtMin1": 0, "ExtMax1": y * 0.006}
        for key, value in {**ends, "ExtMin2": 0, "ExtMax2": z * 0.05, "Unit": unit}.items():
            about.attrs[key] = letters(value)
        for level in range(2):
            part = image_zyx[:, :: level + 1, :: level + 1]
            for channel in range(channels):
                group = h5.create_group(f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel {channel}")
                padded = np.pad(part, [(0, -n % 8) for n in part.shape])
                group.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
                for axis, n in zip("ZYX", part.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = letters(n)
    return path


def write_imod(path, image_zyx):
    """Bytes that IMOD stores less 128, as its flag says."""
    mrcfile.new(path, (image_zyx ^ 0x80).view("int8")).close()
    with path.open("r+b") as file:
        file.seek(152)
        file.write(struct.pack("<ii", 1146047817, 1))


def write_virtual(path, image_zyx):
    layout = h5py.VirtualLayout(image_zyx.shape, "uint8")
    layout[...] = h5py.VirtualSource(".", "raw", image_zyx.shape)
    with h5py.File(path, "w") as h5:
        chunks = (1, 1, 1, *image_zyx.shape[1:])
        h5.create_dataset("raw", data=image_zyx[None, None], chunks=chunks, compression="gzip")
        h5["raw"].attrs["resolution"] = (50.0, 5, 5)
        h5.create_virtual_dataset("em", layout)


def write_hdf5(path, image_zyx, **attributes):
    with h5py.File(path, "w") as h5:
        h5["raw"] = image_zyx
        h5["raw"].attrs.update(attributes)
    return str(path)


def write_mrc(path, image_zyx):
    with mrcfile.new(path, image_zyx.astype("float32")) as file:
        file.voxel_size = 50


def write_indexed(path, image_zyx):
    from PIL import Image

    picture = Image.fromarray(image_zyx[0], "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def ours(path, image_zyx):
    save(path, image_zyx, voxel_size=(50, 5, 5), metadata={"kind": "image"}, chunks=(2, 16, 16))


def tiff(**options):
    return lambda path, image_zyx: write(path, image_zyx, **options)


def array(**options):
    return lambda path, image_zyx: zarr.create_array(store=path, data=image_zyx, **options)


KINDS = {
    "plain.tif": tiff(metadata=None),
    "ours.tif": ours,
    "zlib.tif": tiff(compression="zlib", metadata={"axes": "ZYX"}),
    "lzw.tif": tiff(compression="lzw", rowsperstrip=7, metadata={"axes": "ZYX"}),
    "jpeg.tif": tiff(compression="jpeg", metadata={"axes": "ZYX"}),
    "ome.tif": tiff(ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"}),
    "one.tif": lambda path, image_zyx: write(path, image_zyx[0], compression="zlib"),
    "big.tif": tiff(bigtiff=True, tile=(16, 16), compression="zstd", metadata={"axes": "ZYX"}),
    "png": write_slices,
    "one": lambda path, image_zyx: write_slices(path, image_zyx[:1]),
    "slices": lambda path, image_zyx: write_slices(path, image_zyx, "{}.tif", compression="lzw"),
    "ours.h5": ours,
    "plain.h5": write_hdf5,
    "ours.zarr": ours,
    "ours.ome.zarr": ours,
    "two.zarr": array(chunks=(5, 20, 48), zarr_format=2),
    "four.ome.zarr": lambda path, image_zyx: write_ome(path, image_zyx, "0.4"),
    "sharded.zarr": array(chunks=(1, 20, 24), shards=(5, 40, 48)),
    "ours.mrc": ours,
    "imod.mrc": write_imod,
    "white.tif": lambda path, image_zyx: write(path, 255 - image_zyx, photometric="miniswhite", compression="zlib"),
    "virtual.h5": write_virtual,
    "plain.mrc": write_mrc,
    "raw.n5": lambda path, image_zyx: write_n5(path / "s0", image_zyx, {"scales": [[1, 1, 1]]}, (32, 32, 4)),
    "index.png": write_indexed,
    "a.ims": write_imaris,
    "plain.nii": write_nifti,
    "packed.nii.gz": write_nifti,
    "plain.nrrd": write_nrrd,
    "packed.nrrd": lambda path, image_zyx: write_nrrd(path, image_zyx, encoding="gzip"),
}
_NEEDED = {".n5": "tensorstore", ".nii": "nibabel", ".gz": "nibabel", ".nrrd": "nrrd"}
KINDS = {name: make for name, make in KINDS.items() if find_spec(_NEEDED.get(Path(name).suffix, "sys"))}
"""How a volume (z, y, x) of bytes is written in every format that is read here, by name of the file or folder."""


def walk_image(shape=(5, 40, 48)):
    steps = np.random.default_rng(0).integers(-2, 3, shape)
    return (np.cumsum(steps, 2) + 120).astype(np.uint8)
