"""NIfTI files, whose headers nibabel reads, which the extra ``[formats]`` brings.

NIfTI counts axes from the fastest one on: x, y, z, time, channel. The affine tells along which axis of the world each
of x, y and z runs; voxels stay in the order in which they are stored, whichever way their axes point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.volumes.stored import Format, Header, MappedVolume, ReadOptions, StoredVolume, opening
from mitoseg.volumes.units import voxel_size_nm

SUFFIXES = (".nii", ".nii.gz")
_SKEW = 1e-3


def open_nifti(path: str, options: ReadOptions) -> StoredVolume:
    """Open a NIfTI file; reads its header only."""
    nibabel = import_extra("nibabel", "nibabel", "formats")
    with opening(path):
        image = nibabel.load(path)
        found = image.header
        dtype, shape, letters = image.dataobj.dtype, tuple(int(n) for n in image.shape), "xyztc"
        if dtype.names:  # RGB
            shape, dtype, letters = (len(dtype.names), *shape), np.dtype(np.uint8), "sxyzt"
        offset = int(image.dataobj.offset)
        slope, inter = image.dataobj.slope, image.dataobj.inter
        direction = image.affine[:3, :3]
        unit = found.get_xyzt_units()[0]
    grid = Grid.of(path, direction)
    named = letters[: len(shape)].translate(str.maketrans("xyz", grid.letters))
    size = voxel_size_nm([float(f"{length:.6g}") for length in grid.sizes], unit)  # the affine is float32
    header = Header(shape[::-1], dtype, named[::-1], size, scale=(float(slope), float(inter)))
    packing = "gzip" if path.lower().endswith(".gz") else None
    volume = MappedVolume(path, header, options, offset, "NIfTI", packing=packing)
    volume.directions = grid.directions
    return volume


@dataclass(frozen=True)
class Grid:
    """How the axes of a stored grid lie in the world.

    Attributes:
        letters: The world's axis that each stored axis runs along, of the fastest one first: ``x``, ``y`` or ``z``.
        sizes: (z, y, x) of a voxel, in the file's unit.
        directions: For z, y and x, whether the stored axis runs with the world's, to the right, front and top (``+``).
    """

    letters: str
    sizes: tuple[float, ...]
    directions: str

    @classmethod
    def of(cls, path: str, matrix: npt.NDArray[np.float64]) -> Grid:
        """Read the (3, 3) matrix whose column n is the step, x, y, z, to the next voxel along stored axis n."""
        lengths = np.linalg.norm(matrix, axis=0)
        if not (np.isfinite(matrix).all() and lengths.all()):
            raise UserError("the file states no grid of voxels", path, "it is damaged: write it again")
        steps = matrix / lengths
        if np.abs(steps.T @ steps - np.eye(3)).max() > _SKEW:
            raise UserError("the axes of the volume do not stand at right angles", path, "resample it first")
        along = [int(np.abs(row).argmax()) for row in steps]
        if sorted(along) != [0, 1, 2]:
            raise UserError("the volume lies askew, between the axes of the world", path, "give axes=, or resample it")
        letters = "".join("xyz"[along.index(n)] for n in range(3))
        signs = "".join("+" if steps[world, along[world]] > 0 else "-" for world in (2, 1, 0))
        return cls(letters, tuple(float(lengths[along[world]]) for world in (2, 1, 0)), signs)


FORMAT = Format("a NIfTI file", SUFFIXES, open_nifti)
