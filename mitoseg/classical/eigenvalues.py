"""Eigenvalues of many symmetric 3x3 matrices at once, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def symmetric_eigenvalues(matrix: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Eigenvalues of symmetric 3x3 matrices, one matrix a voxel.

    With q = tr(A) / 3, p^2 = tr((A - q I)^2) / 6 and r = det((A - q I) / p) / 2 they are

        q + 2 p cos(phi),  q + 2 p cos(phi + 2 pi / 3),  and 3 q less both,   phi = arccos(r) / 3

    (Smith, Communications of the ACM 4, 1961). In float32 the error is about 1e-3 p where two of them meet.

    Args:
        matrix: The six arrays aa, bb, cc, ab, ac, bc, of one shape.

    Returns:
        Three arrays of that shape, the largest first.

    Example:
        >>> one = np.ones(1, np.float32)
        >>> [round(float(e[0]), 3) for e in symmetric_eigenvalues([2 * one, 3 * one, one, one, 0 * one, 0 * one])]
        [3.618, 1.382, 1.0]
    """
    aa, bb, cc, ab, ac, bc = matrix
    q = (aa + bb + cc) * np.float32(1 / 3)
    a, b, c = aa - q, bb - q, cc - q
    off = ab * ab + ac * ac + bc * bc
    p = np.sqrt((a * a + b * b + c * c + off + off) * np.float32(1 / 6))
    # det(A - q I) / (2 p^3), in steps that neither overflow nor divide by zero
    determinant = a * (b * c - bc * bc) - ab * (ab * c - bc * ac) + ac * (ab * bc - b * ac)
    cube = np.maximum(p * p * p, np.finfo(np.float32).tiny)
    r = np.clip(determinant / (cube + cube), -1, 1)
    phi = np.arccos(r, out=r)
    phi *= np.float32(1 / 3)
    p += p
    largest = q + p * np.cos(phi)
    smallest = q + p * np.cos(phi + np.float32(2 * np.pi / 3))
    middle = 3 * q - largest - smallest
    return largest, middle, smallest
