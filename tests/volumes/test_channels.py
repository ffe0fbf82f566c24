import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import CHANNEL_OFFSETS, ArrayVolume, channel_slices, read_channels


@pytest.mark.parametrize(
    ("z", "depth", "channels", "slices"),
    [
        (0, 5, "adjacent", [0, 0, 1]),
        (2, 5, "adjacent", [1, 2, 3]),
        (4, 5, "adjacent", [3, 4, 4]),
        (0, 1, "adjacent", [0, 0, 0]),
        (0, 2, "adjacent", [0, 0, 1]),
        (3, 5, "repeat", [3, 3, 3]),
        (3, 5, "single", [3]),
    ],
)
def test_a_missing_neighbour_is_the_slice_itself(z, depth, channels, slices):
    assert channel_slices(z, depth, channels) == slices
    with pytest.raises(UserError, match="no such channels: 'rgb'; choose one of adjacent, adjacent5, every_second9, "):
        channel_slices(z, depth, "rgb")
    assert len(slices) == len(CHANNEL_OFFSETS[channels])
    image_zyx = np.arange(depth * 4 * 6, dtype=np.uint16).reshape(depth, 4, 6)
    volume = ArrayVolume(image_zyx)
    image_cyx = read_channels(volume, z, channels)
    assert image_cyx.dtype == np.uint16
    assert np.array_equal(image_cyx, image_zyx[slices])
    box = Box((1, 2), (3, 6))
    assert np.array_equal(read_channels(volume, z, channels, box), image_zyx[slices][(slice(None), *box.slices)])
