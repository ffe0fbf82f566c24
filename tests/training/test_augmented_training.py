"""Training on augmented tiles with other losses, in one short run each."""

import pytest
import torch
from disc_training import Discs, trainer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback

from mitoseg.cli.launch import default_config_dir
from mitoseg.networks import UNet
from mitoseg.sampling import TileDataModule
from mitoseg.training import SegmentationModule, adamw
from mitoseg.training.losses import DeepSupervision

SMALL = {"filters": [4, 8, 12, 16], "strides": [2, 2, 2], "stem": 2, "deep_supervision": 1}
RUNS = {
    2: (["augmentation=em_strong", "loss=boundary"], {"tile": (1, 32, 32), "channels": "adjacent5"}),
    3: (
        ["augmentation=em", "augmentation.volumetric=true", "loss=lovasz_cross_entropy"],
        {"tile": (4, 32, 32), "channels": "single"},
    ),
}


class Seen(Callback):
    """Keeps what the network was given, and its losses."""

    def __init__(self):
        self.labels, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.labels.append(batch["label"])
        self.losses.append(float(outputs["loss"]))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("ndim", RUNS)
def test_a_short_run(ndim, tmp_path):
    """The same losses twice; deformed tiles with labels of 0, 1 and 255; nothing that is not finite."""
    words, options = RUNS[ndim]
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        cfg = compose("train", [*words, "hydra.mode=RUN"])
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        augmentation = instantiate(cfg.augmentation)
        given = {"spatial_dims": ndim, "batch_size": 4, "epoch_tiles": 16, "augmentation": augmentation}
        strides = SMALL["strides"] if ndim == 2 else [[1, 2, 2], 2, 1]
        stem = 2 if ndim == 2 else [1, 2, 2]
        network = UNet(ndim, 5 if ndim == 2 else 1, **SMALL | {"strides": strides, "stem": stem})
        loss = DeepSupervision(instantiate(cfg.loss), cfg.head_weights)
        model = SegmentationModule(network, {}, lambda n: adamw(n), loss=loss, tiles=True)
        seen = Seen()
        run = trainer(tmp_path, callbacks=[seen], enable_checkpointing=False, limit_val_batches=0)
        run.fit(model, datamodule=TileDataModule(Discs, **given, **options))
        runs.append(seen)
    assert len(runs[0].losses) == 8
    assert runs[0].losses == runs[1].losses
    assert all(0 < value < 100 for value in runs[0].losses)
    assert set(torch.cat(runs[0].labels).unique().tolist()) == {0, 1, 255}
