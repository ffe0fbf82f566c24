"""The README's picture: a slice, its truth and the result above, the mitochondria of the volume in 3D below.

    python benchmarks/front_picture.py out=docs/images/front.png

Both parts are pictures that are in the repository already: ``epfl_result.png`` is an overlay of `evaluate.py`
(``save_overlays=``), ``epfl_scene.png`` a scene of `measure.py` (``scene=``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from options import read_options
from PIL import Image, ImageChops

IMAGES = Path(__file__).parents[1] / "docs" / "images"
GAP = 12
"""Pixels between the parts."""


@dataclass
class Options:
    """Key=value words of the command line."""

    out: str = "front.png"
    above: str = str(IMAGES / "epfl_result.png")
    below: str = str(IMAGES / "epfl_scene.png")
    width: int = 1200  # pixels of the picture
    scene: float = 0.72  # width of the scene, as a share of it


def without_margin(picture: Image.Image) -> Image.Image:
    """A picture without what is plain white around it."""
    white = Image.new("RGB", picture.size, "white")
    return picture.crop(ImageChops.difference(picture, white).getbbox())


def compose(options: Options) -> Image.Image:
    """Both pictures, one below the other, on white."""
    parts = [without_margin(Image.open(path).convert("RGB")) for path in (options.above, options.below)]
    widths = [options.width - 2 * GAP, round(options.width * options.scene)]
    parts = [
        part.resize((width, round(part.height * width / part.width)), Image.Resampling.LANCZOS)
        for part, width in zip(parts, widths, strict=True)
    ]
    picture = Image.new("RGB", (options.width, sum(part.height for part in parts) + 3 * GAP), "white")
    top = GAP
    for part in parts:
        picture.paste(part, ((options.width - part.width) // 2, top))
        top += part.height + GAP
    return picture


if __name__ == "__main__":
    chosen = read_options(Options, sys.argv[1:])
    compose(chosen).save(chosen.out, optimize=True)
