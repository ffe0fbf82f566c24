"""Warps and shifts of tiles against SciPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from mitoseg.sampling.augmentation import ShiftedSectiond, Warpd, shifted, spline_weights

CPU = torch.device("cpu")


def sample(sections, labelled, side=(30, 34), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(sections, *side, generator=generator)
    label = torch.randint(2, (labelled, *side), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": label}


@pytest.mark.parametrize(("sections", "labelled", "tilt"), [(3, 1, 0), (9, 9, 0), (20, 20, 25), (5, 1, 25)])
@pytest.mark.parametrize("seed", range(3))
def test_a_warp_without_deformation_is_an_affine_transform(sections, labelled, tilt, seed):
    given = sample(sections, labelled)
    warp = Warpd(prob=1.0, magnitude=0, tilt=tilt, stretch=1.3, outside="reflect").set_random_state(seed)
    found = warp(given)
    deep = tilt > 0 and labelled > 1  # the channels of a network on slices stay in their plane
    warp.set_random_state(seed)
    warp.R.rand()  # whether it strikes
    matrix = warp.matrix(3 if deep else 2)[::-1, ::-1]
    for key, order in (("image", 1), ("label", 0)):
        pairs = [(given[key], found[key])] if deep else zip(given[key], found[key], strict=True)
        for one, other in pairs:
            centre = (np.array(one.shape) - 1) / 2
            offset = centre - matrix @ centre
            oracle = ndimage.affine_transform(one.numpy().astype(float), matrix, offset, order=order, mode="reflect")
            assert np.mean(np.abs(oracle - other.numpy()) > 1e-3) < 0.005, key  # but for rounding at half a voxel


def test_the_deformation_is_a_cubic_spline():
    weight = spline_weights(40, 8.0).numpy()
    oracle = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    at = (np.arange(40) + 0.5) / 8
    for node in range(weight.shape[1]):
        np.testing.assert_allclose(weight[:, node], np.nan_to_num(oracle(at - (node - 1))), atol=1e-6)
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (32, 64, 64)])
def test_the_deformation_is_as_large_as_asked_and_does_not_fold(size):
    warp = Warpd(prob=1.0, magnitude=5.0).set_random_state(0)
    field = torch.stack([warp.deformation(size, CPU) for _ in range(10)])
    assert field.shape == (10, *size, len(size))
    assert 1 < float(field.std()) < 5  # a spline averages its nodes
    assert float(field.diff(dim=-2).abs().max()) < 1


def test_what_lies_outside_is_ignored():
    """At half the size the tile fills the middle half; around it there is no truth."""
    warp = Warpd(prob=1.0, rotation=0, scale=1.0, stretch=1.0)

    class Smallest:
        def rand(self):
            return 0.0

        def uniform(self, low, high, size=None):
            return np.full(size or (), low)

        def normal(self, mean, deviation, size):
            return np.full(size, mean)

    warp.R = Smallest()
    label = warp(sample(1, 1, (32, 40)))["label"][0]
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[8:24, 10:30] = True
    assert torch.equal(label != 255, inside)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (1.25, -0.5), (-4.75, 3.0)])
def test_a_shift_is_that_of_scipy(shift):
    image = sample(2, 2)["image"]
    oracle = ndimage.shift(image.numpy(), (0, *shift), order=1, mode="reflect")
    np.testing.assert_allclose(shifted(image, shift), oracle, atol=1e-5)


@pytest.mark.parametrize("labelled", [1, 9])
def test_sections_shift_outwards_and_take_their_labels_along(labelled):
    given, move, runs = sample(9, labelled), ShiftedSectiond(prob=1.0, reach=5), set()
    for seed in range(20):
        found = move.set_random_state(seed)(given)
        changed = [k for k in range(9) if not torch.equal(found["image"][k], given["image"][k])]
        assert 4 not in changed
        assert len(changed) == 1 or changed in (list(range(changed[0], 9)), list(range(changed[-1] + 1)))
        runs.add(len(changed))
        moved = [k for k in range(labelled) if not torch.equal(found["label"][k], given["label"][k])]
        assert moved == (changed if labelled > 1 else []) or not moved  # a shift below half a pixel
    assert len(runs) > 2
