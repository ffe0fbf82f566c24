"""Losses against torch, MONAI, NumPy and SciPy; ignored voxels, precision, gradients, several heads."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from disc_training import datamodule, module, trainer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from monai.losses import DiceCELoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from omegaconf import OmegaConf
from scipy.ndimage import distance_transform_edt
from torch import nn

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.training.losses import (
    BoundaryCrossEntropy,
    CrossEntropy,
    DeepSupervision,
    Lovasz,
    MonaiLoss,
    Sum,
    lovasz_hinge,
    squared_border_distance,
)

CONFIGS = sorted((default_config_dir() / "loss").glob("*.yaml"))
ONE_HOT = {"to_onehot_y": True, "softmax": True}
SHAPES = [(), (9, 11), (3, 9, 11)]


def batch(shape, ignored=0.2, samples=5, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, 2, *shape, generator=generator, dtype=dtype)
    label = (torch.rand(samples, *shape, generator=generator) < 0.4).long()
    label[torch.rand(label.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), label


def from_config(path: Path):
    return instantiate(OmegaConf.load(path))


CASES = [
    pytest.param(path, shape, id=f"{path.stem}-{len(shape)}d")
    for path in CONFIGS
    for shape in SHAPES
    if shape or path.stem != "boundary"
]


@pytest.mark.parametrize(("path", "shape"), CASES)
class TestEveryConfig:
    def test_ignored_voxels_contribute_nothing(self, path, shape):
        loss, (logits, label) = from_config(path), batch(shape)
        value = loss(logits, label)
        assert value.shape == ()
        (gradient,) = torch.autograd.grad(value, logits)
        ignored = (label == 255)[:, None].expand_as(logits)
        assert not gradient[ignored].any()
        assert gradient[~ignored].any()
        other = torch.where(ignored, 50 * torch.randn_like(logits), logits)
        assert torch.equal(loss(other, label), value)

    def test_nothing_but_ignored_voxels(self, path, shape):
        loss, (logits, label) = from_config(path), batch(shape)
        value = loss(logits, torch.full_like(label, 255))
        value.backward()
        assert value == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))

    @pytest.mark.parametrize("only", [0, 1])
    def test_one_class_alone_is_finite(self, path, shape, only):
        loss, (logits, label) = from_config(path), batch(shape)
        value = loss(logits, torch.full_like(label, only))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()

    def test_autocast_changes_nothing_but_the_input(self, path, shape):
        loss, (logits, label) = from_config(path), batch(shape)
        coarse = logits.detach().bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(coarse, label)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(coarse.float(), label))
        value.backward()
        assert torch.isfinite(coarse.grad).all()

    def test_better_scores_cost_less(self, path, shape):
        loss, (_, label) = from_config(path), batch(shape)
        right = torch.stack([1.0 - 2 * (label == 1), 2.0 * (label == 1) - 1], dim=1)
        values = [float(loss(scale * right, label)) for scale in (-4, 0, 0.25, 4)]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[1] > values[3] >= 0


IN_DOUBLE = [path for path in CONFIGS if path.stem != "focal"]  # which MONAI computes in float32


@pytest.mark.parametrize("path", IN_DOUBLE, ids=lambda path: path.stem)
def test_gradients(path):
    logits, label = batch((3, 4), samples=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: from_config(path)(given, label), logits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.1, None), (0.0, [1.0, 4.0])])
def test_cross_entropy_is_that_of_torch(shape, smoothing, weights):
    logits, label = batch(shape)
    as_tensor = None if weights is None else torch.tensor(weights)
    oracle = nn.CrossEntropyLoss(as_tensor, label_smoothing=smoothing, ignore_index=255)(logits, label)
    torch.testing.assert_close(CrossEntropy(smoothing, weights)(logits, label), oracle)


def test_cross_entropy_of_extreme_scores_is_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    value = CrossEntropy()(logits, torch.tensor([1, 1]))
    value.backward()
    assert value == 1e4
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", [DiceLoss, TverskyLoss, GeneralizedDiceLoss, DiceCELoss])
@pytest.mark.parametrize("pooled", [True, False])
def test_monai_without_ignored_voxels(kind, pooled):
    """Pooled is MONAI's ``batch=True``, and the mean of the samples MONAI's default."""
    logits, label = batch((9, 11), ignored=0)
    oracle = kind(**ONE_HOT, batch=pooled)(logits, label[:, None])
    torch.testing.assert_close(MonaiLoss(kind(**ONE_HOT), pooled=pooled)(logits, label), oracle)


def test_monai_on_a_part_is_monai_on_that_part_alone():
    logits, label = batch((9, 11), ignored=0)
    cut = label.clone()
    cut[:, 4:] = 255
    cut[3] = 255
    for pooled in (True, False):
        loss = MonaiLoss(DiceLoss(**ONE_HOT), pooled=pooled)
        kept = [0, 1, 2, 4]
        torch.testing.assert_close(loss(logits, cut), loss(logits[kept, :, :4], label[kept, :4]))


def naive_lovasz(log_odds, truth):
    """The definition: the Jaccard loss of growing sets of mistakes, worst first."""
    sign = 2.0 * truth - 1
    errors = 1 - log_odds * sign
    order = np.argsort(-errors, kind="stable")

    def jaccard_loss(wrong):
        predicted = np.where(wrong, 1 - truth, truth)
        union = np.sum((predicted == 1) | (truth == 1))
        return 0.0 if union == 0 else 1 - np.sum((predicted == 1) & (truth == 1)) / union

    wrong, total, before = np.zeros(len(truth), bool), 0.0, 0.0
    for k in order:
        wrong[k] = True
        after = jaccard_loss(wrong)
        total += max(0.0, errors[k]) * (after - before)
        before = after
    return total


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_its_definition(share, seed):
    rng = np.random.default_rng(seed)
    log_odds, truth = 2 * rng.normal(size=60), (rng.random(60) < share).astype(int)
    found = lovasz_hinge(torch.tensor(log_odds), torch.tensor(truth))
    assert float(found) == pytest.approx(naive_lovasz(log_odds, truth), rel=1e-6)


def test_lovasz_of_plain_mistakes_is_the_jaccard_loss():
    """Hinge errors of 1 and 0 make it 1 - JAC itself."""
    _, label = batch((30, 30), ignored=0)
    wrong = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    predicted = torch.where(wrong, 1 - label, label)
    margin = torch.where(wrong, 0.0, 2 * label - 1.0)  # an error of exactly 1 where wrong
    logits = torch.stack([torch.zeros_like(margin), margin], dim=1)
    both, either = ((predicted + label) == 2).sum(), ((predicted + label) > 0).sum()
    torch.testing.assert_close(Lovasz()(logits, label), 1 - both / either)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((20, 25), [1, 1]), ((6, 20, 25), [1, 1, 1]), ((6, 20, 25), [4, 1, 1.5])]
)
@pytest.mark.parametrize("reach", [1, 4.3, 40])
def test_border_distance_is_that_of_scipy(shape, spacing, reach):
    _, label = batch(shape, ignored=0, samples=2)
    label[:, ..., 5:, 3:12] = 0
    label[1, ..., 8:20] = 1
    label[0, ..., :3] = 255
    found = squared_border_distance(label, reach, spacing)
    for sample, truth in zip(found.numpy(), label.numpy(), strict=True):
        to_fg, to_bg = (distance_transform_edt(truth != c, sampling=spacing) for c in (1, 0))
        distance = np.where(truth == 1, to_bg, to_fg)
        inside = (distance <= reach) & (truth != 255)
        np.testing.assert_allclose(sample[inside] ** 0.5, distance[inside], rtol=1e-5)
        assert np.isinf(sample[(distance > reach) & (truth != 255)]).all()


def test_boundary_weights_by_hand():
    """A row with one border: weights 1 + 4 exp(-d^2 / 2) at distances 3 2 1 | 1 2 3, times the cross-entropy."""
    label = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    logits = torch.randn(1, 2, 1, 6, generator=torch.Generator().manual_seed(0))
    weight = 1 + 4 * torch.exp(-(torch.tensor([3.0, 2, 1, 1, 2, 3]) ** 2) / 2)
    each = nn.functional.cross_entropy(logits, label, reduction="none").flatten()
    found = BoundaryCrossEntropy(weight=4, sigma=1)(logits, label)
    torch.testing.assert_close(found, (weight * each).sum() / weight.sum())


def test_a_tile_without_border_gives_cross_entropy():
    logits, label = batch((9, 11), ignored=0)
    label[:] = 0
    torch.testing.assert_close(BoundaryCrossEntropy()(logits, label), CrossEntropy()(logits, label))


def test_sum_weights_its_terms():
    logits, label = batch((9, 11))
    terms = [{"loss": CrossEntropy(), "weight": 2.0}, {"loss": Lovasz()}]
    expected = 2 * CrossEntropy()(logits, label) + Lovasz()(logits, label)
    torch.testing.assert_close(Sum(terms)(logits, label), expected)
    torch.testing.assert_close(Sum({"a": terms[0], "b": terms[1]})(logits, label), expected)


def composed(*words):
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        return compose("train", [*words, "hydra.mode=RUN"])


def heads(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 2, 8, 8, generator=generator), torch.randint(2, (2, 8, 8), generator=generator)


def test_plain_logits_pass_through():
    logits, label = heads()
    assert torch.equal(DeepSupervision(Lovasz(), [1, 1])(logits[:, 0], label), Lovasz()(logits[:, 0], label))
    block, one = logits[:, 0, :, 0, 0], label[:, 0, 0]
    assert torch.equal(DeepSupervision(CrossEntropy())(block, one), CrossEntropy()(block, one))


@pytest.mark.parametrize(("weights", "shares"), [(None, (4 / 7, 2 / 7, 1 / 7)), ([3, 1, 0], (0.75, 0.25, 0))])
def test_heads_are_weighted(weights, shares):
    logits, label = heads()
    each = [CrossEntropy()(logits[:, head], label) for head in range(3)]
    expected = sum(share * value for share, value in zip(shares, each, strict=True))
    loss = DeepSupervision(CrossEntropy(), weights)
    torch.testing.assert_close(loss(logits, label), expected)


BAD = {
    "not a fraction": lambda: CrossEntropy(label_smoothing=1.0),
    "two positive numbers": lambda: CrossEntropy(class_weights=[1.0]),
    "three numbers": lambda: BoundaryCrossEntropy(spacing=[1.0, 1.0]),
    "spacing must be positive": lambda: BoundaryCrossEntropy(spacing=[0.0, 1.0, 1.0]),
    "sigma must be positive": lambda: BoundaryCrossEntropy(sigma=0.0),
    "no terms": lambda: Sum([]),
    "weight must be positive": lambda: Sum([{"loss": Lovasz(), "weight": 0.0}]),
    "head weights are not positive": lambda: DeepSupervision(Lovasz(), [0.0]),
    "head weights are not positive: .nan": lambda: DeepSupervision(Lovasz(), [math.nan]),
    "needs a weight": lambda: DeepSupervision(CrossEntropy(), [1.0, 1.0])(*heads(3)),
    "two scores for each label": lambda: Lovasz()(torch.zeros(3, 2, 4, 4), torch.zeros(3, 4, 5, dtype=torch.long)),
    "two scores": lambda: Lovasz()(torch.zeros(3, 3), torch.zeros(3, dtype=torch.long)),
    "needs tiles": lambda: BoundaryCrossEntropy()(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_options(words):
    with pytest.raises(UserError, match=words):
        BAD[words]()


def test_options_from_the_command_line():
    cfg = composed("loss=lovasz_cross_entropy", "loss.terms.lovasz.weight=0.25", "head_weights=[1,0.5]")
    loss = DeepSupervision(instantiate(cfg.loss), cfg.head_weights)
    logits, label = heads(2)
    each = [0.25 * Lovasz()(head, label) + CrossEntropy()(head, label) for head in logits.unbind(1)]
    torch.testing.assert_close(loss(logits, label), (2 * each[0] + each[1]) / 3)


def test_training_with_another_loss(tmp_path):
    """Blocks learn with it."""
    model = module(loss=DeepSupervision(instantiate(composed("loss=lovasz_cross_entropy").loss)))
    run = trainer(tmp_path)
    run.fit(model, datamodule=datamodule())
    assert run.callback_metrics["val/jaccard_foreground"] > 0.6
