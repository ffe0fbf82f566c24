"""Ensembles: the mean of what the members say alone, by every method."""

import numpy as np
import pytest
from small_networks import NORMALIZATION, SmallBlock, SmallUNet, ensemble, grey, member, predict, shaken

from mitoseg.errors import UserError
from mitoseg.inference import Options, Prediction, Predictor, choose_method, make_method
from mitoseg.metrics import Calibration
from mitoseg.networks import ContextCNN, PatchCNN
from mitoseg.networks.kinds import dimensions, input_channels
from mitoseg.volumes import ArrayVolume, Normalization

NUMBERS = [(120.0, 60.0, {}), (100.0, 30.0, {"prior_shift": -2.0, "temperature": 1.5, "bias": 0.2})]


def pair(kind, *arguments, **named):
    """Two networks of a kind that were trained apart, and the ensemble of both."""
    networks = [shaken(kind(*arguments, **named), seed) for seed in (1, 2)]
    names = dict(zip(("ndim", "in_channels"), arguments, strict=False)) | named
    members = [
        member(network, mean, std, calibration=calibration, **names)
        for network, (mean, std, calibration) in zip(networks, NUMBERS, strict=True)
    ]
    return networks, ensemble(networks, members)


def mean_of_each(networks, image, **options):
    found = [
        Calibration(**calibration).apply(predict(network, image, normalization=Normalization(mean, std), **options))
        for network, (mean, std, calibration) in zip(networks, NUMBERS, strict=True)
    ]
    return np.mean(found, axis=0)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", ["dense", "strided", "window", "blend"])
def test_it_is_the_mean_of_its_members(method, ndim):
    networks, both = pair(SmallUNet if method == "blend" else SmallBlock, ndim)
    image, options = grey((9, 12, 13)), {"method": method, "tile": (8, 8, 8)}
    result = predict(both, image, (4, 8, 8), **options)
    np.testing.assert_allclose(result, mean_of_each(networks, image, **options), rtol=0, atol=2e-5)
    assert choose_method("auto", both) == ("blend" if method == "blend" else "dense")


def test_with_neighbouring_slices_and_augmentation():
    networks, both = pair(SmallBlock, 2, 3)
    image, options = grey((9, 12, 13)), {"channels": "adjacent", "tta": "axes"}
    result = predict(both, image, **options)
    np.testing.assert_allclose(result, mean_of_each(networks, image, **options), rtol=0, atol=2e-5)


def test_members_may_see_more_or_less_than_one_another():
    networks = [shaken(PatchCNN(1), 1), shaken(ContextCNN(1), 2)]
    members = [member(n, m, s, calibration=c, in_channels=1) for n, (m, s, c) in zip(networks, NUMBERS, strict=True)]
    both, image = ensemble(networks, members), grey((2, 70, 75))
    for method in ("dense", "strided"):
        result = predict(both, image, (1, 70, 40), method=method)
        np.testing.assert_allclose(result, mean_of_each(networks, image, method=method), rtol=0, atol=2e-5)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", ["dense", "strided", "window"])
def test_the_tile_does_not_matter_to_the_last_bit(method, ndim):
    _, both = pair(SmallBlock, ndim)
    image = grey((9, 13, 14))
    whole = predict(both, image, image.shape, method=method)
    for tile in [(1, 13, 14), (4, 8, 8)]:
        np.testing.assert_array_equal(predict(both, image, tile, method=method), whole)


def test_members_of_different_tiles_blend():
    networks, _ = pair(SmallUNet, 3)
    tiles, image = [(8, 8, 8), (4, 12, 8)], grey((9, 14, 13))
    both = ensemble(networks, [member(n, ndim=3) | {"tile": list(t)} for n, t in zip(networks, tiles, strict=True)])
    each = [predict(n, image, tile=t) for n, t in zip(networks, tiles, strict=True)]
    np.testing.assert_allclose(predict(both, image), np.mean(each, axis=0), rtol=0, atol=2e-5)
    assert [method.tile for method in make_method(both, image.shape, Options()).parts] == tiles


def test_work_and_memory_are_those_of_all_members():
    networks, both = pair(SmallBlock)
    image = ArrayVolume(grey((4, 40, 40)))
    one, two = (
        Predictor(Prediction(network, NORMALIZATION, "single", Calibration(), 0.5), image)
        for network in (networks[0], both)
    )
    assert two.operations((4, 40, 40)) == 2 * one.operations((4, 40, 40))
    assert one.network_bytes((4, 40, 40)) < two.network_bytes((4, 40, 40))
    assert one.choose_tile(1e12) == two.choose_tile(1e12)


def test_every_member_is_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda network, **_: compiled.append(network))
    for kind, options in ((SmallUNet, {"tile": (1, 8, 8)}), (SmallBlock, {"method": "strided"})):
        _, both = pair(kind)
        prediction = Prediction(both, NORMALIZATION, "single", Calibration(), 0.5, tta="flips", **options)
        Predictor(prediction, ArrayVolume(grey((2, 16, 16)))).compile((2, 16, 16))
        assert compiled == [part.network for part in both.parts]
        compiled.clear()


@pytest.mark.parametrize(
    ("networks", "ask", "told"),
    [
        ((SmallBlock(), SmallUNet()), lambda n: choose_method("auto", n), "of blocks and of whole tiles"),
        ((SmallBlock(), SmallUNet()), lambda n: choose_method("dense", n), "needs a block network, not SmallUNet"),
        ((SmallBlock(2), SmallBlock(3)), dimensions, r"differ in axes: \[2, 3\]"),
        ((SmallBlock(2, 1), SmallBlock(2, 3)), input_channels, r"differ in input channels: \[1, 3\]"),
    ],
)
def test_members_that_do_not_fit_together(networks, ask, told):
    def arguments(network):
        if isinstance(network, SmallUNet):
            return {}
        return {"ndim": network.layers[0].weight.ndim - 2, "in_channels": network.in_channels}

    both = ensemble(networks, [member(network, **arguments(network)) for network in networks])
    with pytest.raises(UserError, match=told):
        ask(both)
