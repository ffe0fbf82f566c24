"""The sides of the comparison in `inference.py`: one network's windows, strided pass and dense form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import TYPES, Sample, Side, Turns, count_work, product, take_turns
from torch import Tensor, nn

from mitoseg.geometry import Box
from mitoseg.inference import Options, make_method
from mitoseg.inference.precision import can_compile, computing, has_bf16
from mitoseg.inference.views import assemble, read_grey
from mitoseg.networks import DenseForm
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import Normalization, Volume

CUDA_SLICES = 8
"""Slices that go through a network together on a GPU, as in `predict`."""
BATCHES = {"cpu": (512, 1024, 2048), "cuda": (512, 1024, 2048, 4096)}
"""Windows that go through a network together; the fastest counts."""


@dataclass(frozen=True)
class Setting:
    """A way to compute."""

    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        """Such as ``bf16_compiled``."""
        return f"{self.precision}_{'compiled' if self.compiled else 'eager'}"


SETTINGS = {s.name: s for s in (Setting(p, compiled) for p in TYPES for compiled in (False, True))}


def possible_settings(device: torch.device) -> list[Setting]:
    """Those that a device computes natively."""
    precisions = ["fp32", *(["bf16"] if has_bf16(device) else [])]
    return [s for s in SETTINGS.values() if s.precision in precisions and (can_compile(device) or not s.compiled)]


def forget_compiled(setting: Setting) -> None:
    """Forget compiled code before more of it is made: torch gives up after eight versions of a function."""
    if setting.compiled:
        torch.compiler.reset()


class Bench:
    """One network on one device, and the slices in the middle of a volume.

    Args:
        model: The network and what it needs.
        volume: The image.
        device: Where.
        quick: With tiny batches.
    """

    def __init__(self, model: Model, volume: Volume, device: torch.device, *, quick: bool = False) -> None:
        self.model, self.volume, self.device = model, volume, device
        self.network = model.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.slices = min(CUDA_SLICES if device.type == "cuda" else 1, volume.shape[0])
        self.pixels = volume.shape[1] * volume.shape[2]
        first = (volume.shape[0] - self.slices) // 2
        self.write = Box((first, 0, 0), (first + self.slices, *volume.shape[1:]))
        self.batches = (8, 16) if quick else BATCHES[device.type]

    def image(self, kind: str) -> tuple[Any, Tensor]:
        """A method that is not compiled, and the slices as it reads them, reflected at the border."""
        method = make_method(self.network, self.volume.shape, Options(method=kind, slices=self.slices))
        grey = read_grey(self.volume, method.reads(self.write), self.model.channels, method.ndim)
        return method, assemble(grey, Normalization(**self.model.normalization), self.device, method.ndim)

    def windows(self, batch: int, layout: torch.memory_format) -> Tensor:
        """Neighbouring windows from the middle of a slice, (batch, C, w, w)."""
        w, columns = self.network.window, self.volume.shape[2]
        number = torch.arange(batch) + (self.pixels - batch) // 2
        cut = self.image("window")[1][0].unfold(1, w, 1).unfold(2, w, 1)[:, number // columns, number % columns]
        return cut.movedim(1, 0).contiguous(memory_format=layout)

    def dense(self, setting: Setting) -> Side:
        """The dense form on the reflected slices."""
        method, image = self.image("dense")
        if setting.compiled:
            method.network.compile_segments()
        return Side(partial(method.network, image), self._context(setting))

    def sides(self, setting: Setting, parts: Sequence[str]) -> dict[str, Side]:
        """What to time in a setting, by name."""
        context, network = self._context(setting), self.network
        if setting.compiled:
            network = copy.deepcopy(network)
            network.compile(dynamic=False)
        sides = {}
        if "dense" in parts:
            sides["dense"] = self.dense(setting)
        if "strided" in parts:
            method, image = self.image("strided")
            method = make_method(network, self.volume.shape, Options(method="strided", slices=self.slices))
            sides["strided"] = Side(partial(method, image, self.write), context)
        if "window" in parts:
            for batch in self.batches:
                windows = self.windows(batch, torch.channels_last)
                sides[f"window {batch}"] = Side(partial(network, windows), context)
        return sides

    def compare(self, setting: Setting, parts: Sequence[str], ceiling: dict[str, float], sample: Sample) -> Any:
        """Time all parts in one setting; the keys are those of the report.

        Args:
            setting: Of all sides.
            parts: Which.
            ceiling: Operations per second of matrix products by size, the fastest last; timed again beside the rest.
            sample: How long.
        """
        forget_compiled(setting)
        size = list(ceiling)[-1]
        matrices = {"product": product(int(size), setting.precision, self.device)}
        turns = take_turns(self.sides(setting, parts) | matrices, self.device, sample)
        highest = max(ceiling[size], 2 * int(size) ** 3 / turns.pop("product").best)
        slices = {name: self.per_slice(name, found) for name, found in turns.items()}
        windows = {name: found for name, found in slices.items() if name.startswith("window")}
        best = {name: found for name, found in slices.items() if name not in windows}
        if windows:
            best["window"] = min(windows.values(), key=lambda found: found.best)
        seconds = {name: found.best for name, found in best.items()}
        return {
            "seconds_per_slice": seconds,
            "median_seconds_per_slice": {name: found.median for name, found in best.items()},
            "window_seconds_per_slice_by_batch": {name.split()[1]: found.best for name, found in windows.items()},
            "megapixels_per_second": {name: self.pixels / 1e6 / s for name, s in seconds.items()},
            "ceiling_flops": highest,
            **self.ratios(seconds, highest),
        }

    def ratios(self, seconds: dict[str, float], ceiling: float) -> dict[str, float]:
        """Of seconds per slice; what was not timed is left out."""
        work, found = self.count_operations(), {}
        if dense := seconds.get("dense"):
            found["dense_fraction_of_ceiling"] = work["dense"] / dense / ceiling
            if window := seconds.get("window"):
                found["dense_over_window"] = window / dense
                found["dense_over_window_of_arithmetic"] = window / dense / work["window_over_dense"]
            if strided := seconds.get("strided"):
                found["strided_over_dense"] = dense / strided
        return found

    def compare_with_default(self, setting: Setting, sample: Sample) -> dict[str, Any]:
        """The dense form in a setting against eager float32 windows in torch's own ways, contiguous by default."""
        forget_compiled(setting)
        sides = {"dense": self.dense(setting)}
        for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            network = copy.deepcopy(self.network).to(memory_format=layout)  # type: ignore[call-overload]
            for batch in self.batches:
                sides[f"window {batch} {name}"] = Side(partial(network, self.windows(batch, layout)))
        turns = take_turns(sides, self.device, sample)
        seconds = {name: self.per_slice(name, found).best for name, found in turns.items()}
        best = {k: min(s for n, s in seconds.items() if n.endswith(k)) for k in ("contiguous", "channels_last")}
        return {
            "setting": setting.name,
            "seconds_per_slice": {"dense": seconds["dense"]} | {f"window_{k}": s for k, s in best.items()},
            "dense_over_window_fp32": best["contiguous"] / seconds["dense"],
            "dense_over_window_fp32_channels_last": best["channels_last"] / seconds["dense"],
        }

    def time_dense(self, setting: Setting, sample: Sample) -> Turns:
        """Seconds per slice of the dense form alone."""
        forget_compiled(setting)
        return self.per_slice("dense", take_turns({"dense": self.dense(setting)}, self.device, sample)["dense"])

    def per_slice(self, name: str, turns: Turns) -> Turns:
        """Seconds per slice from seconds per call."""
        calls = self.pixels / int(name.split()[1]) if name.startswith("window") else 1 / self.slices
        return Turns(seconds * calls for seconds in turns)

    def count_operations(self) -> dict[str, float]:
        """Floating-point operations for a slice.

        ``dense`` is the whole pass with its halo. ``window_over_dense`` is the ratio of their arithmetic alone, each
        weight once for each answer: about 85 for patch_cnn and 224 for context_cnn.
        """
        window = (1, self.network.in_channels, self.network.window, self.network.window)
        found = {"window": self.pixels * self._work(nn.Module.__call__, window)["operations"]}
        for kind in ("strided", "dense"):
            shape = self.image(kind)[1][:1].shape
            form = nn.Module.__call__ if kind == "strided" else lambda network, x: DenseForm(network)(x)
            found[kind] = self._work(form, shape)["operations"]
        alone = self.pixels * 2 * sum(p.numel() for p in self.network.parameters() if p.ndim > 1)
        return found | {"dense_without_halo": alone, "window_over_dense": found["window"] / alone}

    def count_bytes(self, precision: str) -> float:
        """Bytes that the dense form's layers read and write for a slice, without compilation."""
        shape = self.image("dense")[1][:1].shape
        return self._work(lambda network, x: DenseForm(network)(x), shape, TYPES[precision])["bytes"]

    def _work(self, form: Callable[..., object], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Any:
        network = copy.deepcopy(self.network).to(device="meta", dtype=dtype)
        return count_work(partial(form, network, torch.empty(shape, device="meta", dtype=dtype)))

    def _context(self, setting: Setting) -> Callable[[], Any]:
        return partial(computing, setting.precision, self.device, compiled=setting.compiled)
