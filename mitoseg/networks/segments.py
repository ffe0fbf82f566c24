"""A block network read layer by layer: how far each one reaches, and the runs of layers between strided ones.

What a layer may be, and why others are refused, is written here once; `mitoseg.networks.dense` puts the runs together.
A layer is run on the given module's own parameters, read at each call, with its padding left out.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from mitoseg.errors import UserError

Axes = tuple[int, ...]

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BATCH_NORM = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MODAL = (*DROPOUT, *BATCH_NORM, nn.RReLU)
"""Layers whose answer in training differs from that in eval mode."""

_CONVOLUTION = (nn.Conv2d, nn.Conv3d)
_MAXIMUM = (nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE = (nn.AvgPool2d, nn.AvgPool3d)
_THREE_D = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.BatchNorm3d)
_SOFTMAX = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus, nn.Softsign),
    *(nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.Softmax2d, nn.LocalResponseNorm),
)
_REFUSED: tuple[tuple[tuple[type[nn.Module], ...], str, str], ...] = (
    (
        (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        "a layer that normalises over space has no dense form: its answer depends on the whole image",
        "use BatchNorm",
    ),
    (
        (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        "a layer that pools the whole image has no dense form",
        "pool with a kernel of the size of what is left of a window",
    ),
    (
        (nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Upsample, nn.PixelShuffle, nn.MaxUnpool2d, nn.MaxUnpool3d),
        "a layer that enlarges its image has no dense form",
        "use a network of convolutions and pools that answers one pixel per window",
    ),
    (
        (nn.Flatten, nn.Unflatten, nn.Linear),
        "a fully connected layer has no dense form",
        "write it as a convolution with kernel 1 or of the size of what is left of a window",
    ),
)


@dataclass(frozen=True)
class Layer:
    """A layer as it stands in the dense form.

    Attributes:
        module: The given layer, shared.
        kernel: Positions from the first to the last that one output depends on, per axis.
        stride: Positions between neighbouring outputs.
        padding: Positions added before the first by the original.
    """

    module: Any
    kernel: Axes
    stride: Axes
    padding: Axes

    def __call__(self, x: Tensor) -> Tensor:
        """The layer without its padding."""
        answer: Tensor = self.module(x)
        return answer


class _OnCopy(Layer):
    """A layer that would change its argument where that is not ours to change."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.clone())


class _InPlaceReLU(Layer):
    """A ReLU on what a convolution or a pool has just made."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu_()


class _Convolution(Layer):
    def __call__(self, x: Tensor) -> Tensor:
        m, convolve = self.module, functional.conv2d if len(self.kernel) == 2 else functional.conv3d
        return convolve(x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


class _Maximum(Layer):
    def __call__(self, x: Tensor) -> Tensor:
        m, pool = self.module, functional.max_pool2d if len(self.kernel) == 2 else functional.max_pool3d
        answer: Tensor = pool(x, m.kernel_size, m.stride, 0, m.dilation)
        return answer


class _Average(Layer):
    def __call__(self, x: Tensor) -> Tensor:
        m, pool = self.module, functional.avg_pool2d if len(self.kernel) == 2 else functional.avg_pool3d
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
    """2 or 3, on which all layers that have a say agree."""
    told = (*_CONVOLUTION, *_MAXIMUM, *_AVERAGE, nn.BatchNorm2d, nn.BatchNorm3d, nn.Softmax2d)
    kinds = {name: 3 if isinstance(m, _THREE_D) else 2 for name, m in modules if isinstance(m, told)}
    if len(set(kinds.values())) > 1:
        raise UserError("a network with both 2D and 3D layers has no dense form", list(kinds), "use one kind")
    if not any(isinstance(m, _CONVOLUTION) for _, m in modules):
        raise UserError("a network without a convolution has no dense form", [n for n, _ in modules], "add Conv2d")
    return next(iter(kinds.values()))


def _check(name: str, module: nn.Module) -> None:
    """Refuse a layer whose answer at a position is not one of its neighbourhood alone, or that is not known."""
    for kinds, what, remedy in _REFUSED:
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


def _axes(value: int | Sequence[int], ndim: int) -> Axes:
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _spatial(module: nn.Module, ndim: int) -> Layer:
    """A convolution or a pool."""
    m: Any = module
    taps, dilation = _axes(m.kernel_size, ndim), _axes(getattr(m, "dilation", 1), ndim)
    kernel = tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True))
    padding = m.padding
    if isinstance(padding, str):  # torch pads an odd total by one more at the end
        padding = tuple((k - 1) // 2 if padding == "same" else 0 for k in kernel)
    kind = _Convolution if isinstance(m, _CONVOLUTION) else _Maximum if isinstance(m, _MAXIMUM) else _Average
    return kind(m, kernel, _axes(m.stride, ndim), _axes(padding, ndim))


def read_layers(chain: nn.Sequential) -> list[Layer]:
    """The layers of a Sequential, without those that do nothing in eval mode.

    Raises:
        UserError: A layer has no dense form, 2D and 3D are mixed, or there is no convolution.
    """
    modules = list(_leaves(chain, ""))
    for name, module in modules:
        _check(name, module)
    ndim = _dimensions(modules)
    one, zero = (1,) * ndim, (0,) * ndim
    layers: list[Layer] = []
    ours = False  # whether a convolution or a pool has made a tensor that is ours to change
    for _, module in modules:
        if isinstance(module, (nn.Identity, *DROPOUT)):
            continue
        if isinstance(module, (*_CONVOLUTION, *_MAXIMUM, *_AVERAGE)):
            layers.append(_spatial(module, ndim))
            ours = True
            continue
        kind = Layer if ours or not getattr(module, "inplace", False) else _OnCopy
        if isinstance(module, nn.ReLU) and layers and isinstance(layers[-1], (_Convolution, _Maximum, _Average)):
            kind = _InPlaceReLU
        layers.append(kind(module, one, one, zero))
    return layers


class Segment:
    """A run of layers of which only the first may have a stride: it is applied at every offset below its stride.

    Attributes:
        layers: In order.
        stride: Of the first layer, per axis.
        offsets: Where the fragments start, their number being the product of `stride`.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.stride = layers[0].stride
        self.offsets = tuple(itertools.product(*map(range, self.stride)))
        self._run = _run

    def fragment(self, x: Tensor, offset: Axes) -> Tensor:
        """A view of x from the offset on; all fragments have the same shape."""
        for axis, (start, stride) in enumerate(zip(offset, self.stride, strict=True), 2):
            x = x.narrow(axis, start, x.shape[axis] - stride + 1)
        return x

    def one(self, fragment: Tensor) -> Tensor:
        """The answers for one fragment."""
        return self._run(self.layers, [fragment])

    def every(self, x: Tensor) -> Tensor:
        """The answers for all fragments, one after the other along the batch axis."""
        return self._run(self.layers, [self.fragment(x, offset) for offset in self.offsets])

    def compile(self, name: str) -> None:
        """Compile the run in place.

        Torch counts the compilations of a code object and gives up after eight, so each segment has its own.
        """
        code = _run.__code__.replace(co_name=name)
        self._run = torch.compile(types.FunctionType(code, _run.__globals__, name), dynamic=False)


def _run(layers: Sequence[Layer], fragments: Sequence[Tensor]) -> Tensor:
    parts = [layers[0](fragment) for fragment in fragments]
    x = torch.cat(parts) if len(parts) > 1 else parts[0]
    for layer in layers[1:]:
        x = layer(x)
    return x
