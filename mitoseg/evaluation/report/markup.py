"""What a report is made of and how large it may be; arrays, pictures and figures that a page holds."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image

from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume, VoxelSize, mask_volume

Section = dict[str, Any]  # what the template of a section is given


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def pack(array: npt.NDArray[Any]) -> str:
    """The bytes of an array, little-endian and in C order, deflated (zlib) and in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode("ascii")


def picture(array: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A grey or RGB picture as WebP, which every browser of the last years can show."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The address of a figure as SVG, with the same bytes each time."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "mitoseg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", buffer.getvalue())


def number(value: object, digits: int = 4) -> str:
    """A number to read; a dash where there is none.

    >>> number(1234567), number(0.84336, 3), number(12345.678), number(2.5e-7, 3)
    ('1,234,567', '0.843', '12,346', '2.5e-07')
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{int(value):,}"
    if not isinstance(value, float | np.floating) or not math.isfinite(value):
        return "\N{EN DASH}"
    real = float(value)
    return f"{real:,.0f}" if abs(real) >= 1000 else f"{real:.{digits}g}"


@dataclass(frozen=True)
class ReportOptions:
    """Limits of a report."""

    slices: int = 40  # pictures along z, at most
    pixels: int = 768  # longest side of each
    quality: int = 70  # of their WebP, from 0 to 100
    triangles: int = 150_000  # of the 3D scene, about; it is coarser where this is less
    rows: int = 500  # of the table that is shown; the file to download has them all
    errors: int = 12  # pictures of errors, at most, of each kind


@dataclass(frozen=True)
class Content:
    """What a report tells of; whatever is None has no place in it."""

    title: str
    image: Volume | None = None  # grey values
    truth: Volume | None = None  # mapped labels: 0 background, 1 foreground, 255 ignored
    mask: Volume | None = None  # what was found: not zero is foreground. None: the instances
    instances: Volume | None = None  # ids, 0 for background
    table: DataFrame | None = None  # a row an instance, its id in ``instance``. None: size and place of the instances
    scores: Mapping[str, Any] = field(default_factory=dict)  # of `mitoseg.evaluation.evaluate`, or ``metrics.json``
    provenance: Mapping[str, object] = field(default_factory=dict)  # what ``provenance.json`` holds
    voxel_size: VoxelSize | None = None  # (z, y, x) in nm; None: as the first volume that knows says
    crop: Box | None = None  # the part of the volumes that is shown; None: everything
    options: ReportOptions = ReportOptions()  # how much of everything, and so how large the file is

    @cached_property
    def volumes(self) -> dict[str, Volume]:
        """Those that are there, by name; a mask is read from the instances where there is no other."""
        mask = self.mask
        if mask is None and self.instances is not None:
            mask = mask_volume(self.instances, lambda values: values != 0)
        given = {"image": self.image, "truth": self.truth, "result": mask, "instances": self.instances}
        volumes = {name: volume for name, volume in given.items() if volume is not None}
        check_shapes(**volumes)
        return volumes

    @cached_property
    def box(self) -> Box | None:
        """The part of the volumes that is shown; None without volumes."""
        return next((volume.check_box(self.crop) for volume in self.volumes.values()), None)

    @cached_property
    def spacing(self) -> VoxelSize | None:
        """(z, y, x) in nm, as given or as a volume says."""
        sizes = [self.voxel_size, *(volume.voxel_size for volume in self.volumes.values())]
        return next((size for size in sizes if size is not None), None)
