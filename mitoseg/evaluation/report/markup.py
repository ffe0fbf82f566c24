"""What a report is made of and how large it may be; arrays, pictures and small charts that a page holds.

Charts are drawn here, not by matplotlib, because inline SVG of classes follows the page: its letters, its light and
dark colours and print. One takes 2 to 5 kB.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame
from PIL import Image

from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume, VoxelSize, mask_volume

Section = dict[str, Any]
"""What the template of a section is given."""

Values = Sequence[float] | npt.NDArray[np.floating]

Shape = tuple[str, str, dict[str, object]]
"""An element of SVG: its tag, its text and its attributes."""

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44


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
    """What a report tells of, see `write_report`; whatever is None has no place in it."""

    title: str
    image: Volume | None = None
    truth: Volume | None = None
    mask: Volume | None = None
    instances: Volume | None = None
    table: DataFrame | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    voxel_size: VoxelSize | None = None
    crop: Box | None = None
    options: ReportOptions = ReportOptions()

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


@dataclass(frozen=True)
class Axis:
    """One axis of a chart, whose name has its unit; ``whole`` marks whole numbers alone."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def place(self, values: Values) -> npt.NDArray[np.float64]:
        """Values from 0 at the start to 1 at the end."""
        v, low, high = np.asarray(values, float), self.low, self.high
        if self.log:
            v, low, high = np.log10(np.maximum(v, 1e-300)), math.log10(low), math.log10(high)
        placed: npt.NDArray[np.float64] = (v - low) / ((high - low) or 1)
        return placed

    def ticks(self) -> list[float]:
        """Round values along the axis.

        >>> Axis("", 0, 1).ticks(), Axis("", 0.002, 3, log=True).ticks()
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.01, 0.1, 1.0])
        """
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            heads = (1,) if high - low > 2 else (1, 2, 5)
            ticks = [h * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for h in heads]
            return [float(f"{t:.3g}") for t in ticks if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]
        found = MaxNLocator(6, steps=[1, 2, 5, 10], integer=self.whole).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [round(float(t), 12) for t in found if self.low - slack <= t <= self.high + slack]


@dataclass
class Chart:
    """A chart that is drawn piece by piece, from the bottom up.

    ``label`` says what it shows for those who cannot see it; the legend has name and style of each entry.
    """

    width, height = WIDTH, HEIGHT

    x: Axis
    y: Axis
    label: str
    parts: list[Shape] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)

    def at(self, x: Values, y: Values) -> npt.NDArray[np.float64]:
        """(n, 2) points on the drawing."""
        across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM)
        return np.stack([across, down], axis=-1)

    def bars(self, edges: Values, heights: Values) -> None:
        """Bars from zero, one between every two edges."""
        base = HEIGHT - BOTTOM
        tops = self.at(np.asarray(edges)[:-1], heights)
        ends = self.at(np.asarray(edges)[1:], heights)[:, 0]
        for (left, top), right in zip(tops, ends, strict=True):
            place = {"x": f"{left + 0.4:.1f}", "y": f"{top:.1f}"}
            size = {"width": f"{max(right - left - 0.8, 0.4):.1f}", "height": f"{max(base - top, 0):.1f}"}
            self.parts.append(("rect", "", {"class": "fill1", **place, **size}))

    def draw(
        self, x: Values, y: Values, style: str = "c1", name: str = "", *, points: bool = False, line: bool = True
    ) -> None:
        """A line or points; what is not finite is left out.

        The style is a class: ``c1`` to ``c4`` or ``faint``, with `` dashed`` for a broken line.
        """
        across, up = np.asarray(x, float), np.asarray(y, float)
        keep = np.isfinite(across) & np.isfinite(up)
        places = self.at(across[keep], up[keep])
        if line and len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            self.parts.append(("polyline", "", {"class": f"line {style}", "points": path}))
        if points or not line:
            for x_, y_ in places:
                dot = {"class": f"dot {style}", "cx": f"{x_:.1f}", "cy": f"{y_:.1f}", "r": 3}
                self.parts.append(("circle", "", dot))
        if name:
            self.legend.append((name, style))

    def upright(self, x: float, name: str) -> None:
        """A line across the chart at one value, with its name."""
        ((at, _),) = self.at([x], [self.y.low])
        self.parts.append(_line("mark-line", (at, at), (TOP, HEIGHT - BOTTOM)))
        self.parts.append(_text(name, at - 4, TOP + 9, "end") if at > WIDTH * 0.72 else _text(name, at + 4, TOP + 9))

    def frame(self) -> list[Shape]:
        """Grid, axes and their names."""
        base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for tick in self.y.ticks():
            ((_, y),) = self.at([self.x.low], [tick])
            parts += [_line("grid", (LEFT, end), (y, y)), _text(_tick(tick), LEFT - 6, y + 3.5, "end")]
        for tick in self.x.ticks():
            ((x, _),) = self.at([tick], [self.y.low])
            parts += [_line("grid", (x, x), (base, base + 4)), _text(_tick(tick), x, base + 16, "middle")]
        parts.append(_text(self.x.name, (LEFT + end) / 2, HEIGHT - 8, "middle", "name"))
        turned = f"translate(13 {(TOP + base) / 2}) rotate(-90)"
        name: dict[str, object] = {"class": "name", "transform": turned, "text-anchor": "middle"}
        return [*parts, ("text", self.y.name, name), _line("axis", (LEFT, end), (base, base))]


def _line(style: str, x: tuple[float, float], y: tuple[float, float]) -> Shape:
    ends = {"x1": f"{x[0]:.1f}", "x2": f"{x[1]:.1f}", "y1": f"{y[0]:.1f}", "y2": f"{y[1]:.1f}"}
    return "line", "", {"class": style, **ends}


def _text(text: str, x: float, y: float, anchor: str = "start", style: str = "tick") -> Shape:
    return "text", text, {"class": style, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
