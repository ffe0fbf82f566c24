"""U-Nets: folding voxels into channels, sizes, and what a config may say."""

import pytest
import torch

from mitoseg.errors import UserError
from mitoseg.networks import UNet
from mitoseg.networks.unets import fold, unfold


@pytest.mark.parametrize("factor", [(2, 2), (1, 3), (4, 2)])
def test_folding_slices_is_torch_s_pixel_unshuffle(factor):
    image = torch.randn(2, 3, 12, 24)
    folded = fold(image, factor)
    assert folded.shape == (2, 3 * factor[0] * factor[1], 12 // factor[0], 24 // factor[1])
    if factor[0] == factor[1]:
        torch.testing.assert_close(folded, torch.nn.functional.pixel_unshuffle(image, factor[0]))
        torch.testing.assert_close(unfold(folded, factor), torch.nn.functional.pixel_shuffle(folded, factor[0]))
    assert torch.equal(unfold(folded, factor), image)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 3)])
def test_folding_volumes_loses_nothing(factor):
    image = torch.arange(2 * 2 * 4 * 6 * 12.0).reshape(2, 2, 4, 6, 12)
    folded = fold(image, factor)
    assert torch.equal(unfold(folded, factor), image)
    a, b, c = factor
    assert torch.equal(folded[0, 0], image[0, 0, ::a, ::b, ::c])
    assert torch.equal(folded[0, a * b * c - 1], image[0, 0, a - 1 :: a, b - 1 :: b, c - 1 :: c])


ANISOTROPIC = {"stem": [1, 2, 2], "strides": [[1, 2, 2], 2], "kernels": [[1, 3, 3], 3, 3]}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(
    ("sides", "options", "multiple"),
    [((32, 48), {}, (8, 8)), ((16, 32, 16), {}, (8, 8, 8)), ((4, 16, 16), ANISOTROPIC, (2, 8, 8))],
)
def test_scores_have_the_size_of_the_image(sides, options, multiple, norm, residual):
    given = {"filters": [4, 8, 8], "strides": [2, 2], "norm": norm, "residual": residual, **options}
    network = UNet(len(sides), 2, **given).eval()
    assert network.multiple == multiple
    assert network(torch.randn(2, 2, *sides)).shape == (2, 2, *sides)


def test_with_batch_norm_a_score_is_that_of_its_neighbourhood():
    network = UNet(2, 1, filters=[4, 8, 8], strides=[2, 2]).eval()
    image = torch.randn(1, 1, 256, 256)
    other = image.clone()
    other[..., 160:] = 7
    with torch.no_grad():
        torch.testing.assert_close(network(image)[..., :64], network(other)[..., :64])


def test_deep_supervision_is_for_training_alone():
    network = UNet(2, filters=[4, 8, 8, 8], deep_supervision=2)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 3, 2, 32, 32)
    assert network.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 2, 32, 32)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"filters": [4, 8], "strides": [2]}, "do not fit together"),
        ({"filters": [4, 8, 8], "strides": [2]}, "do not fit together"),
        ({"filters": [4, 8, 8], "strides": [2, [2, 2, 2]]}, "not a size for 2 axes"),
        ({"stem": 0}, "not a size for 2 axes"),
        ({"filters": [4, 8, 8, 8]}, r"multiples of \[16, 16\]"),
    ],
)
def test_sizes_that_do_not_fit_are_told(options, line):
    with pytest.raises(UserError, match=line):
        UNet(2, **options)(torch.randn(1, 1, 40, 32))
