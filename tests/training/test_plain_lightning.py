"""The module and the datamodules alone, under a plain Lightning Trainer."""

import re
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import mitoseg
from mitoseg.networks.checkpoint import load_model
from mitoseg.training import SegmentationModule
from mitoseg.volumes import Normalization

NETWORK = {"_target_": "mitoseg.networks.UNet", "filters": [4, 8, 8], "strides": [2, 2]}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "max_epochs": 1,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_script_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Trainer" in code)
    names = {}
    exec(compile(script.replace("max_epochs=4", "max_epochs=1"), "PYTHON.md", "exec"), names)
    assert names["mask"].shape == (3, 96, 96)
    trained, predicting = names["module"].network.state_dict(), names["model"].model.network.state_dict()
    assert all(torch.equal(trained[name], predicting[name]) for name in trained)
    assert names["module"].threshold == names["model"].threshold


class Own(pl.LightningDataModule):
    """A datamodule of somebody else: torch's loaders, no weights, positions or priors."""

    def __init__(self, channels=1, **said):
        super().__init__()
        rng = np.random.default_rng(0)
        label = (rng.random((6, 32, 32)) < 0.3).astype(np.int64)
        self.image = (label[:, None] + rng.normal(0, 0.3, (6, channels, 32, 32))).astype(np.float32)
        self.label = label
        vars(self).update(said)

    def train_dataloader(self):
        return DataLoader([{"image": i, "label": t} for i, t in zip(self.image, self.label, strict=True)], 2)

    def val_dataloader(self):
        items = [{"image_cyx": i, "label_yx": t} for i, t in zip(self.image, self.label, strict=True)]
        return DataLoader(items, batch_size=None)


@pytest.mark.filterwarnings("ignore:.*num_workers", "ignore:.*log_every_n_steps")
def test_any_datamodule_will_do():
    module = SegmentationModule(network_config=NETWORK)
    run = pl.Trainer(**QUIET)
    run.fit(module, datamodule=Own(normalization=Normalization(7.0, 2.0), voxel_size=(8, 4, 4)))
    run.save_checkpoint("a.ckpt")
    model = load_model("a.ckpt")
    assert (model.normalization, model.channels, model.voxel_size) == ({"mean": 7, "std": 2}, "single", (8, 4, 4))
    again = SegmentationModule.load_from_checkpoint("a.ckpt", weights_only=True)
    assert (again.calibration, again.threshold) == (module.calibration, module.threshold)
    other = pl.Trainer(**QUIET)
    other.fit(again, datamodule=Own(normalization=Normalization(7.0, 2.0)))  # from the start: nothing is resumed
    assert other.global_step == 3


@pytest.mark.parametrize(
    ("data", "config", "words"),
    [
        ({}, NETWORK, "how images are normalised"),
        ({"channels": 3, "normalization": Normalization(0, 1)}, NETWORK | {"in_channels": 3}, "how channels are made"),
    ],
)
def test_a_datamodule_that_says_too_little_is_told(data, config, words):
    with pytest.raises(mitoseg.UserError, match=words):
        pl.Trainer(**QUIET).fit(SegmentationModule(network_config=config), datamodule=Own(**data))


def test_a_config_is_data():
    with pytest.raises(mitoseg.UserError, match="network_config="):
        SegmentationModule()
    with pytest.raises(mitoseg.UserError, match="outside mitoseg"):
        SegmentationModule(network_config={"_target_": "os.system", "command": "echo"})
