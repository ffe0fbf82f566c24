"""Gathered blocks and tiles against plain indexing, torch.rot90 and scipy's map_coordinates."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from small_regions import Guarded, region

from mitoseg.geometry import Box, anchor, reflect
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.sampling.bank import NEIGHBOURS, TileBank, VolumeBank, half_side, reach
from mitoseg.volumes import CHANNEL_OFFSETS, ArrayVolume, Normalization, read_channels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
AS_IS = Normalization(0.0, 1.0)
WINDOWS = [(32, 15.5), (32, 16.0), (67, 32.5), (67, 33.0)]


def position_code(shape):
    """Every voxel holds its own z, y, x."""
    z, y, x = np.indices(shape)
    return (z * 1_000_000 + y * 1_000 + x).astype(np.float32)


def two_regions(rng):
    """A region inside its volume, and one that is all of another volume of another shape."""
    a, b = rng.integers(0, 256, (7, 180, 210), np.uint8), rng.integers(0, 256, (4, 71, 66), np.uint8)
    return [region(a, None, (2, 60, 60), (6, 120, 150)), region(b)]


def random_positions(regions, n, rng):
    number = rng.integers(len(regions), size=n)
    places = rng.random((n, 3)) * np.array([regions[r].box.shape for r in number])
    return torch.from_numpy(np.c_[number, places.astype(np.int64)])


def sampled(regions, position, angle, flip, window, pivot, order):
    """The block as scipy samples it out of the whole volume."""
    number, z, y, x = position
    volume, start = regions[number].image, regions[number].box.start
    i, j = np.indices((window, window)) - pivot
    j = -j if flip else j
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    first = np.array([y + start[1], x + start[2]]) - anchor(window)
    rows, columns = cos * i + sin * j + pivot + first[0], cos * j - sin * i + pivot + first[1]
    planes = read_channels(volume, z + start[0], "adjacent").astype(float)
    return np.stack([map_coordinates(p, (rows, columns), order=order, mode="mirror") for p in planes])


def copied(regions, position, turns, flip, window, pivot, channels="adjacent"):
    """The block, looked up voxel by voxel in the whole volume, by doubled coordinates."""
    number, z, y, x = position
    volume, start = regions[number].image, regions[number].box.start
    i, j = 2 * np.indices((window, window)) - round(2 * pivot)
    j = -j if flip else j
    row, column = ((i, j), (j, -i), (-i, -j), (-j, i))[turns]
    row, column = ((k + round(2 * pivot)) // 2 - anchor(window) for k in (row, column))
    planes = read_channels(volume, z + start[0], channels)
    return planes[:, reflect(row + y + start[1], volume.shape[1]), reflect(column + x + start[2], volume.shape[2])]


def corners(regions):
    """Positions at the corners of all regions."""
    ends = [[(0, n - 1) for n in region.box.shape] for region in regions]
    return [(r, z, y, x) for r, (zs, ys, xs) in enumerate(ends) for z in zs for y in ys for x in xs]


@pytest.mark.parametrize("channels", ["adjacent", "repeat", "single"])
@pytest.mark.parametrize("pivot", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("window", [1, 2, 7, 32, 67])
def test_turned_blocks_are_those_of_the_volume(window, pivot, channels):
    rng = np.random.default_rng(window)
    regions = [*two_regions(rng), region(rng.integers(0, 256, (1, 3, 5), np.uint8))]
    bank, pivot = VolumeBank(regions, AS_IS, window + 3), anchor(window) + pivot
    position_b4 = torch.cat([torch.tensor(corners(regions)), random_positions(regions, 8, rng)])
    for turns in range(4):
        for flip in (False, True):
            angle_b, flip_b = torch.full((len(position_b4),), 90.0 * turns), torch.full((len(position_b4),), flip)
            image_bcyx = bank.gather(position_b4, angle_b, flip_b, window=window, pivot=pivot, channels=channels)
            expected = [copied(regions, p, turns, flip, window, pivot, channels) for p in position_b4.tolist()]
            np.testing.assert_array_equal(image_bcyx.numpy(), np.stack(expected))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_region_of_any_volume(data):
    """Boxes anywhere in volumes of any shape, several of them, in any batch."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    regions = []
    for shape in data.draw(st.lists(st.tuples(*[st.integers(1, n) for n in (5, 90, 90)]), min_size=1, max_size=3)):
        start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
        regions.append(region(rng.integers(0, 256, shape, np.uint8), None, start, stop))
    window = data.draw(st.integers(1, 40))
    pivot = anchor(window) + data.draw(st.sampled_from([-0.5, 0.0, 0.5]))
    position_b4, turns = random_positions(regions, 6, rng), rng.integers(4, size=6)
    flip = rng.random(6) < 0.5
    bank = VolumeBank(regions, AS_IS, data.draw(st.integers(window, window + 9)))
    angle_b = torch.from_numpy(turns).float() * 90
    image_bcyx = bank.gather(position_b4, angle_b, torch.from_numpy(flip), window=window, pivot=pivot)
    drawn = zip(position_b4.tolist(), turns.tolist(), flip.tolist(), strict=True)
    np.testing.assert_array_equal(image_bcyx.numpy(), np.stack([copied(regions, *d, window, pivot) for d in drawn]))


@pytest.mark.parametrize("window", range(1, 120))
def test_no_square_leaves_what_is_kept(window):
    for pivot in (anchor(window) - 0.5, anchor(window), anchor(window) + 0.5):
        half = half_side(window, pivot, any_angle=True)
        assert half >= np.sqrt(2) * max(pivot, window - 1 - pivot)
        assert half + abs(pivot - anchor(window)) <= reach(window)


def test_a_large_mixed_batch_is_the_batches_and_blocks_that_it_is_made_of():
    rng = np.random.default_rng(4)
    regions = two_regions(rng)
    bank = VolumeBank(regions, Normalization(120.0, 33.0), 32)
    angle_b = torch.from_numpy(rng.choice([0.0, 90.0, 33.3], 500).astype(np.float32))
    angle_b[:12] = torch.tensor([0.0, 12.5, 90.0, 300.1, 180.0, 1.0, 359.0, 270.0, 0.0, 45.0, 135.0, 90.0])
    drawn = random_positions(regions, 500, rng), angle_b, torch.from_numpy(rng.random(500) < 0.5)
    whole = bank.gather(*drawn, window=32)
    parts = [bank.gather(*(column[i : i + 100] for column in drawn), window=32) for i in range(0, 500, 100)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=0)
    single = [bank.gather(*(column[i : i + 1] for column in drawn), window=32) for i in range(12)]
    torch.testing.assert_close(whole[:12], torch.cat(single), rtol=0, atol=0)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert bank.gather(*(column[:0] for column in drawn), window=32).shape == (0, 3, 32, 32)
    for angle in (90.0, 33.3):  # the kinds of angles may be told
        angle_b[:9] = torch.tensor([0.0, 180.0, angle]).repeat(3)
        some = [column[:9] for column in drawn]
        told = bank.gather(*some, window=32, exact=angle % 90 == 0)
        torch.testing.assert_close(bank.gather(*some, window=32), told, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 80, 90), (3, 20, 24), (2, 1, 40), (1, 7, 2)])
@pytest.mark.parametrize("window", [32, 67])
def test_unturned_blocks_are_the_padded_volume(shape, window):
    image_zyx = position_code(shape)
    bank = VolumeBank([region(image_zyx)], AS_IS, window)
    rng = np.random.default_rng(0)
    position_b4 = random_positions([region(image_zyx)], 20, rng)
    still = torch.zeros(20), torch.zeros(20, dtype=torch.bool)
    image_bcyx = bank.gather(position_b4, *still, window=window)
    padded = np.pad(image_zyx, ((0, 0), (window, window), (window, window)), mode="reflect")
    for block_cyx, (_, z, y, x) in zip(image_bcyx.numpy(), position_b4.tolist(), strict=True):
        first_y, first_x = y + window - anchor(window), x + window - anchor(window)
        planes = [max(z - 1, 0), z, min(z + 1, shape[0] - 1)]
        np.testing.assert_array_equal(
            block_cyx, padded[planes, first_y : first_y + window, first_x : first_x + window]
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("window", "pivot"), WINDOWS)
def test_quarter_turns_are_exact(window, pivot, turns, flip, device):
    rng = np.random.default_rng(turns)
    regions = two_regions(rng)
    bank = VolumeBank(regions, Normalization(120.0, 33.0), window).to(device)
    position_b4 = random_positions(regions, 30, rng)
    angle_b, flip_b = torch.full((30,), 90.0 * turns), torch.full((30,), flip)
    arguments = [t.to(device) for t in (position_b4, angle_b, flip_b)]
    image_bcyx = bank.gather(*arguments, window=window, pivot=pivot).cpu()
    unturned = bank.gather(arguments[0], arguments[1] * 0, arguments[2] & False, window=window, pivot=pivot).cpu()
    middle = slice(0, window)
    if pivot != (window - 1) / 2:  # the turn is about another point than the window's middle: less is shared
        side = int(min(pivot, window - 1 - pivot))
        middle = slice(int(np.ceil(pivot - side)), int(np.floor(pivot + side)) + 1)
    expected = torch.rot90(unturned[:, :, middle, middle], turns, (2, 3))
    expected = expected.flip(3) if flip else expected
    torch.testing.assert_close(image_bcyx[:, :, middle, middle], expected, rtol=0, atol=0)
    for block, position in zip(image_bcyx.numpy()[:5], position_b4.tolist(), strict=False):
        oracle = (sampled(regions, position, 90.0 * turns, flip, window, pivot, 1) - 120) / 33
        np.testing.assert_allclose(block, oracle, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("window", "pivot"), WINDOWS)
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_any_angle_agrees_with_scipy(window, pivot, interpolation, device):
    rng = np.random.default_rng(window)
    regions = two_regions(rng)
    bank = VolumeBank(regions, AS_IS, window).to(device)
    position_b4 = random_positions(regions, 40, rng)
    angle_b = torch.from_numpy(rng.random(40).astype(np.float32) * 360)
    position_b4[1:4] = torch.tensor([[0, 0, 0, 0], [0, 3, 59, 89], [0, 1, 59, 0]])  # corners: as far out as it gets
    angle_b[1:4] = 45.01  # at 45 the diagonal lies halfway between voxels
    angle_b[::4] = 90.0 * torch.from_numpy(rng.integers(4, size=10)).float()
    flip_b = torch.from_numpy(rng.random(40) < 0.5)
    arguments = (t.to(device) for t in (position_b4, angle_b, flip_b))
    image_bcyx = bank.gather(*arguments, window=window, pivot=pivot, interpolation=interpolation).cpu().numpy()
    order = {"bilinear": 1, "nearest": 0}[interpolation]
    oracle = np.stack(
        [
            sampled(regions, p, a, f, window, pivot, order)
            for p, a, f in zip(position_b4.tolist(), angle_b.double().tolist(), flip_b.tolist(), strict=True)
        ]
    )
    if interpolation == "bilinear":
        np.testing.assert_allclose(image_bcyx, oracle, atol=0.02)  # grey levels of 255
    else:  # but for places halfway between two voxels
        assert (image_bcyx != oracle).mean() < 1e-3


def test_context_is_tissue_and_never_black():
    """A constant volume stays constant at any angle, at any border."""
    image_zyx = np.full((2, 64, 64), 200, np.uint8)
    bank = VolumeBank([region(image_zyx, None, (0, 16, 16), (2, 48, 48))], AS_IS, 67)
    position_b4 = torch.tensor([[0, 0, y, x] for y in (0, 16, 31) for x in (0, 16, 31)])
    image_bcyx = bank.gather(position_b4, torch.linspace(1, 350, 9), torch.zeros(9, dtype=torch.bool), window=67)
    np.testing.assert_allclose(image_bcyx, 200, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("channels", ["adjacent", "repeat", "single"])
def test_blocks_are_normalised_as_volumes_are(dtype, channels):
    rng = np.random.default_rng(5)
    image_zyx = rng.integers(0, 250, (5, 60, 60)).astype(dtype)
    normalization = Normalization(117.3, 29.1)
    bank = VolumeBank([region(image_zyx)], normalization, 32)
    assert bank.voxels_n.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    for z in range(5):
        block = bank.gather(
            torch.tensor([[0, z, 30, 31]]), torch.zeros(1), torch.tensor([False]), window=32, channels=channels
        )
        image_cyx = read_channels(ArrayVolume(image_zyx), z, channels, Box((14, 15), (46, 47)))
        np.testing.assert_array_equal(block[0].numpy(), normalization.apply(image_cyx))


def test_only_the_context_is_kept():
    image_zyx = np.zeros((4 * NEIGHBOURS, 400, 400), np.uint8)
    middle = 2 * NEIGHBOURS
    bank = VolumeBank([region(image_zyx, None, (middle, 100, 100), (middle + 2, 164, 164))], AS_IS, 32)
    assert bank.voxels_n.numel() == (2 + 2 * NEIGHBOURS) * (64 + 2 * reach(32)) ** 2


def test_what_cannot_be_gathered_is_refused():
    bank = VolumeBank([region(np.zeros((2, 40, 40), np.uint8))], AS_IS, 32)
    one = torch.zeros((1, 4), dtype=torch.int64), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    for window, pivot in ((67, 33.0), (32, 0.0), (32, 15.75)):
        with pytest.raises(ValueError, match="cannot gather"):
            bank.gather(*one, window=window, pivot=pivot)


SHAPE = (9, 40, 44)
SCALE = Normalization(100.0, 50.0)


def volume(dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, SHAPE).astype(dtype), (rng.random(SHAPE) < 0.3).astype(np.uint8)


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
    for z, symmetry in itertools.product((0, 1, 4, 8), TILE_SYMMETRIES["dihedral_z"]):
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


def test_neighbours_outside_the_box_are_seen_but_not_their_labels():
    image_zyx, label_zyx = volume()
    box = Box((3, 0, 0), (6, 40, 44))
    bank = TileBank([region(image_zyx, Guarded(label_zyx, box), box.start, box.stop)], SCALE, channels="adjacent")
    image, _ = bank.gather(torch.tensor([[0, 0, 0, 0]]), [TILE_SYMMETRIES["none"][0]], (1, 40, 40))
    np.testing.assert_allclose(image[0, 0], SCALE.apply(image_zyx[2, :40, :40]), atol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("dihedral", 8), ("dihedral_z", 16), ("cubic", 48)])
def test_every_symmetry_is_another(kind, count):
    cube = torch.arange(27).reshape(3, 3, 3)
    ways = {tuple(symmetry(cube).flatten().tolist()) for symmetry in TILE_SYMMETRIES[kind]}
    assert len(ways) == len(TILE_SYMMETRIES[kind]) == count
    assert torch.equal(TILE_SYMMETRIES[kind][0](cube), cube)
