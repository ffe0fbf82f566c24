"""The same voxels make the same bytes, whenever they are written."""

import time

import numpy as np
import pytest

from mitoseg.geometry import Box, slabs
from mitoseg.volumes import create_volume
from mitoseg.volumes import tiff as tiff_module

NAMES = ["a.tif", "big.tif", "a.h5", "b.h5:/deep/er", "a.zarr", "a.mrc"]
METADATA = {"kind": "probability", "threshold": 0.375}


def write_all(folder, monkeypatch):
    image_zyx = np.random.default_rng(0).integers(0, 255, (20, 90, 270), np.uint8)
    for name in NAMES:
        with monkeypatch.context() as patch:
            if name == "big.tif":
                patch.setattr(tiff_module, "CLASSIC_BYTES", 0)
            with create_volume(
                f"{folder}/{name}", image_zyx.shape, "uint8", voxel_size=(50, 4.6, 4.6), metadata=METADATA
            ) as writer:
                for box in slabs(Box.of_shape(image_zyx.shape), 7):
                    writer.write(box, image_zyx[box.slices])
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = write_all(tmp_path_factory.mktemp("first"), monkeypatch)
        time.sleep(1.1)  # formats that write the time write seconds
        return first, write_all(tmp_path_factory.mktemp("second"), monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_equal_volumes_are_equal_files(twice, name):
    first, second = ({k: v for k, v in files.items() if k.startswith(name.split(":")[0])} for files in twice)
    assert first
    assert first == second


def test_big_tiffs_of_different_volumes_have_different_names(tmp_path, monkeypatch):
    """OME tells files of a set apart by a UUID, which must not be random here, and not one for all either."""
    monkeypatch.setattr(tiff_module, "CLASSIC_BYTES", 0)
    found = set()
    for number, shape in enumerate([(2, 3, 4), (2, 3, 5)]):
        with create_volume(tmp_path / f"{number}.tif", shape, "uint8"):
            pass
        text = (tmp_path / f"{number}.tif").read_bytes()
        found.add(text[text.index(b"urn:uuid:") :][:45])
    assert len(found) == 2
