"""Losses from the command line: deep supervision, bad options, and a short training run."""

import math

import pytest
import torch
from disc_training import datamodule, module, trainer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from monai.networks.nets import DynUNet

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.training.losses import BoundaryCrossEntropy, CrossEntropy, DeepSupervision, Lovasz, Sum


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


def test_the_heads_of_monai():
    """DynUNet stacks its heads in training and gives plain logits afterwards."""
    torch.manual_seed(0)
    network = DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4] * 4, deep_supervision=True, deep_supr_num=2)
    image, label = torch.randn(2, 1, 32, 32), torch.randint(2, (2, 32, 32))
    loss = DeepSupervision(CrossEntropy())
    loss(network(image), label).backward()
    assert all(p.grad is not None for p in network.deep_supervision_heads.parameters())
    with torch.no_grad():
        assert loss(network.eval()(image), label) > 0


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


@pytest.mark.parametrize("name", ["lovasz_cross_entropy", "dice_cross_entropy"])
def test_training_with_another_loss(name, tmp_path):
    """Blocks learn with it, and the checkpoint loads again."""
    model = module(loss=DeepSupervision(instantiate(composed(f"loss={name}").loss)))
    run = trainer(tmp_path)
    run.fit(model, datamodule=datamodule())
    assert run.callback_metrics["val/jaccard_foreground"] > 0.6
    assert (tmp_path / "last.ckpt").is_file()
