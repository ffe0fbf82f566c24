r"""The whole slice through a block network once: one score every ``stride`` pixels, placed where its window is.

Output i of a padded slice stands for the window that starts at ``stride * i``; padding the slice by
``anchor(window)`` pixels on the left makes that window answer pixel ``stride * i`` of the slice itself:

    slice                     |0 . . . . . . . 8 . . . . . . . 16 ...            L-1|
    padded      <spill|anchor>|0                                                 L-1|<reflected>
    windows           |--- answers 0 ---|
                              |--- answers 8 ---|

Between the answered pixels the log-odds are interpolated linearly. Nothing is stretched: a score stays on the pixel
that its window answers, and the margins come from reflecting the image, never from resizing the map.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mitoseg.errors import UserError
from mitoseg.geometry import anchor, reflect
from mitoseg.inference.protocol import BlockNetwork


def strided_log_odds(network: BlockNetwork, image_bcyx: Tensor) -> Tensor:
    """Log-odds of "mitochondrion" for every pixel of whole slices.

    Args:
        network: In eval mode, on the device of the image.
        image_bcyx: Normalised slices, float (B, C, Y, X).

    Returns:
        ``log_odds_byx`` float32 (B, Y, X): exact at every ``stride``-th pixel, linear in between.

    Raises:
        UserError: The slice is smaller than the network's window.
    """
    size_yx = image_bcyx.shape[-2:]
    if min(size_yx) < network.window:
        least = f"{network.window} x {network.window}"
        raise UserError("the slice is smaller than the network's window", tuple(size_yx), f"it takes {least} pixels")
    outputs = [math.ceil((size - 1) / network.stride) + 1 for size in size_yx]
    padded = image_bcyx
    for axis, (size, count) in enumerate(zip(size_yx, outputs, strict=True)):
        index = torch.from_numpy(_padded_index(size, count, network)).to(image_bcyx.device)
        padded = padded.index_select(axis + 2, index)
    if image_bcyx.is_contiguous(memory_format=torch.channels_last):
        padded = padded.contiguous(memory_format=torch.channels_last)
    first = math.ceil(network.spill[0] / network.stride)
    scores = network(padded)[:, :, first : first + outputs[0], first : first + outputs[1]].float()
    return _weave(scores[:, 1] - scores[:, 0], network.stride, (size_yx[0], size_yx[1]))


def _padded_index(size: int, outputs: int, network: BlockNetwork) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Pixel read at each place of the padded axis: whole strides of spill, the windows, and spill again."""
    before, after = (math.ceil(spill / network.stride) * network.stride for spill in network.spill)
    start = -anchor(network.window) - before
    length = before + network.window + network.stride * (outputs - 1) + after
    return reflect(np.arange(start, start + length), size).astype(np.int64)


def _weave(coarse_byx: Tensor, stride: int, size_yx: tuple[int, int]) -> Tensor:
    """Linear interpolation between scores that lie on pixels 0, stride, 2 stride, ..., cut to the slice."""
    full = [stride * (n - 1) + 1 for n in coarse_byx.shape[1:]]
    fine = functional.interpolate(coarse_byx[:, None], size=full, mode="bilinear", align_corners=True)
    return fine[:, 0, : size_yx[0], : size_yx[1]]
