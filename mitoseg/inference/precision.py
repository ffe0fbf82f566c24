"""With how many digits a network computes, and whether it is compiled.

``auto`` takes bfloat16 where two things hold: the checkpoint says that it costs less than `LIMIT` of the foreground
JAC on the validation slabs, and the device computes with it natively. Otherwise float32.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mitoseg.errors import UserError

PRECISIONS = ("fp32", "bf16")
LIMIT = 0.001
"""Foreground JAC on validation that bfloat16 may cost."""
CPU_COMPILE_OPERATIONS = 2.5e13
"""Work from which compiling on a CPU pays: it takes ten seconds or so and saves a tenth to a fifth."""
CUDA_COMPILE_OPERATIONS = 1e16
"""The same on a GPU."""


def choose_precision(name: str, device: torch.device, record: Mapping[str, Any], *, able: bool | None = None) -> str:
    """One of `PRECISIONS`.

    Args:
        name: ``auto``, ``fp32`` or ``bf16``.
        device: Where the network computes.
        record: What the checkpoint says of itself: ``{"precision": {"bf16": {"jaccard_drop": 0.0002}}}``.
        able: Whether the device computes with bfloat16 natively; None: it is one of this machine, which is asked.

    Raises:
        UserError: No such precision, or bfloat16 on a device without it.
    """
    if name not in ("auto", *PRECISIONS):
        raise UserError("no such precision", name, f"choose one of auto, {', '.join(PRECISIONS)}")
    if device.type == "mps":
        if name == "bf16":
            raise UserError("no bfloat16 on this accelerator", device.type, "use precision=fp32")
        return "fp32"
    if name != "auto":
        return name
    try:
        drop = float(record["precision"]["bf16"]["jaccard_drop"])
    except (KeyError, TypeError, ValueError):  # not measured
        return "fp32"
    return "bf16" if drop < LIMIT and (has_bf16(device) if able is None else able) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # no public name
    return any(bool(getattr(torch.cpu, test, bool)()) for test in tests)


def computing(precision: str, device: torch.device, *, compiled: bool = False) -> AbstractContextManager[Any]:
    """A context in which convolutions compute with a precision.

    In float32 they answer the same to the last bit for a tile as for the whole, on a CPU unless compiled; and float32
    means float32 on a GPU too.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    if device.type == "cpu" and not compiled and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return SameConvolution()
    return contextlib.nullcontext()


class SameConvolution(TorchFunctionMode):
    """Has oneDNN compute every convolution, whatever the size of the image.

    Torch itself takes another way for small images, which sums in another order: a tile would differ from the whole
    slice in the last digit.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Torch's own signature."""
        if func in (torch.conv2d, torch.conv3d) and not kwargs and args[0].dtype == torch.float32:
            return _convolve(func, *args)
        return func(*args, **(kwargs or {}))


Sizes = int | Sequence[int]


def _convolve(
    torchs_own: Callable[..., Tensor],
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with the arguments of ``torch.conv2d``, by oneDNN."""
    if isinstance(padding, str):
        return torchs_own(image, weight, bias, stride, padding, dilation, groups)
    axes = weight.ndim - 2
    sizes = [[v] * axes if isinstance(v, int) else list(v) for v in (padding, stride, dilation)]
    answer: Tensor = torch.mkldnn_convolution(image, weight, bias, *sizes, groups)  # type: ignore[call-arg, arg-type]
    return answer


def choose_compile(wish: str | bool, device: torch.device, operations: float) -> bool:
    """Whether to compile.

    Args:
        wish: ``auto``, or what the user says.
        device: Where the network computes.
        operations: Floating-point operations of the whole volume.

    Raises:
        UserError: Neither ``auto`` nor true or false, or nothing here that could compile.
    """
    wish = {"true": True, "false": False}.get(wish, wish) if isinstance(wish, str) else wish
    if isinstance(wish, bool):
        if wish and not can_compile(device):
            raise UserError("cannot compile here", device.type, "install a C++ compiler, or give compile=false")
        return wish
    if wish != "auto":
        raise UserError("compile is neither true nor false", wish, "choose auto, true or false")
    least = {"cpu": CPU_COMPILE_OPERATIONS, "cuda": CUDA_COMPILE_OPERATIONS}.get(device.type, float("inf"))
    return operations >= least and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether what torch.compile needs is installed: a C++ compiler, on a GPU Triton."""
    compiler = any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))
    if device.type == "cuda":
        from importlib.util import find_spec

        return compiler and find_spec("triton") is not None
    return compiler and device.type == "cpu"
