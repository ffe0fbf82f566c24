"""``mitoseg export``: weights and card, and what it refuses."""

import json

import pytest
import torch
from made_checkpoints import run_command, save_checkpoint

from mitoseg.networks.checkpoint import load_model


def run_folder(folder):
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(folder / "checkpoints" / "best.ckpt")
    provenance = {"data": {"name": "lucchi", "licence": "none found", "citation": "Lucchi et al."}, "commit": "abc"}
    (folder / "provenance.json").write_text(json.dumps({**provenance, "arguments": ["data=lucchi", "data.root=/x"]}))
    scores = {"jaccard_foreground": 0.9, "jaccard_background": 0.99, "jaccard_mean": 0.945}
    (folder / "metrics.json").write_text(json.dumps({"validation": scores, "test": scores | {"precision": 0.95}}))
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = run_command(monkeypatch, "export", *words)
        return code, " ".join(capsys.readouterr().err.split())

    return call


def test_weights_and_card(export, tmp_path):
    checkpoint = run_folder(tmp_path / "run")
    code, told = export(f"checkpoint={checkpoint}", "output=mine/model.safetensors")
    assert not code, told
    a, b = load_model(checkpoint), load_model(tmp_path / "mine" / "model.safetensors")
    for name, weight in a.network.state_dict().items():
        torch.testing.assert_close(b.network.state_dict()[name], weight, atol=1e-2, rtol=1e-2)
    card = (tmp_path / "mine" / "CARD.md").read_text()
    for word in (
        "# mine",
        "none found",
        "Lucchi et al.",
        "143,458",
        "0.9000",
        "0.9500",
        "5 x 5 x 5 nm",
        "commit abc",
        "## Limits",
    ):
        assert word in card
    assert "/x" not in card


def test_a_checkpoint_alone_has_a_card_that_says_so(export, tmp_path):
    save_checkpoint("a.ckpt")
    assert not export("checkpoint=a.ckpt", "output=mine/model.safetensors", "name=Mine")[0]
    card = (tmp_path / "mine" / "CARD.md").read_text()
    assert card.startswith("# Mine\n")
    assert card.count("Not recorded.") == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["checkpoint=a.ckpt"], "output has no value"),
        (["output=b/m.safetensors"], "checkpoint has no value"),
        (["checkpoint=no.ckpt", "output=b/m.safetensors"], "no such checkpoint"),
        (["checkpoint=a.ckpt", "output=b/m.pt"], "cannot export to that suffix"),
        (["checkpoint=a.ckpt", "output=b/m.safetensors", "format=onnx"], "cannot export to that format"),
        (["checkpoint=a.ckpt", "output=there/model.safetensors"], "exists"),
    ],
)
def test_mistakes_get_one_line(export, tmp_path, words, line):
    save_checkpoint("a.ckpt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_bytes(b"x")
    code, told = export(*words)
    assert code == 1
    assert line in told
    assert told.startswith("error: ")
    assert not list(tmp_path.glob("b/*"))
