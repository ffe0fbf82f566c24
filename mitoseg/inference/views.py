"""The volume as each symmetry shows it, with the method that predicts it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitoseg.geometry import Box
from mitoseg.inference.methods import make_method
from mitoseg.inference.protocol import Method
from mitoseg.inference.symmetry import Symmetry, TurnedVolume, check_cubic, symmetries
from mitoseg.volumes import Volume

if TYPE_CHECKING:
    from mitoseg.inference.predict import Prediction


@dataclass(frozen=True)
class View:
    """A turned volume and the method on it.

    Attributes:
        symmetry: How it is turned.
        volume: As it looks turned.
        method: Made for its shape.
        shape: (z, y, x) of the volume as it is.
    """

    symmetry: Symmetry
    volume: Volume
    method: Method
    shape: tuple[int, int, int]

    def turn(self, box: Box) -> Box:
        """Where a box of the volume lies in the turned one."""
        return self.symmetry.turn(box, self.shape)


def make_views(prediction: Prediction, volume: Volume) -> list[View]:
    """A view for each symmetry; those of one shape share their method.

    Raises:
        UserError: The method does not fit the network, the network the volume, or the symmetries its voxels.
    """
    check_cubic(prediction.tta, volume.voxel_size or prediction.voxel_size)
    methods: dict[Sequence[int], Method] = {}
    views = []
    for symmetry in symmetries(prediction.tta):
        turned = TurnedVolume(volume, symmetry) if symmetry != Symmetry() else volume
        if turned.shape not in methods:
            methods[turned.shape] = make_method(
                prediction.method, prediction.network, turned.shape, prediction.options
            )
        views.append(View(symmetry, turned, methods[turned.shape], volume.shape))
    return views
