"""One picture: the same crop of a slice under every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.evaluation import decide
from mitoseg.evaluation.comparison import comparison_figure
from mitoseg.geometry import Box
from mitoseg.storage import atomic_output
from mitoseg.volumes import open_volume

_EVERY = 4
"""Of how many slices one is looked at for a place to show."""


def choose_box(label_zyx: npt.NDArray[np.uint8], size: Sequence[int]) -> Box:
    """Where a crop of one slice holds most mitochondria in truth, so that no result has a say in what is shown.

    Args:
        label_zyx: 0, 1, 255.
        size: (y, x) of the crop, cut to the slice.

    >>> label_zyx = np.zeros((5, 8, 8), np.uint8)
    >>> label_zyx[4, 4:, 4:] = 1
    >>> str(choose_box(label_zyx, (4, 4)))
    '[4:5,4:8,4:8]'
    """
    height, width = (min(int(n), whole) for n, whole in zip(size, label_zyx.shape[1:], strict=True))
    best, place = -1.0, (0, 0, 0)
    for z in range(0, len(label_zyx), _EVERY):
        share_yx = uniform_filter((label_zyx[z] == 1).astype(np.float32), (height, width), mode="constant")
        # The filter answers at index n // 2 of its window.
        whole_yx = share_yx[height // 2 :, width // 2 :][: share_yx.shape[0] - height + 1]
        whole_yx = whole_yx[:, : share_yx.shape[1] - width + 1]
        y, x = np.unravel_index(int(whole_yx.argmax()), whole_yx.shape)
        if whole_yx[y, x] > best + 1e-6:
            best, place = float(whole_yx[y, x]), (z, int(y), int(x))
    z, top, left = place
    return Box((z, top, left), (z + 1, top + height, left + width))


def picture_box(region: Region, size: object, box: object) -> Box:
    """The crop that is asked for, in coordinates of the region.

    Raises:
        UserError: It is no size, leaves the region, or has more than one slice.
    """
    if box is not None:
        found = Box.parse(box, region.box.shape)
        if found.shape[0] != 1:
            raise UserError("the picture shows one slice", str(found), "give figure_box=[z:z+1,y:y,x:x]")
        return found
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UserError("figure_size is no size", size, "give figure_size=[y,x] in voxels, such as [384,384]")
    return choose_box(region.read_label(), size)


def draw_methods(path: Path, region: Region, predictions: Mapping[str, Path], box: Box) -> None:
    """Write the picture.

    Args:
        path: The PNG file.
        region: Image and truth.
        predictions: What each method has written for the region, by what stands above its panel.
        box: One slice, in coordinates of the region.

    Raises:
        UserError: A prediction cannot be read, or the file not be written.
    """
    there = box.shift(region.box.start)
    results = {}
    for title, where in predictions.items():
        prediction = open_volume(str(where))
        results[title] = decide(prediction).foreground(prediction.read(box))[0]
    z, y, x = box.start
    figure = comparison_figure(
        region.image.read(there)[0],
        region.label.read(there)[0],
        results,
        title=f"image, z = {z}, y from {y}, x from {x}",
        voxel_size=region.image.voxel_size,
    )
    with atomic_output(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")
