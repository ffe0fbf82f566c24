"""Which precision, and when to compile."""

import pytest
import torch

from mitoseg.errors import UserError
from mitoseg.inference import precision
from mitoseg.inference.precision import choose_compile, choose_precision, computing

CPU = torch.device("cpu")


def record(drop):
    return {"precision": {"bf16": {"jaccard_drop": drop}}}


@pytest.mark.parametrize(
    ("native", "found", "chosen"),
    [(True, 0.0002, "bf16"), (True, -0.01, "bf16"), (True, 0.002, "fp32"), (True, None, "fp32"), (False, 0.0, "fp32")],
)
def test_auto_needs_a_small_loss_and_native_arithmetic(monkeypatch, native, found, chosen):
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert choose_precision("auto", CPU, record(found)) == chosen
    assert choose_precision("auto", CPU, {}) == "fp32"


def test_what_the_user_says_is_done():
    assert choose_precision("bf16", CPU, {}) == "bf16"
    assert choose_precision("fp32", CPU, record(0.0)) == "fp32"
    assert choose_precision("auto", torch.device("mps"), record(0.0)) == "fp32"
    with pytest.raises(UserError, match="no such precision"):
        choose_precision("fp16", CPU, {})
    with pytest.raises(UserError, match="no bfloat16"):
        choose_precision("bf16", torch.device("mps"), {})


def test_bf16_is_computed_with():
    layer, image = torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 5, 5)
    with computing("bf16", CPU):
        assert layer(image).dtype == torch.bfloat16
    with computing("fp32", CPU):
        assert layer(image).dtype == torch.float32


def test_compiling_must_pay_and_be_possible(monkeypatch):
    monkeypatch.setattr(precision, "can_compile", lambda device: True)
    assert choose_compile("auto", CPU, 1e15)
    assert not choose_compile("auto", CPU, 1e10)
    assert choose_compile("true", CPU, 0)
    assert not choose_compile(False, CPU, 1e15)
    with pytest.raises(UserError, match="neither true nor false"):
        choose_compile("maybe", CPU, 0)
    monkeypatch.setattr(precision, "can_compile", lambda device: False)
    assert not choose_compile("auto", CPU, 1e15)
    with pytest.raises(UserError, match="cannot compile here"):
        choose_compile(True, CPU, 0)
