"""``mitoseg export``: weights and card, ONNX, and what it refuses."""

import json

import numpy as np
import pytest
import tifffile
import torch
from made_checkpoints import predict, run_command, save_checkpoint

from mitoseg.export.onnx_file import open_session
from mitoseg.export.weights import read_facts
from mitoseg.networks.checkpoint import find_weights, load_model


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
        told = capsys.readouterr()
        call.out = told.out
        return code, " ".join(told.err.split())

    return call


def test_weights_and_card(export, tmp_path):
    checkpoint = run_folder(tmp_path / "run")
    code, told = export(f"checkpoint={checkpoint}", "output=mine/model.safetensors")
    assert not code, told
    a, b = load_model(checkpoint), load_model(tmp_path / "mine" / "model.safetensors")
    for name, weight in a.network.state_dict().items():
        torch.testing.assert_close(b.network.state_dict()[name], weight, atol=1e-2, rtol=1e-2)
    card = (tmp_path / "mine" / "CARD.md").read_text()
    words = ("# mine", "none found", "Lucchi et al.", "143,458", "0.9000", "0.9500", "5 x 5 x 5 nm", "## Limits")
    assert all(word in card for word in (*words, "commit abc"))
    assert "/x" not in card


def test_the_card_of_a_start_model_that_was_kept_has_its_own_scores(export, tmp_path):
    checkpoint = run_folder(tmp_path / "run")
    found = {"kept": "start", "validation": {"jaccard_foreground": 0.8}, "start": {"jaccard_foreground": 0.3}}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(found))
    assert not export(f"checkpoint={checkpoint}", "output=mine/model.safetensors")[0]
    card = (tmp_path / "mine" / "CARD.md").read_text()
    assert "0.3000" in card
    assert "0.8000" not in card
    assert "lucchi" not in card


def test_onnx_tells_what_it_is(export, tmp_path):
    checkpoint = run_folder(tmp_path / "run")
    code, told = export(f"checkpoint={checkpoint}", "output=mine/model.onnx", "form=strided")
    assert not code, told
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["model.onnx"]
    for word in ("ONNX, form strided", "input   b c=1 y x", "output  b c=1 y/8 x/8", "largest difference"):
        assert word in export.out
    about = open_session(tmp_path / "mine" / "model.onnx").get_modelmeta().custom_metadata_map
    assert (about["commit"], about["data_licence"]) == ("abc", "none found")


def test_weights_go_round(export, tmp_path, monkeypatch):
    save_checkpoint("a.ckpt", calibration={"prior_shift": 0.0, "temperature": 10.0, "bias": 0.0})
    assert not export("checkpoint=a.ckpt", "output=mine/model.safetensors", "name=Mine")[0]
    card = (tmp_path / "mine" / "CARD.md").read_text()  # of a checkpoint alone
    assert card.startswith("# Mine\n")
    assert card.count("Not recorded.") == 2
    tifffile.imwrite("a.tif", np.random.default_rng(0).integers(0, 255, (2, 40, 48), np.uint8))
    for name, checkpoint in (("a", "a.ckpt"), ("b", "mine/model.safetensors"), ("c", "mine")):
        assert not predict(monkeypatch, f"checkpoint={checkpoint}", "input=a.tif", f"output={name}_out.tif")
    a, b, c = (tifffile.imread(f"{name}_out.tif") for name in "abc")
    assert np.abs(b - a).mean() < 0.01  # kernels are in half precision
    np.testing.assert_array_equal(b, c)
    assert np.ptp(a) > 0.05
    (tmp_path / "again").mkdir()
    assert not export("checkpoint=mine", "output=again/model.safetensors")[0]
    one, two = (load_model(tmp_path / name / "model.safetensors").network.state_dict() for name in ("mine", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_card_of_the_bundled_model_gives_its_facts():
    facts = read_facts(find_weights(None).with_name("CARD.md").read_text(encoding="utf-8"))
    assert facts["name"] == "lucchi"
    assert "Lucchi" in facts["citation"]
    assert facts["commit"].startswith("29eb371")
    assert read_facts("# nothing") == {}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["checkpoint=a.ckpt"], "output has no value"),
        (["output=b/m.safetensors"], "checkpoint has no value"),
        (["checkpoint=no.ckpt", "output=b/m.safetensors"], "no such checkpoint"),
        (["checkpoint=a.ckpt", "output=b/m.pt"], "cannot export to that suffix"),
        (["checkpoint=a.ckpt", "output=b/m.safetensors", "format=tflite"], "cannot export to that format: 'tflite'"),
        (["checkpoint=a.ckpt", "output=b/m.safetensors", "format=onnx"], "give output=NAME.onnx"),
        (["checkpoint=a.ckpt", "output=b/m.onnx", "format=bioimageio"], "give output=NAME.zip"),
        (["checkpoint=a.ckpt", "output=b/m.onnx", "form=tile"], "form tile is for networks that predict whole tiles"),
        (["checkpoint=a.ckpt", "output=b/m.onnx", "form=all"], "no such form"),
        (["checkpoint=a.ckpt", "output=b/m.zip", "form=dense"], "form is for format=onnx, not bioimageio"),
        (["checkpoint=a.ckpt", "output=there/a.onnx"], "the output exists"),
        (["checkpoint=a.ckpt", "output=there/model.safetensors"], "exists"),
    ],
)
def test_mistakes_get_one_line(export, tmp_path, words, line):
    save_checkpoint("a.ckpt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "there" / "a.onnx").write_bytes(b"x")
    code, told = export(*words)
    assert code == 1
    assert line in told
    assert told.startswith("error: ")
    assert not list(tmp_path.glob("b/*"))
