"""Tiles out of the bank against plain indexing and numpy's own turns."""

import itertools

import numpy as np
import pytest
import torch

from mitoseg.datasets import Region
from mitoseg.geometry import Box, reflect
from mitoseg.sampling import TileBank
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.volumes import CHANNEL_OFFSETS, ArrayVolume, Normalization

SHAPE = (9, 40, 44)
SCALE = Normalization(100.0, 50.0)


def volume(dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, SHAPE).astype(dtype), (rng.random(SHAPE) < 0.3).astype(np.uint8)


def region(image_zyx, label_zyx, start=(0, 0, 0), stop=SHAPE):
    return Region(ArrayVolume(image_zyx), ArrayVolume(label_zyx), Box(start, stop))


def turned(voxels_zyx, symmetry):
    return np.flip(np.transpose(voxels_zyx, symmetry.order), symmetry.flips)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", sorted(TILE_SYMMETRIES))
def test_tiles_of_volumes_are_those_of_numpy(kind, dtype):
    image_zyx, label_zyx = volume(dtype)
    bank = TileBank([region(image_zyx, label_zyx, (1, 2, 3))], SCALE)
    tile, places = (6, 6, 6), [(0, 0, 0), (2, 32, 35), (1, 10, 7)]
    for place, symmetry in itertools.product(places, TILE_SYMMETRIES[kind]):
        image, label = bank.gather(torch.tensor([[0, *place]]), [symmetry], tile)
        part = tuple(slice(a + b, a + b + n) for a, b, n in zip(place, (1, 2, 3), tile, strict=True))
        assert image.shape == (1, 1, *tile)
        np.testing.assert_allclose(image[0, 0], turned(SCALE.apply(image_zyx[part]), symmetry), atol=1e-6)
        np.testing.assert_array_equal(label[0], turned(label_zyx[part], symmetry))


@pytest.mark.parametrize("channels", sorted(CHANNEL_OFFSETS))
@pytest.mark.parametrize("margin", [(0, 0), (3, 5), (5, 3)])
def test_tiles_of_slices_have_channels_and_margins(channels, margin):
    image_zyx, label_zyx = volume()
    bank = TileBank([region(image_zyx, label_zyx)], SCALE, margin=margin, channels=channels)
    before, after = margin
    for z, symmetry in itertools.product((0, 1, 4, 8), TILE_SYMMETRIES["dihedral"]):
        image, label = bank.gather(torch.tensor([[0, z, 5, 30]]), [symmetry], (1, 12, 12))
        assert image.shape == (1, len(CHANNEL_OFFSETS[channels]), 12 + before + after, 12 + before + after)
        slices = [z + o if 0 <= z + o < SHAPE[0] else z for o in CHANNEL_OFFSETS[channels]]
        reach = max(margin)
        y, x = (reflect(np.arange(a - reach, a + 12 + reach), n) for a, n in ((5, 40), (30, 44)))
        wide = turned(SCALE.apply(image_zyx[slices][:, y][:, :, x]), symmetry)
        side = 12 + 2 * reach
        cut = slice(reach - before, side - reach + after)
        np.testing.assert_allclose(image[0], wide[:, cut, cut], atol=1e-6)
        np.testing.assert_array_equal(label[0], turned(label_zyx[z : z + 1, 5:17, 30:42], symmetry)[0])


def test_mirrored_in_z_the_channels_change_places():
    image_zyx, label_zyx = volume()
    bank = TileBank([region(image_zyx, label_zyx)], SCALE, channels="adjacent5")
    mirrored = next(s for s in TILE_SYMMETRIES["dihedral_z"] if s.flips == (0,) and s.order == (0, 1, 2))
    plain, _ = bank.gather(torch.tensor([[0, 4, 0, 0]]), [TILE_SYMMETRIES["none"][0]], (1, 16, 16))
    flipped, _ = bank.gather(torch.tensor([[0, 4, 0, 0]]), [mirrored], (1, 16, 16))
    assert torch.equal(plain.flip(1), flipped)


def test_neighbours_outside_the_box_are_seen_but_not_their_labels():
    class Inside(ArrayVolume):
        def read(self, box=None):
            assert box.start[0] >= 3
            assert box.stop[0] <= 6
            return super().read(box)

    image_zyx, label_zyx = volume()
    part = Region(ArrayVolume(image_zyx), Inside(label_zyx), Box((3, 0, 0), (6, 40, 44)))
    bank = TileBank([part], SCALE, channels="adjacent")
    image, _ = bank.gather(torch.tensor([[0, 0, 0, 0]]), [TILE_SYMMETRIES["none"][0]], (1, 40, 40))
    np.testing.assert_allclose(image[0, 0], SCALE.apply(image_zyx[2, :40, :40]), atol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("dihedral", 8), ("dihedral_z", 16), ("cubic", 48)])
def test_every_symmetry_is_another(kind, count):
    cube = torch.arange(27).reshape(3, 3, 3)
    ways = {tuple(symmetry(cube).flatten().tolist()) for symmetry in TILE_SYMMETRIES[kind]}
    assert len(ways) == len(TILE_SYMMETRIES[kind]) == count
    assert torch.equal(TILE_SYMMETRIES[kind][0](cube), cube)
