"""Augmentation: one seed a sample, image and label together, and what each effect does."""

import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from monai.transforms import Rand3DElasticd, RandAffined, RandFlipd, RandSpatialCropd

from mitoseg.errors import UserError
from mitoseg.sampling.augmentation import (
    AsVolumed,
    Augmenter,
    BlurredSectiond,
    EMAugmentation,
    GaussianNoised,
    MissingSectiond,
    SectionContrastd,
    ShiftedSectiond,
)

PROBABILITIES = (
    "deform",
    "contrast",
    "curve",
    "blur",
    "resolution",
    "noise",
    "sections",
    "defocus",
    "missing",
    "shifted",
    "cutout",
)
OFF = dict.fromkeys(PROBABILITIES, 0.0)


def stack(batch=3, sections=5, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, sections, side, side, generator=generator)


def discs(side=64):
    y, x = np.indices((side, side))
    return torch.from_numpy(((y - 30) ** 2 + (x - 26) ** 2 < 15**2).astype(np.int64))


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("volumetric", [False, True])
def test_a_sample_depends_on_its_seed_alone(volume, volumetric):
    options = dict.fromkeys(PROBABILITIES, 0.5) | {"volumetric": volumetric}
    image, label = stack(), discs().expand(3, 64, 64)
    if volume:
        image, label = image[:, None], label[:, None].expand(3, 5, 64, 64)
    augment = EMAugmentation(**options)
    seed_b = torch.tensor([11, 5, 8])
    together = augment(image, label, seed_b)
    torch.manual_seed(99)
    np.random.seed(99)
    again = EMAugmentation(**options)
    for i in (2, 0, 1):
        alone = again(image[i : i + 1], label[i : i + 1], seed_b[i : i + 1])
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])
    assert together[0].shape == image.shape
    assert together[1].shape == label.shape
    assert together[0].dtype == torch.float32
    assert together[1].dtype == torch.int64
    other = augment(image, label, seed_b + 1)
    assert not torch.equal(other[0], together[0])


def test_nothing_is_nothing():
    image, label = stack(), discs().expand(3, 64, 64)
    same = EMAugmentation(**OFF)(image, label, torch.arange(3))
    assert torch.equal(same[0], image)
    assert torch.equal(same[1], label)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_effect_changes_the_image_and_keeps_what_it_must(name):
    image, label = stack(), discs().expand(3, 64, 64)
    found, changed = EMAugmentation(**{**OFF, name: 1.0})(image, label, torch.arange(3))
    changed_ones = sum(not torch.equal(a, b) for a, b in zip(found, image, strict=True))
    assert changed_ones == 3 or (name == "resolution" and changed_ones)  # hardly larger pixels are the same ones
    assert torch.isfinite(found).all()
    if name != "deform":
        assert torch.equal(changed, label)
    if name in ("missing", "shifted"):
        assert torch.equal(found[:, 2], image[:, 2])
    if name in ("missing", "defocus"):
        assert [
            sum(not torch.equal(a, b) for a, b in zip(f, i, strict=True)) for f, i in zip(found, image, strict=True)
        ] == [1] * 3


def test_deformation_moves_image_and_label_together():
    label = discs().expand(8, 64, 64)
    image = label[:, None].float()
    found, moved = EMAugmentation(**{**OFF, "deform": 1.0})(image, label, torch.arange(8))
    assert not torch.equal(moved, label)
    known = moved != 255
    assert ((found[:, 0] > 0.5) == (moved == 1))[known].float().mean() > 0.99
    assert 0.6 < known.float().mean() < 1
    assert set(moved.unique().tolist()) == {0, 1, 255}
    _, reflected = EMAugmentation(**{**OFF, "deform": 1.0}, outside="reflect")(image, label, torch.arange(8))
    assert set(reflected.unique().tolist()) == {0, 1}
    assert torch.equal(reflected[known], moved[known])


def test_ignored_labels_stay_ignored():
    label = discs()
    label[:, 40:] = 255
    _, moved = EMAugmentation(**{**OFF, "deform": 1.0})(stack(1), label[None], torch.tensor([3]))
    assert set(moved.unique().tolist()) == {0, 1, 255}


@pytest.mark.parametrize("kind", [MissingSectiond, ShiftedSectiond, BlurredSectiond, SectionContrastd])
def test_a_single_labelled_section_survives(kind):
    augment = Augmenter([kind(prob=1.0)])
    image = stack(4, 1)
    found, _ = augment(image, discs().expand(4, 64, 64), torch.arange(4))
    spared = kind in (MissingSectiond, ShiftedSectiond)
    assert torch.equal(found, image) == spared


def test_a_volume_may_lose_any_section():
    augment = Augmenter([MissingSectiond(prob=1.0)])
    image, label = stack(60, 3, 16), discs(16).expand(60, 3, 16, 16)
    found, _ = augment(image[:, None], label, torch.arange(60))
    lost = [next(s for s in range(3) if not torch.equal(f[s], i[s])) for f, i in zip(found[:, 0], image, strict=True)]
    assert set(lost) == {0, 1, 2}


def test_other_transforms_of_monai_can_be_added():
    augment = EMAugmentation(**OFF, extra=[RandFlipd(["image", "label"], prob=1.0, spatial_axis=1)])
    image, label = stack(), discs().expand(3, 64, 64)
    found, flipped = augment(image, label, torch.arange(3))
    assert torch.equal(found, image.flip(-1))
    assert torch.equal(flipped, label.flip(-1))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"noise": 1.5}, "augmentation.noise is not a prob"),
        ({"gamma": 0.5}, "gamma is too small"),
        ({"gain": -1}, "gain"),
        ({"coarser": 0.5}, "coarser is too small"),
        ({"outside": "zero"}, "outside"),
    ],
)
def test_mistakes_are_told(options, line):
    with pytest.raises(UserError, match=line):
        EMAugmentation(**options)


@pytest.mark.parametrize("names", [PROBABILITIES, ["cutout"]], ids=len)
def test_nothing_but_the_seeds_is_random_and_nothing_is_left_behind(names):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), get_track_meta()
    image, label = stack(), discs().repeat(3, 1, 1)
    given = image.clone(), label.clone()
    EMAugmentation(**OFF | dict.fromkeys(names, 1.0))(image, label, torch.arange(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert get_track_meta() is before[2]
    assert torch.equal(image, given[0])
    assert torch.equal(label, given[1])


@pytest.mark.parametrize("other", [11, -10, 10 + 2**32, 2**63 - 1])
def test_every_seed_is_another_change(other):
    augment = EMAugmentation(**dict.fromkeys(PROBABILITIES, 1.0))
    results = [augment(stack(1), discs()[None], torch.tensor([seed]))[0] for seed in (10, other)]
    assert not torch.equal(*results)


def test_a_volume_is_shown_as_one():
    """Through `AsVolumed` MONAI's transforms of volumes apply; the channels of slices stay channels."""
    seen = []

    def look(sample):
        seen.append((tuple(sample["image"].shape), tuple(sample["label"].shape)))
        return sample

    elastic = Rand3DElasticd(["image", "label"], (2, 3), (1, 2), prob=1.0, mode=["bilinear", "nearest"])
    augment = Augmenter([AsVolumed(look), AsVolumed(elastic)])
    label = discs().expand(2, 8, 64, 64)
    found, moved = augment(label[:, None].float(), label, torch.arange(2))
    assert ((found[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.98
    Augmenter([AsVolumed(look)])(stack(1), label[:1, 0], torch.arange(1))
    assert seen == [((1, 8, 64, 64), (1, 8, 64, 64))] * 2 + [((5, 64, 64), (1, 64, 64))]


def test_noise_has_the_deviation_asked_for():
    image = torch.zeros(30, 2, 64, 64)
    found, _ = Augmenter([GaussianNoised(prob=1.0, std=0.4)])(image, discs().expand(30, 64, 64), torch.arange(30))
    deviation = found.flatten(1).std(1)
    assert float(deviation.mean()) == pytest.approx(0.2, abs=0.06)
    assert float(deviation.max()) < 0.41
    assert float(found.mean()) == pytest.approx(0, abs=0.005)


BAD = {
    "changed the shape": RandSpatialCropd(["image"], (20, 20)),
    "give mode=nearest": RandAffined(["label"], prob=1.0, rotate_range=0.5),
    "failed, applying transform .*RandAffined": RandAffined(["image"], 1.0, 1.0),
}


@pytest.mark.parametrize("line", BAD)
def test_further_transforms_that_do_not_fit(line):
    with pytest.raises(UserError, match=line):
        Augmenter([BAD[line]])(stack(), discs().expand(3, 64, 64), torch.arange(3))
