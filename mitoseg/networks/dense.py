r"""The dense form of a block network: the answer of a window at every position, in one pass.

A network with strides answers every S-th position only, S being the product of its strides. The dense form applies
each strided layer at every one of its s offsets along each axis; each offset makes a fragment, a smaller image that
goes on at its own low resolution, and the last fragments are woven back (Giusti et al. 2013, "Fast image scanning
with deep max-pooling convolutional neural networks", ICIP). Each value is computed once. Along one axis, for a
convolution of 3 and a pool of 2 with stride 2, window 4:

    image       0   1   2   3   4   5   6   7       n = 8
    conv 3        a   b   c   d   e   f             6 values
    pool 2,     ( a   b )( c   d )( e   f )         offset 0: outputs 0, 2, 4
    stride 2        ( b   c )( d   e )              offset 1: outputs 1, 3
    output        0   1   2   3   4                 n - field + 1 = 5

*Sizes.* Let layer j reach over K_j positions (kernel and dilation) with stride s_j, let S_j be the product of the
strides up to it, and R_j the field of the layers after it: 1 at the end, R_{j-1} = K_j + s_j (R_j - 1), and R_0 is the
field of the network. For O outputs, a multiple of S, the image must have O + R_0 - 1 positions. A fragment after layer
j then has O/S_j + R_j - 1: offset a < s_j leaves, of the m = O/S_{j-1} + R_{j-1} - 1 positions before,

    floor((m - a - K_j) / s_j) + 1  =  O/S_j + R_j - 1 + floor((-1 - a) / s_j) + 1

where the floor is -1 for each a. So fragments are equal in size whether or not kernels and strides divide, also where
a stride exceeds its kernel. Where O is no multiple of S, the image is extended at the end by less than S positions,
and the outputs that see them are cut off.

*What equals what.* All padding is left out: an output is that of its field alone.

    no padding inside (ContextCNN):   dense[i] = network(image[i : i + field])

    padding inside (PatchCNN):        dense[i] = network(image[r:])[k]   with i + padding = k S + r,  0 <= r < S,
                                                 wherever the field lies inside image[r:]

        image   0 |-------------------------------------------------------------|
        field            i |<------------------ field ------------------>|
        block              |<- padding ->| r + k S

The zeros at an image's border that the padded network would see never enter: who wants answers there pads the image
first, by reflection say. A part of an image answers what the whole does: to rounding, and in float32 on a CPU to the
last bit where every convolution is computed in one way (torch may take another for small images).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mitoseg.errors import UserError
from mitoseg.networks.segments import MODAL, Axes, Layer, Segment, read_layers


def _cut(layers: list[Layer]) -> list[Segment]:
    """Segments that start at the first layer and at every strided one."""
    starts = [i for i, layer in enumerate(layers) if i == 0 or max(layer.stride) > 1]
    return [Segment(layers[a:b]) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]


class DenseForm(nn.Module):
    """A block network that answers at every position.

    The given network is a part of this module, not a copy: parameters, buffers, device and mode (train or eval) are
    shared, so later training is seen, and ``dense.eval()`` also puts the network in eval mode.

    Args:
        network: An ``nn.Sequential`` (others may be nested in it), or a module that does no more than to apply its
            attribute ``layers``, an ``nn.Sequential``. It may hold convolutions and max or average pools, 2D or 3D,
            activations, dropout, BatchNorm with running statistics, and a softmax over channels.
        depth_first: Follow each fragment to its end before the next (least memory; fastest on a CPU), or stack the
            fragments along the batch (fewer, larger operations; fastest on a GPU). None: the first on a CPU.

    Attributes:
        ndim: Axes of the network, 2 or 3.
        in_channels: Channels of the image.
        field: Positions of the image that one output depends on, per axis.
        stride: Of the original network, per axis.
        padding: How far the field of output i starts before stride * i in the original network, per axis.

    Raises:
        UserError: A layer has no dense form.

    >>> from mitoseg.networks import PatchCNN
    >>> dense = DenseForm(PatchCNN(in_channels=1)).eval()
    >>> dense.field, dense.stride, dense.padding
    ((67, 67), (8, 8), (14, 14))
    >>> dense(torch.zeros(1, 1, 70, 80)).shape
    torch.Size([1, 2, 4, 14])
    """

    def __init__(self, network: nn.Module, *, depth_first: bool | None = None) -> None:
        super().__init__()
        chain = network if isinstance(network, nn.Sequential) else getattr(network, "layers", None)
        if not isinstance(chain, nn.Sequential):
            raise UserError(
                "only a chain of layers has a dense form",
                type(network).__name__,
                "give an nn.Sequential, or a module whose attribute layers is one",
            )
        self.network = network
        self.depth_first = depth_first
        self.training = network.training
        layers = read_layers(chain)
        self.ndim = len(layers[0].kernel)
        self.in_channels: int = next(m.module.in_channels for m in layers if hasattr(m.module, "in_channels"))
        field, stride, padding = [1] * self.ndim, [1] * self.ndim, [0] * self.ndim
        for layer in layers:
            for axis in range(self.ndim):
                field[axis] += (layer.kernel[axis] - 1) * stride[axis]
                padding[axis] += layer.padding[axis] * stride[axis]
                stride[axis] *= layer.stride[axis]
        self.field, self.stride, self.padding = tuple(field), tuple(stride), tuple(padding)
        self._segments = _cut(layers)

    def forward(self, image: Tensor) -> Tensor:
        """The original's answer at every position.

        Args:
            image: (B, in_channels, [Z,] Y, X), each axis at least `field`; in channels-last format or not.

        Returns:
            (B, classes, [Z,] Y, X), each axis ``n - field + 1``, in the same memory format.

        Raises:
            UserError: The image does not fit, or a layer such as BatchNorm is in training mode.
        """
        self._check(image)
        outputs = tuple(n - f + 1 for n, f in zip(image.shape[2:], self.field, strict=True))
        extra = [-n % s for n, s in zip(outputs, self.stride, strict=True)]
        extended = functional.pad(image, [p for n in reversed(extra) for p in (0, n)]) if any(extra) else image
        depth_first = image.device.type == "cpu" if self.depth_first is None else self.depth_first
        if depth_first and math.prod(self.stride) > 1:
            return self._depth_first(extended, outputs)
        return self._breadth_first(extended, outputs)

    def compile_segments(self) -> None:
        """Compile each run of layers between strides with ``torch.compile``, in place.

        The first image takes some seconds. Meant for images of one shape: torch compiles anew for another one, and
        after eight of them runs the layers uncompiled.
        """
        for i, segment in enumerate(self._segments):
            segment.compile(f"segment_{i}")

    def _check(self, image: Tensor) -> None:
        axes = "(B, C, Z, Y, X)" if self.ndim == 3 else "(B, C, Y, X)"
        if image.ndim != self.ndim + 2:
            raise UserError("wrong number of axes", tuple(image.shape), f"give an image of axes {axes}")
        if image.shape[1] != self.in_channels:
            raise UserError("wrong number of channels", image.shape[1], f"the network takes {self.in_channels}")
        if any(n < f for n, f in zip(image.shape[2:], self.field, strict=True)):
            raise UserError(
                "the image is smaller than the network's field", tuple(image.shape[2:]), f"pad it to {self.field}"
            )
        modal = {type(m).__name__ for m in self.network.modules() if isinstance(m, MODAL) and m.training}
        if modal:
            raise UserError("the dense form is in training mode", sorted(modal), "call eval() first")

    def _leaves(self, x: Tensor, level: int = 0) -> Iterator[tuple[Axes, Tensor]]:
        """Each last fragment, with the output at which it starts."""
        if level == len(self._segments):
            yield (0,) * self.ndim, x
            return
        segment = self._segments[level]
        for offset in segment.offsets:
            for later, leaf in self._leaves(segment.one(segment.fragment(x, offset)), level + 1):
                yield tuple(a + s * b for a, s, b in zip(offset, segment.stride, later, strict=True)), leaf

    def _depth_first(self, image: Tensor, outputs: Axes) -> Tensor:
        out: Tensor | None = None
        for start, leaf in self._leaves(image):
            if out is None:  # only now are the classes and, under autocast, the type known
                shape = (*leaf.shape[:2], *outputs)
                out = torch.empty(shape, dtype=leaf.dtype, device=leaf.device, memory_format=_format(image, leaf))
            part = _every(out, start, self.stride)
            part.copy_(_crop(leaf, part.shape[2:]))
        assert out is not None
        return out

    def _breadth_first(self, image: Tensor, outputs: Axes) -> Tensor:
        x = image
        for segment in self._segments:
            x = segment.every(x)
        # Now the batch axis is (last segment's offsets, ..., first segment's offsets, B).
        levels, d = len(self._segments), self.ndim
        offsets = [s for segment in reversed(self._segments) for s in segment.stride]
        batch = levels * d
        order = [batch, batch + 1]
        for axis in range(d):
            order += [batch + 2 + axis, *(level * d + axis for level in range(levels))]
        whole = [n * s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        split = x.reshape(*offsets, image.shape[0], *x.shape[1:])
        woven = split.permute(order).reshape(image.shape[0], x.shape[1], *whole)
        return _crop(woven, outputs).contiguous(memory_format=_format(image, x))


def _every(x: Tensor, start: Axes, step: Axes) -> Tensor:
    """The view of every step-th position from a start on, in the last axes."""
    for axis, (a, s) in enumerate(zip(start, step, strict=True), 2):
        x = x[(slice(None),) * axis + (slice(a, None, s),)]
    return x


def _crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The view of the first positions of the last axes."""
    for axis, n in enumerate(shape, 2):
        x = x.narrow(axis, 0, n)
    return x


def _format(*tensors: Tensor) -> torch.memory_format:
    """Channels-last if one of the tensors is beyond doubt (one with a single channel may be both)."""
    last = torch.channels_last if tensors[0].ndim == 4 else torch.channels_last_3d
    found = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in tensors)
    return last if found else torch.contiguous_format
