"""The file itself: what it says of itself, and that a bad one is not kept."""

import json
import sys

import numpy as np
import pytest
import torch
from exported_models import block_model, model_of, unet_model
from monai.networks.nets import UNETR, AttentionUnet

from mitoseg.errors import UserError
from mitoseg.export import onnx_file
from mitoseg.export.onnx_file import export_onnx, open_session


def test_it_says_what_it_is(tmp_path):
    facts = {"licence": "none found", "title": "EPFL", "commit": "abc"}
    told = export_onnx(block_model(), tmp_path / "a.onnx", form="strided", facts=facts)
    session = open_session(tmp_path / "a.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about["form"] == told.form == "strided"
    assert json.loads(about["input_axes"]) == ["b", "c", "y", "x"]
    assert json.loads(about["voxel_size_nm_zyx"]) == [5.0, 5.0, 5.0]
    assert json.loads(about["slices_of_channels"]) == [-1, 0, 1]
    assert (json.loads(about["window"]), json.loads(about["answers"])) == ([32, 32], [16, 16])
    assert json.loads(about["output_stride"]) == [8, 8]
    assert (float(about["threshold"]), float(about["mean"]), float(about["std"])) == (0.4, 120.0, 60.0)
    assert (about["data_licence"], about["data"], about["commit"]) == ("none found", "EPFL", "abc")
    assert about["data_citation"] == "not recorded"
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", ["b", 3, "y", "x"])]
    assert [o.name for o in session.get_outputs()] == ["probability"]
    assert told.difference < 1e-5
    assert len(told.shapes) == 2
    assert (told.input, told.output) == ("b c=3 y x", "b c=1 y/8 x/8")


@pytest.mark.parametrize(
    ("form", "other", "by"),
    [
        ("dense", lambda p: p + np.float32(2e-4), r"0\.0002"),
        ("block", lambda p: p + np.float32(2e-4), r"0\.0002"),
        ("dense", lambda p: p[..., :1], "inf"),
        ("dense", lambda p: p * np.float32("nan"), "nan"),
    ],
)
def test_a_file_that_answers_otherwise_is_not_kept(form, other, by, tmp_path, monkeypatch):
    right = onnx_file.expected
    monkeypatch.setattr(onnx_file, "expected", lambda *a: other(right(*a)))
    with pytest.raises(UserError, match=f"differ from the network's by up to {by}"):
        export_onnx(block_model(), tmp_path / "a.onnx", form=form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_library_is_told(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"this needs a library: '{missing}'; run pip install .mitoseg\[exchange\]"):
        export_onnx(block_model(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"mine")
    with pytest.raises(UserError, match="the output exists"):
        export_onnx(block_model(), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == b"mine"
    export_onnx(block_model(), tmp_path / "a.onnx", form="block", overwrite=True)
    (found,) = open_session(tmp_path / "a.onnx").run(None, {"image": np.zeros((1, 3, 32, 32), np.float32)})
    assert found.shape == (1, 2)


def test_a_network_of_unknown_sizes_has_one(tmp_path):
    network = AttentionUnet(2, 1, 2, channels=[4, 8, 8], strides=[2, 2])
    told = export_onnx(model_of(network), tmp_path / "a.onnx", tile=(1, 32, 48))
    assert told.input == "b c=1 y=32 x=48"
    with pytest.raises(UserError, match="tile is not a size"):
        export_onnx(model_of(network), tmp_path / "b.onnx", tile=(1, 0, 48))


def test_a_size_that_the_network_does_not_take_is_told(tmp_path):
    network = UNETR(
        1, 2, img_size=[16, 32, 32], feature_size=4, hidden_size=12, mlp_dim=24, num_heads=2, spatial_dims=3
    )
    with pytest.raises(UserError, match=r"cannot be exported in that form \(.*tile="):
        export_onnx(model_of(network), tmp_path / "a.onnx", tile=(16, 48, 48))
    assert not list(tmp_path.iterdir())


def test_tracing_leaves_the_network_as_it_was(tmp_path):
    model = unet_model()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = model.network(image)
        export_onnx(model, tmp_path / "a.onnx")
        assert torch.equal(model.network(image), before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert not model.network.training
