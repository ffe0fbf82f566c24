r"""The dense form of a block network: the output of a window at every position, in one pass.

A network with strides has an output at every S-th position only, S being the product of its strides. The dense form
applies each strided layer at every one of its s offsets along each axis; each offset makes a fragment, a smaller image
that goes on at its own low resolution, and the last fragments are woven back (Giusti et al. 2013, "Fast image scanning
with deep max-pooling convolutional neural networks", ICIP). Each value is computed once. Along one axis, for a
convolution of 3 and a pool of 2 with stride 2, window 4:

    image       0   1   2   3   4   5   6   7       n = 8
    conv 3        a   b   c   d   e   f             6 values
    pool 2,     ( a   b )( c   d )( e   f )         offset 0: outputs 0, 2, 4
    stride 2        ( b   c )( d   e )              offset 1: outputs 1, 3
    output        0   1   2   3   4                 n - field + 1 = 5

For O outputs, a multiple of S, and a field of R, the image must have O + R - 1 positions; then the fragments of every
offset have one size, whether or not kernels and strides divide. If O is not a multiple of S, the image is extended at
the end by less than S positions, and the outputs that see them are cut off.

All padding is left out: an output is that of its field alone.

    no padding inside (ContextCNN):   dense[i] = network(image[i : i + field])

    padding inside (PatchCNN):        dense[i] = network(image[r:])[k]   with i + padding = k S + r,  0 <= r < S,
                                                 wherever the field lies inside image[r:]

A part of an image gives the outputs of the whole: to rounding, and in float32 on a CPU to the last bit where every
convolution is computed in one way (torch may take another for small images).
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from mitoseg.errors import UserError
from mitoseg.networks.kinds import per_axis


class DenseForm(nn.Module):
    """A block network with an output at every position.

    The given network is a part of this module, not a copy: parameters, buffers, device and mode are shared. It is an
    ``nn.Sequential`` (others may be nested in it), or a module that only applies one, its attribute ``layers``, of
    convolutions and max or average pools, 2D or 3D, activations, dropout, BatchNorm with running statistics, and a
    softmax over channels. ``depth_first`` follows each fragment to its end before the next (least memory; fastest on a
    CPU, where it is the default), else fragments are stacked along the batch (fewer, larger operations).

    Attributes, the last three per axis: ``ndim``, 2 or 3; ``field``, positions of the image that one output depends
    on; ``stride`` of the original network; ``padding``, how far the field of output i starts before stride * i in it.

    Raises:
        UserError: A layer has no dense form; or, in use, the image does not fit, or a layer is in training mode.

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
            remedy = "give an nn.Sequential, or a module whose attribute layers is one"
            raise UserError("only a chain of layers has a dense form", type(network).__name__, remedy)
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
        starts = [i for i, layer in enumerate(layers) if i == 0 or max(layer.stride) > 1]
        self._segments = [Segment(layers[a:b]) for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]

    def forward(self, image: Tensor) -> Tensor:
        """The original's output at every position.

        An image (B, in_channels, [Z,] Y, X) of sides n gives (B, classes, [Z,] Y, X) of sides ``n - field + 1``, in
        the same memory format.
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
        """Compile each run of layers between strides in place, for images of one shape.

        Torch compiles anew for another shape, and after eight of them runs the layers uncompiled.
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
            what = "the image is smaller than the network's field"
            raise UserError(what, tuple(image.shape[2:]), f"pad it to {self.field}")
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
            for later, leaf in self._leaves(segment.one(x, offset), level + 1):
                yield tuple(a + s * b for a, s, b in zip(offset, segment.stride, later, strict=True)), leaf

    def _depth_first(self, image: Tensor, outputs: Axes) -> Tensor:
        out: Tensor | None = None
        for start, leaf in self._leaves(image):
            if out is None:  # only now are the classes and, under autocast, the type known
                shape = (*leaf.shape[:2], *outputs)
                out = torch.empty(shape, dtype=leaf.dtype, device=leaf.device, memory_format=_format(image, leaf))
            index: tuple[Any, ...] = (..., *(slice(a, None, s) for a, s in zip(start, self.stride, strict=True)))
            part = out[index]
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


def _crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The view of the first positions of the last axes."""
    index: tuple[Any, ...] = (..., *map(slice, shape))
    return x[index]


def _format(*tensors: Tensor) -> torch.memory_format:
    """Channels-last if one of the tensors is beyond doubt (one with a single channel may be both)."""
    last = torch.channels_last if tensors[0].ndim == 4 else torch.channels_last_3d
    found = any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in tensors)
    return last if found else torch.contiguous_format


Axes = tuple[int, ...]
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORM = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MODAL = (*DROPOUT, *BATCH_NORM, nn.RReLU)  # layers whose output in training differs from that in eval mode
_CONVOLUTION = (nn.Conv2d, nn.Conv3d)
_MAXIMUM = (nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE = (nn.AvgPool2d, nn.AvgPool3d)
_SOFTMAX = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus, nn.Softsign),
    *(nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.Softmax2d, nn.LocalResponseNorm),
)
_REFUSED: dict[tuple[type[nn.Module], ...], tuple[str, str]] = {
    (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d): (
        "a layer that normalises over space has no dense form: its output depends on the whole image",
        "use BatchNorm",
    ),
    (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d): (
        "a layer that pools the whole image has no dense form",
        "pool with a kernel of the size of what is left of a window",
    ),
    (nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Upsample, nn.PixelShuffle, nn.MaxUnpool2d, nn.MaxUnpool3d): (
        "a layer that enlarges its image has no dense form",
        "use a network of convolutions and pools that scores one pixel per window",
    ),
    (nn.Flatten, nn.Unflatten, nn.Linear): (
        "a fully connected layer has no dense form",
        "write it as a convolution with kernel 1 or of the size of what is left of a window",
    ),
}


@dataclass(frozen=True)
class Layer:
    """A given layer, and how to run it without its padding."""

    module: Any
    run: Callable[[Any, Tensor], Tensor]
    kernel: Axes  # positions from the first to the last that one output depends on
    stride: Axes
    padding: Axes  # positions that the original adds before the first


def _run_itself(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # no lambda: networks can be pickled
    return module(x)


def _run_on_copy(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return module(x.clone())


def _relu_in_place(_: nn.Module, x: Tensor) -> Tensor:
    return x.relu_()


def _convolve(m: Any, x: Tensor) -> Tensor:  # noqa: ANN401 (2D or 3D)
    convolve = functional.conv2d if x.ndim == 4 else functional.conv3d
    return convolve(x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def _take_maximum(m: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    pool = functional.max_pool2d if x.ndim == 4 else functional.max_pool3d
    answer: Tensor = pool(x, m.kernel_size, m.stride, 0, m.dilation)
    return answer


def _average(m: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    return pool(x, m.kernel_size, m.stride, 0, False, True, m.divisor_override)


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested Sequentials in order, each with a name for messages."""
    for key, child in module._modules.items():  # named_children leaves out a layer's second use
        if child is None:
            continue
        path = f"{name}.{key}" if name else key
        if child._forward_hooks or child._forward_pre_hooks:
            raise UserError("a layer with hooks has no dense form", path, "remove the hooks, which would not be run")
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            yield from _leaves(child, path)
        else:
            yield f"{path} ({type_before_parametrizations(child).__name__})", child


def _dimensions(modules: Sequence[tuple[str, nn.Module]]) -> int:
    """2 or 3, the axes of the layers, which must agree."""
    telling = (*_CONVOLUTION, *_MAXIMUM, *_AVERAGE, nn.BatchNorm2d, nn.BatchNorm3d, nn.Softmax2d)
    deep = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.BatchNorm3d)
    kinds = {name: 3 if isinstance(m, deep) else 2 for name, m in modules if isinstance(m, telling)}
    if len(set(kinds.values())) > 1:
        raise UserError("a network with both 2D and 3D layers has no dense form", list(kinds), "use one kind")
    if not any(isinstance(m, _CONVOLUTION) for _, m in modules):
        raise UserError("a network without a convolution has no dense form", [n for n, _ in modules], "add Conv2d")
    return next(iter(kinds.values()))


def _check(name: str, module: nn.Module) -> None:
    """Refuse a layer that is not known, or whose output depends on more than a neighbourhood."""
    for kinds, (what, remedy) in _REFUSED.items():
        if isinstance(module, kinds):
            raise UserError(what, name, remedy)
    kind = type_before_parametrizations(module)
    if kind not in (*_CONVOLUTION, *_MAXIMUM, *_AVERAGE, *MODAL, *_POINTWISE, *_SOFTMAX, nn.Identity):
        raise UserError("a layer without a dense form", name, "use convolutions, pools, activations and BatchNorm")
    if kind in _SOFTMAX and getattr(module, "dim", None) != 1:
        raise UserError("a softmax over space has no dense form", name, "give it dim=1, the channels")
    if kind in BATCH_NORM and getattr(module, "running_mean", None) is None:
        raise UserError("a BatchNorm without statistics has no dense form", name, "use track_running_stats=True")
    if getattr(module, "return_indices", False):
        raise UserError("a pool that returns indices has no dense form", name, "use return_indices=False")


def _spatial(m: Any, ndim: int) -> Layer:  # noqa: ANN401 (a convolution or a pool, 2D or 3D)
    taps, dilation = per_axis(m.kernel_size, ndim), per_axis(getattr(m, "dilation", 1), ndim)
    kernel = tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True))
    padding = m.padding
    if isinstance(padding, str):  # torch pads an odd total by one more at the end
        padding = tuple((k - 1) // 2 if padding == "same" else 0 for k in kernel)
    run = next(run for kinds, run in _SPATIAL.items() if isinstance(m, kinds))
    return Layer(m, run, kernel, per_axis(m.stride, ndim), per_axis(padding, ndim))


_SPATIAL = {_CONVOLUTION: _convolve, _MAXIMUM: _take_maximum, _AVERAGE: _average}


def read_layers(chain: nn.Sequential) -> list[Layer]:
    """The layers of a Sequential, without those that do nothing in eval mode."""
    modules = list(_leaves(chain, ""))
    for name, module in modules:
        _check(name, module)
    ndim = _dimensions(modules)
    layers: list[Layer] = []
    ours = False  # whether a convolution or a pool has made a tensor that may be changed in place
    for _, module in modules:
        if isinstance(module, (nn.Identity, *DROPOUT)):
            continue
        if isinstance(module, (*_CONVOLUTION, *_MAXIMUM, *_AVERAGE)):
            layers.append(_spatial(module, ndim))
            ours = True
            continue
        run: Callable[[Any, Tensor], Tensor] = _run_itself
        if isinstance(module, nn.ReLU) and layers and layers[-1].run in _SPATIAL.values():
            run = _relu_in_place
        elif not ours and getattr(module, "inplace", False):
            run = _run_on_copy
        layers.append(Layer(module, run, (1,) * ndim, (1,) * ndim, (0,) * ndim))
    return layers


class Segment:
    """A run of layers of which only the first may have a stride: it is applied at every offset below its stride."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.stride = layers[0].stride
        self.offsets = tuple(itertools.product(*map(range, self.stride)))
        self._run = _run

    def _fragment(self, x: Tensor, offset: Axes) -> Tensor:
        """A view of x from the offset on; all fragments have the same shape."""
        for axis, (start, stride) in enumerate(zip(offset, self.stride, strict=True), 2):
            x = x.narrow(axis, start, x.shape[axis] - stride + 1)
        return x

    def one(self, x: Tensor, offset: Axes) -> Tensor:
        """The outputs for the fragment at one offset."""
        return self._run(self.layers, [self._fragment(x, offset)])

    def every(self, x: Tensor) -> Tensor:
        """The outputs for all fragments, one after the other along the batch axis."""
        return self._run(self.layers, [self._fragment(x, offset) for offset in self.offsets])

    def compile(self, name: str) -> None:
        """Compile the run in place.

        Torch counts the compilations of a code object and gives up after eight, so each segment has its own.
        """
        code = _run.__code__.replace(co_name=name)
        self._run = torch.compile(types.FunctionType(code, _run.__globals__, name), dynamic=False)


def _run(layers: Sequence[Layer], fragments: Sequence[Tensor]) -> Tensor:
    parts = [layers[0].run(layers[0].module, fragment) for fragment in fragments]
    x = torch.cat(parts) if len(parts) > 1 else parts[0]
    for layer in layers[1:]:
        x = layer.run(layer.module, x)
    return x
