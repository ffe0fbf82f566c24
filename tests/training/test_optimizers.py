"""The stock schedule, rate by rate, and what one step does."""

from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf

from mitoseg.errors import UserError
from mitoseg.networks import PatchCNN
from mitoseg.training import adamw, one_cycle, sgd_paper, stages
from mitoseg.workflows.train import choose_precision


def test_rates_of_each_kind_of_parameter():
    network = PatchCNN()
    rates = {id(p): group["lr"] for group in sgd_paper(network).param_groups for p in group["params"]}
    names = dict(network.named_parameters())
    assert len(rates) == len(names)
    for name, parameter in names.items():
        expected = 0.05 * (2 if name.endswith("bias") else 0.1) * (0.1 if ".fc." in name else 1)
        assert rates[id(parameter)] == pytest.approx(expected), name


def test_two_steps_equal_the_update_written_out():
    """v <- 0.9 v + (g + 1e-4 w);  w <- w - rate v, for filters and biases alike."""
    torch.manual_seed(0)
    network = PatchCNN()
    optimizer = sgd_paper(network)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    weights = {id(p): p.detach().clone() for p in network.parameters()}
    speeds = {key: torch.zeros_like(w) for key, w in weights.items()}
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        for p in network.parameters():
            speeds[id(p)] = 0.9 * speeds[id(p)] + p.grad + 1e-4 * weights[id(p)]
            weights[id(p)] = weights[id(p)] - rates[id(p)] * speeds[id(p)]
        optimizer.step()
    for p in network.parameters():
        torch.testing.assert_close(p.detach(), weights[id(p)], rtol=1e-5, atol=1e-7)


def rates_of(schedule, optimizer, steps):
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("epochs", "expected"), [(45, (30, 10, 5)), (9, (6, 2, 1))])
def test_stages_of_the_stock_schedule(epochs, expected):
    steps_per_epoch = 7
    optimizer = sgd_paper(PatchCNN())
    rates = rates_of(stages(optimizer, epochs * steps_per_epoch), optimizer, epochs * steps_per_epoch)
    by_hand = [r for n, r in zip(expected, (5e-3, 5e-4, 5e-5), strict=True) for _ in range(n * steps_per_epoch)]
    assert rates == pytest.approx(by_hand)


def test_one_cycle_rises_and_falls():
    optimizer = adamw(PatchCNN(), lr=1e-3)
    rates = rates_of(one_cycle(optimizer, 100, warmup=0.2, final=1e-2), optimizer, 100)
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert 15 <= rates.index(max(rates)) <= 21
    assert rates[-1] == pytest.approx(1e-5, rel=0.6)


@pytest.mark.parametrize("native", [True, False])
def test_precision_follows_the_device_and_clipping_needs_an_unfused_optimizer(monkeypatch, native):
    monkeypatch.setattr("mitoseg.workflows.train.has_bf16", lambda device: native)
    trainer = {"precision": "auto", "accelerator": "cpu", "gradient_clip_val": None}
    cfg = OmegaConf.create({"trainer": trainer, "optimizer": {"fused": True}})
    choose_precision(cfg)
    assert cfg.trainer.precision == ("bf16-mixed" if native else "32-true")
    cfg.trainer.gradient_clip_val = 1.0
    with pytest.raises(UserError, match=r"add optimizer\.fused=false") if native else nullcontext():
        choose_precision(cfg)
    cfg.optimizer.fused = False
    choose_precision(cfg)
