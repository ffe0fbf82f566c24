"""Padding: found against a plain flood, whatever is read at once; in no statistic; seen as mirrored tissue."""

import io
import pickle

import numpy as np
import pytest
from made_files import refused
from PIL import Image
from scipy import ndimage

from mitoseg.geometry import Box, tiles
from mitoseg.volumes import ArrayVolume, check_image_values, measure_normalization, padding
from mitoseg.volumes.normalize import MatchedVolume, grey_quantiles, sample_greys
from mitoseg.volumes.padding import PaddedVolume, Padding, blanked, with_padding
from mitoseg.volumes.resampling import resampled

SHAPE = (5, 90, 110)
Y, X = np.mgrid[:90, :110]
TISSUE = np.stack(
    [
        (Y > 0.3 * X - 5) & (Y < 80 - 0.1 * X),  # slanted
        (Y >= 7) & (X >= 20) & (X < 100),  # shifted
        np.zeros((90, 110), bool),  # missing
        np.ones((90, 110), bool),
        (Y > 0) & (X < 109),  # one pixel
    ]
)


def stack(value=0, dtype=np.uint8, tissue=TISSUE):
    grey = np.random.default_rng(1).integers(60, 200, SHAPE).astype(dtype)
    return np.where(tissue, grey, np.asarray(value, dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.bool_])
def test_margins_of_any_value_are_found(dtype):
    for value in (0, 255, 128, np.nan if dtype == np.float32 else 1):
        image = stack(value, dtype)
        found = Padding(ArrayVolume(image))
        if dtype == np.bool_:  # noise of two values; here the margin's value goes on into the tissue
            same = ndimage.label(image[3])[0]
            assert found.count() >= (~TISSUE).sum() or same.any()
            continue
        same_greys = (image == value) & TISSUE  # grey values that join the margin
        assert not (found.read() & TISSUE & ~same_greys).any()
        assert found.read()[~TISSUE].all()
        assert found.count() == found.read().sum()
        assert found.find(Box((3, 0, 0), (4, 90, 110))) is None
        assert found.count(Box((1, 10, 0), (2, 20, 50))) == 10 * 20


def test_slices_too_large_to_hold_are_looked_at_band_by_band(monkeypatch):
    """Padding that winds from band to band, up and down again; and boxes that see a part of a slice."""
    winding = np.full((1, 900, 64), 3, np.uint8)
    winding[0, :, 1::4] = 0
    winding[0, 5:, :2] = 0
    winding[0, 890:, ::2] = 0
    winding[0, :, 3::8] = np.arange(900)[:, None] % 250 + 4
    winding[0, ::7, 20:40] = 0
    expected = Padding(ArrayVolume(winding))
    monkeypatch.setattr(padding, "BAND", 64 * 256)
    banded = Padding(ArrayVolume(winding))
    np.testing.assert_array_equal(banded.read(), expected.read())
    assert expected.count() > 1000
    label = ndimage.label(winding[0] == 0)[0]
    assert set(np.unique(label[expected.read()[0] & (winding[0] == 0)])) < set(range(1, label.max() + 1))
    for box in tiles(expected.box, (1, 250, 30)):
        np.testing.assert_array_equal(banded.read(box), expected.read()[box.slices])


def test_what_saturates_is_tissue():
    image = stack(tissue=np.ones(SHAPE, bool))
    image[0, 20:60, 30:90] = 255  # resin inside
    image[1, :14, 40:54] = 0  # a stain at the border
    image[2, 0, ::2] = 255
    assert Padding(ArrayVolume(image)).count() == 0


def as_jpeg(image):
    """Each slice as a lossy codec leaves it."""
    kept = []
    for image_yx in image:
        file = io.BytesIO()
        Image.fromarray(image_yx).save(file, "JPEG", quality=75)
        kept.append(np.array(Image.open(file)))
    return np.stack(kept)


def test_margins_of_nearly_one_value_frames_and_holes_are_padding():
    rng = np.random.default_rng(3)
    tissue = np.zeros((2, 300, 320), bool)
    tissue[:, 40:260, 50:280] = True
    grey = ndimage.gaussian_filter(rng.normal(130, 150, tissue.shape), (0, 1.5, 1.5)).clip(60, 200).astype(np.uint8)
    margins = np.where(tissue, grey, 0).astype(np.uint8)
    framed, hole = margins.copy(), grey.copy()
    framed[:, [0, 1, -1]] = framed[:, :, [0, -1]] = 255
    hole[:, 100:180, 120:200] = 90
    holed = np.ones(tissue.shape, bool)
    holed[:, 100:180, 120:200] = False
    noisy = np.where(tissue, grey, rng.integers(0, 3, tissue.shape)).astype(np.uint8)
    blurred = ndimage.gaussian_filter(margins, (0, 1, 1))
    drifting = np.where(tissue, grey, np.arange(300)[:, None] // 60).astype(np.uint8)
    for image, inside, slack in (
        *((as_jpeg(margins), tissue, 0.002), (noisy, tissue, 0), (blurred, tissue, 0.02)),
        *((framed, tissue, 0), (hole, holed, 0.001), (np.where(holed, grey, np.nan), holed, 0), (drifting, tissue, 0)),
    ):
        found = Padding(ArrayVolume(image)).read()
        assert (found & inside).mean() <= slack
        assert (~found & ~inside).mean() <= slack


def test_padding_enters_no_statistic():
    whole = np.random.default_rng(2).integers(60, 200, (6, 300, 320), np.uint8)
    image, inner = np.zeros((6, 400, 500), np.uint8), Box((0, 40, 100), (6, 340, 420))
    image[inner.slices] = whole
    alone, padded = ArrayVolume(whole), PaddedVolume(ArrayVolume(image))
    found, expected = (measure_normalization([(volume, volume.box)]) for volume in (padded, alone))
    assert (found.mean, found.std) == pytest.approx((expected.mean, expected.std), rel=1e-12)
    quantiles = grey_quantiles([(padded, padded.box)])
    np.testing.assert_allclose(quantiles, grey_quantiles([(alone, alone.box)]), atol=1)
    assert sample_greys(padded).min() >= 60
    matched = MatchedVolume(padded, np.linspace(0, 1, 257).tolist())
    np.testing.assert_allclose(
        matched.read(inner), MatchedVolume(alone, np.linspace(0, 1, 257).tolist()).read(), atol=0.01
    )
    half = resampled(PaddedVolume(ArrayVolume(image, (5, 5, 5))), (5, 10, 10))
    assert half.padding.find(half.box).sum() == 6 * (200 * 250 - 150 * 160)
    assert measure_normalization([(half, half.box)]).mean == pytest.approx(expected.mean, abs=0.1)
    empty = PaddedVolume(ArrayVolume(np.zeros((2, 40, 40), np.uint8)))
    for measure, told in ((measure_normalization, "constant"), (grey_quantiles, "no voxels")):
        refused(told, measure, [(empty, empty.box)])


@pytest.mark.parametrize("value", [0, np.nan])
def test_padding_is_seen_as_mirrored_tissue(value):
    image = stack(value, np.float32)
    volume = with_padding(ArrayVolume(image), "auto")
    whole = volume.read()
    np.testing.assert_array_equal(whole[TISSUE], image[TISSUE])
    np.testing.assert_array_equal(whole[1, 7:, :20], image[1, 7:, 40:20:-1])
    np.testing.assert_array_equal(whole[1, :7, 20:100], image[1, 14:7:-1, 20:100])
    assert whole[2].min() == whole[2].max() == pytest.approx(130, abs=5)
    again = pickle.loads(pickle.dumps(volume))
    for box in tiles(volume.box, (2, 31, 40)):
        np.testing.assert_array_equal(again.read(box), whole[box.slices])
    assert with_padding(ArrayVolume(image), "none").padding is None
    refused("padding", with_padding, volume, True)


def test_nan_inside_tissue_is_refused_with_its_place():
    image = stack(np.nan, np.float32)
    image[3, 40, 50] = np.nan
    volume = PaddedVolume(ArrayVolume(image))
    refused(r"NaN at \(z, y, x\) = \(3, 40, 50\)", measure_normalization, [(volume, volume.box)])
    refused(r"= \(13, 50, 50\)", check_image_values, image[3:4, 10:], "em", start=(13, 20, 0))


def test_a_result_is_blank_in_padding():
    image = PaddedVolume(ArrayVolume(stack()))
    ones = ArrayVolume(np.ones(SHAPE, np.uint8))
    np.testing.assert_array_equal(blanked(ones, image.padding).read(), TISSUE)
    box = Box((0, 3, 5), (2, 70, 80))
    part = blanked(ones, image.padding, 255).part(box)
    np.testing.assert_array_equal(part.read(box), np.where(TISSUE, 1, 255)[box.slices])
    assert blanked(ones, None) is ones


def test_little_is_kept_of_many_slices(monkeypatch):
    monkeypatch.setattr(padding, "_KEPT", 10)
    found = Padding(ArrayVolume(stack()))
    np.testing.assert_array_equal(found.read()[[0, 1]], ~TISSUE[[0, 1]])
    np.testing.assert_array_equal(found.read(Box((1, 0, 0), (2, 90, 110)))[0], ~TISSUE[1])
    assert found.count() == found.read().sum()
    assert len(found._packed) < 5 + 1


def test_rows_without_tissue_in_a_narrow_image():
    """Wider margins than tissue: what no tissue of its row is near is mirrored along the columns."""
    image_zyx = np.random.default_rng(4).integers(60, 255, (2, 80, 40), dtype=np.uint8)
    image_zyx[:, :50] = 0
    seen_zyx = PaddedVolume(ArrayVolume(image_zyx)).read()
    np.testing.assert_array_equal(seen_zyx[:, 50:], image_zyx[:, 50:])
    np.testing.assert_array_equal(seen_zyx[:, 21:50], image_zyx[:, 79:50:-1])
