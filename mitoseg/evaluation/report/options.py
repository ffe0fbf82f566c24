"""What a report is made of, and how large it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pandas import DataFrame

from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume, VoxelSize
from mitoseg.volumes.masks import MaskVolume


@dataclass(frozen=True)
class ReportOptions:
    """Limits of a report.

    Attributes:
        slices: Pictures along z, at most.
        pixels: Longest side of each.
        quality: Of their WebP, from 0 to 100.
        triangles: Of the 3D scene, about; it is coarser where this is less.
        rows: Of the table that is shown; the file to download has them all.
        errors: Pictures of errors, at most, of each kind.
    """

    slices: int = 40
    pixels: int = 768
    quality: int = 70
    triangles: int = 150_000
    rows: int = 500
    errors: int = 12


@dataclass(frozen=True)
class Content:
    """What a report tells of; whatever is None has no place in it.

    Attributes:
        title: Over the page.
        image: Grey levels.
        truth: Mapped labels: 0, 1 or 255 (ignored).
        result: The mask that was found: not zero is foreground.
        instances: Ids, 0 for background.
        table: One row an instance.
        scores: What ``metrics.json`` of an evaluation holds.
        provenance: What ``provenance.json`` holds.
        voxel_size: (z, y, x) in nm.
        crop: The part of the volumes that is shown; None: everything.
        options: Limits.
    """

    title: str
    image: Volume | None = None
    truth: Volume | None = None
    result: Volume | None = None
    instances: Volume | None = None
    table: DataFrame | None = None
    scores: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    voxel_size: VoxelSize | None = None
    crop: Box | None = None
    options: ReportOptions = ReportOptions()

    @cached_property
    def volumes(self) -> dict[str, Volume]:
        """Those that are there, by name; a mask is read from the instances where there is no other.

        Raises:
            UserError: They differ in shape.
        """
        result = self.result
        if result is None and self.instances is not None:
            result = MaskVolume(self.instances, lambda values: values != 0)
        given = {"image": self.image, "truth": self.truth, "result": result, "instances": self.instances}
        volumes = {name: volume for name, volume in given.items() if volume is not None}
        check_shapes(**volumes)
        return volumes

    @cached_property
    def box(self) -> Box | None:
        """The part of the volumes that is shown; None without volumes."""
        for volume in self.volumes.values():
            return volume.check_box(self.crop)
        return None

    @cached_property
    def spacing(self) -> VoxelSize | None:
        """(z, y, x) in nm, as given or as a volume says."""
        sizes = [self.voxel_size, *(volume.voxel_size for volume in self.volumes.values())]
        return next((size for size in sizes if size is not None), None)


def foreground_of(prediction: Volume, threshold: float | None = None, kind: str | None = None) -> Volume:
    """The mask of a stored prediction, decided while it is read.

    Raises:
        UserError: Its kind cannot be told, or the threshold is no probability.
    """
    return MaskVolume(prediction, decide(prediction, threshold, kind).foreground)
