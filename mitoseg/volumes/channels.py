"""Which slices make the input channels of a network.

adjacent, z = 0 of 5:   slices 0 0 1      (a missing neighbour is the slice itself)
adjacent, z = 2 of 5:   slices 1 2 3
every_second9, z = 9:   slices 1 3 5 7 9 11 13 15 17
"""

from __future__ import annotations

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume

CHANNEL_OFFSETS: dict[str, tuple[int, ...]] = {
    "adjacent": (-1, 0, 1),
    "adjacent5": (-2, -1, 0, 1, 2),
    "every_second9": (-8, -6, -4, -2, 0, 2, 4, 6, 8),
    "repeat": (0, 0, 0),
    "single": (0,),
}
"""Slices relative to the one in question, by name."""


def channel_slices(z: int, depth: int, channels: str) -> list[int]:
    """The slices that make the channels of slice ``z``; a missing neighbour is the slice itself.

    Raises:
        UserError: No such way of making channels.

    >>> channel_slices(0, 5, "adjacent"), channel_slices(2, 5, "adjacent"), channel_slices(4, 5, "adjacent")
    ([0, 0, 1], [1, 2, 3], [3, 4, 4])
    """
    if channels not in CHANNEL_OFFSETS:
        raise UserError("no such channels", channels, f"choose one of {', '.join(CHANNEL_OFFSETS)}")
    neighbours = [z + offset for offset in CHANNEL_OFFSETS[channels]]
    return [n if 0 <= n < depth else z for n in neighbours]


def read_channels(volume: Volume, z: int, channels: str, box_yx: Box | None = None) -> Array:
    """Read the channels of one slice.

    Args:
        volume: Where from.
        z: The slice.
        channels: A key of `CHANNEL_OFFSETS`.
        box_yx: The part of the slice, all of it when None.

    Returns:
        ``image_cyx`` in the stored dtype.

    Raises:
        UserError: No such channels, or the file is damaged.
    """
    numbers = channel_slices(z, volume.shape[0], channels)
    box_yx = Box.of_shape(volume.shape[1:]) if box_yx is None else box_yx
    first, last = min(numbers), max(numbers)
    image_zyx = volume.read(Box((first, *box_yx.start), (last + 1, *box_yx.stop)))
    return image_zyx[[n - first for n in numbers]]
