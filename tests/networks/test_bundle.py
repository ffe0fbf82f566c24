"""Weights as safetensors: round trip, and files that are none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mitoseg.errors import UserError
from mitoseg.networks import UNet
from mitoseg.networks.checkpoint import (
    FOLDER,
    FORMAT,
    bundled,
    find_weights,
    load_model,
    read_checkpoint,
    read_weights,
    write_weights,
)

CONFIG = {"_target_": "mitoseg.networks.UNet", "spatial_dims": 2, "filters": [4, 8, 8], "strides": [2, 2]}
RECORD = {
    "format": FORMAT,
    "version": "1",
    "network": CONFIG,
    "normalization": {"mean": 1.5, "std": 2.0},
    "channels": "single",
    "voxel_size": [5.0, 5.0, 5.0],
    "calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.25},
    "threshold": 0.375,
    "method": "auto",
    "precision": {},
}


def network():
    torch.manual_seed(0)
    return UNet(**{k: v for k, v in CONFIG.items() if k != "_target_"})


def test_a_model_comes_back(tmp_path):
    net = network()
    net(torch.randn(4, 1, 32, 32))  # moves the running statistics of BatchNorm
    write_weights(tmp_path / "a.safetensors", net.state_dict(), RECORD)
    model = load_model(tmp_path / "a.safetensors")
    assert (model.threshold, model.channels, model.voxel_size) == (0.375, "single", (5.0, 5.0, 5.0))
    assert model.record["calibration"] == RECORD["calibration"]
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), net.eval()(image), atol=1e-2, rtol=1e-2)
    for name, weight in net.state_dict().items():
        found = model.network.state_dict()[name]
        assert found.dtype == weight.dtype
        assert torch.equal(found, weight if weight.ndim < 2 else weight.half().float())
    kernels = sum(w.numel() for w in net.parameters() if w.ndim > 1)
    assert (tmp_path / "a.safetensors").stat().st_size < 2 * kernels + 30_000


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64),
        *(None, {"mitoseg": "[1]"}, {"mitoseg": "null"}, {"mitoseg": "{"}, {"other": "{}"}),
    ],
)
def test_other_files_are_told(content, tmp_path):
    path = tmp_path / "a.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({"a": torch.zeros(2)}, path, metadata=content)
    with pytest.raises(UserError, match=r"not a file of weights|not written by mitoseg"):
        read_checkpoint(path)


def test_a_record_that_names_code_is_refused(tmp_path):
    record = json.loads(json.dumps(RECORD)) | {"network": {"_target_": "os.system", "command": "echo"}}
    write_weights(tmp_path / "a.safetensors", {}, record)
    with pytest.raises(UserError, match="outside mitoseg"):
        load_model(tmp_path / "a.safetensors")


def test_names_and_paths(tmp_path):
    assert find_weights(tmp_path / "x.ckpt") == tmp_path / "x.ckpt"
    for name in bundled():
        assert find_weights(name) == FOLDER / name / "model.safetensors"
        assert read_weights(find_weights(name))[1]["format"] == FORMAT
