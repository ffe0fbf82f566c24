r"""Training tiles from many domains at random pixel sizes.

    domain (equally often)  ->  slice of it (uniform)  ->  pixel size (log-uniform)  ->  window  ->  tile

Slices are those along z and, half as often each, along y and x of volumes with cubic voxels. Windows lie anywhere
in the slice; a share of them is drawn to contain a mitochondrion. Beyond the edge of the slice the image is reflected
and has no labels. The window is resampled to the tile (bilinear, antialiased; labels nearest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mitoseg.datasets.base import IGNORE, Recipe, Region
from mitoseg.errors import UserError
from mitoseg.geometry import reflect
from mitoseg.sampling.augmentation import TILE_SYMMETRIES, TileSymmetry
from mitoseg.sampling.datamodule import TileDataModule
from mitoseg.sampling.draws import Draws
from mitoseg.sampling.positions import Index, check_positive

Random = np.random.Generator

_DEEP = 64
"""The least number of slices of a volume that is cut along y and x, too."""
_LISTED = 4096
"""The largest number of mitochondrion voxels kept per slice, evenly subsampled, to draw windows around."""


class DomainDataModule(TileDataModule):
    """Training tiles from many domains, and validation slices with the name of their domain.

    ``recipe`` makes regions that have a domain, see `mitoseg.datasets.Domains`. Tiles have pixels of ``pixel_size`` nm
    times a random factor from the range ``jitter``. ``window`` is set for block networks only, and refused.
    """

    description = TileDataModule.description + "\n  domains, each as often: {domains}"
    normalize = "volume"
    """How to normalise the volumes that the network predicts: each by its own mean and standard deviation."""

    def __init__(
        self,
        recipe: Callable[..., Recipe],
        *,
        tile: Sequence[int] | None,
        pixel_size: float = 8.0,
        jitter: Sequence[float] = (0.6, 1.6),
        epoch_tiles: int = 800,
        window: object = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if tile is None or window is not None or options.get("spatial_dims", 2) != 2:
            raise UserError("data=domains needs a 2D network that predicts whole tiles", None, "give network=unet2d")
        if len(jitter) != 2 or not 0 < jitter[0] <= jitter[1]:
            raise UserError("data.jitter is not a range", list(jitter), "give the least and the largest, as [0.6,1.6]")
        if options.get("channels", "single") != "single":
            raise UserError("data=domains has single slices", options["channels"], "give data.channels=single")
        check_positive("data.epoch_tiles", epoch_tiles)
        super().__init__(recipe, tile=tile, pixel_size=pixel_size, epoch_tiles=epoch_tiles, **options)
        self.pixel_size, self.jitter = float(pixel_size), (float(jitter[0]), float(jitter[1]))

    def prepare_draws(self) -> None:
        """Find the labelled slices, and read all voxels."""
        draws = DomainDraws(
            self.splits.train,
            self.tile,
            pixel_size=self.pixel_size,
            jitter=self.jitter,
            augment=self.augment,
            foreground_share=self.foreground_share,
            size=self.epoch_tiles or 1,
            seed=self.seed,
        )
        self.draws, self.bank = draws, DomainBank(self.splits.train)  # type: ignore[assignment]
        self.prior = self.batch_prior = draws.prior
        self.summary = {
            "tile": " x ".join(map(str, self.tile)),
            "augment": self.augment,
            "draws": len(draws),
            "prior": draws.prior,
            "batch_prior": draws.prior,
            "domains": ", ".join(
                f"{name} ({sum(map(len, cuts.values()))} slices)" for name, cuts in draws.slices.items()
            ),
        }

    @property
    def validation_domains(self) -> list[str]:
        """The domain of each validation region."""
        return [region.domain for region in self.splits.validation]


class DomainDraws:
    """Makes the draws of an epoch, which depend on seed and epoch alone; see the module's docstring.

    Positions have seven columns: region; the axis that is cut, and where; the first row and column of the window in
    that slice; and its height and width in voxels. A window may extend beyond the slice.

    ``slices`` lists the labelled slices of each domain by the axis that is cut: region, place, flat indices of some
    mitochondrion voxels. ``prior`` is the share of mitochondria among labelled voxels, averaged over the domains.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        tile: tuple[int, int, int],
        *,
        pixel_size: float,
        jitter: tuple[float, float],
        augment: str,
        foreground_share: float,
        size: int,
        seed: int,
    ) -> None:
        self.size, self.seed, self.jitter, self.foreground_share = size, seed, jitter, foreground_share
        self.symmetries = len(TILE_SYMMETRIES[augment])
        self.slices: dict[str, dict[int, list[tuple[int, int, Index]]]] = {}
        counts: dict[str, npt.NDArray[np.int64]] = {}
        for number, region in enumerate(regions):
            label_zyx = region.read_label()
            for axis in range(3) if _is_cubic(region) else range(1):
                for place in range(label_zyx.shape[axis]):
                    label = label_zyx.take(place, axis).ravel()
                    found = np.flatnonzero(label == 1)
                    known = np.array([np.count_nonzero(label == 0), len(found)])
                    if known.any():
                        voxels = found[:: len(found) // _LISTED + 1]
                        cut = self.slices.setdefault(region.domain, {}).setdefault(axis, [])
                        cut.append((number, place, voxels))
                        counts[region.domain] = counts.get(region.domain, np.zeros(2, np.int64)) + known
        if not counts:
            raise UserError("no training set has a labelled voxel", None, "check labels and data.sets")
        self.prior = float(
            np.mean([foreground / (background + foreground) for background, foreground in counts.values()])
        )
        if not 0 < self.prior < 1:
            raise UserError("the training sets contain only one class", None, "check labels, foreground and unknown")
        self.shape_r3 = np.array([region.box.shape for region in regions])
        voxel_r3 = np.array([region.image.voxel_size or (pixel_size,) * 3 for region in regions])
        self.window_r3 = np.array([tile[1], *tile[1:]]) * pixel_size / voxel_r3
        """Window size (z, y, x), in voxels of each region, of a tile with the nominal pixel size."""

    def __len__(self) -> int:
        return self.size

    def draw(self, epoch: int) -> Draws:
        """The draws of an epoch; the sampler shuffles them."""
        rng = np.random.default_rng([self.seed, epoch, 2])
        zoom_n = np.exp(rng.uniform(math.log(self.jitter[0]), math.log(self.jitter[1]), self.size))
        domains = list(self.slices.values())
        position_n7 = [self._window(domains[i % len(domains)], zoom, rng) for i, zoom in enumerate(zoom_n)]
        symmetry_n = rng.integers(self.symmetries, size=self.size)
        columns = {"symmetry_b": symmetry_n, "seed_b": rng.integers(2**31, size=self.size)}
        return Draws(np.array(position_n7, np.int64), columns)

    def _window(self, cuts: Mapping[int, Sequence[tuple[int, int, Index]]], zoom: float, rng: Random) -> list[int]:
        """Draw one window: a row of the positions."""
        axis = int(rng.choice([a for a in (0, 0, 1, 2) if a in cuts]))
        number, place, voxels = cuts[axis][int(rng.integers(len(cuts[axis])))]
        shape, window = np.delete(self.shape_r3[number], axis), np.delete(self.window_r3[number], axis)
        side = np.maximum(1, np.rint(window * zoom)).astype(np.int64)
        first, last = np.minimum(0, (shape - side) // 2), np.maximum((shape - side) // 2, shape - side)
        start = rng.integers(first, last + 1)
        if len(voxels) and rng.random() < self.foreground_share:
            voxel = np.array(divmod(voxels[rng.integers(len(voxels))], shape[1]))
            start = np.clip(voxel - rng.integers(side), first, last)
        return [number, axis, place, *start.tolist(), *side.tolist()]


def _is_cubic(region: Region) -> bool:
    """Whether slices along y and x look like those along z: voxels are cubic within a tenth, and there are enough."""
    size = region.image.voxel_size
    return size is not None and max(size) <= 1.1 * min(size) and region.box.shape[0] >= _DEEP


class DomainBank(nn.Module):
    """The voxels and labels of some regions on one device."""

    def __init__(self, regions: Sequence[Region]) -> None:
        super().__init__()
        for number, region in enumerate(regions):
            image_zyx = region.read_image().astype(np.float32)
            self.register_buffer(f"image_{number}", torch.from_numpy(image_zyx))
            self.register_buffer(f"label_{number}", torch.from_numpy(region.read_label().copy()))

    def gather(
        self, position_b7: Tensor, symmetries: Sequence[TileSymmetry], tile: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """A batch of tiles with their symmetries applied: image float32 (B, 1, Y, X), label int64 (B, Y, X)."""
        places = zip(position_b7.tolist(), symmetries, strict=True)
        pairs = [self._tile(place, symmetry, tile[1:]) for place, symmetry in places]
        image, label = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return image, label[:, 0].long()

    def _tile(self, place: list[int], symmetry: TileSymmetry, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, axis, at, *window = place
        image_yx, label_yx = (getattr(self, f"{kind}_{number}").select(axis, at) for kind in ("image", "label"))
        places = [np.arange(start, start + side) for start, side in zip(window[:2], window[2:], strict=True)]
        nearest = [
            at[((np.arange(n) + 0.5) * len(at) / n).astype(np.int64)] for at, n in zip(places, tile, strict=True)
        ]
        outside = [(at < 0) | (at >= n) for at, n in zip(nearest, image_yx.shape, strict=True)]
        image = interpolate(_at(image_yx, places)[None, None], tile, mode="bilinear", antialias=True)[0]
        unlabelled_yx = torch.from_numpy(outside[0][:, None] | outside[1]).to(label_yx.device)
        label = _at(label_yx, nearest).masked_fill(unlabelled_yx, IGNORE)
        return symmetry(image), symmetry(label[None])


def _at(slice_yx: Tensor, places: Sequence[Index]) -> Tensor:
    """The pixels at some places along y and x, which may lie beyond the border: there the slice is reflected."""
    rows, columns = (torch.from_numpy(reflect(at, n)) for at, n in zip(places, slice_yx.shape, strict=True))
    return slice_yx[rows][:, columns]
