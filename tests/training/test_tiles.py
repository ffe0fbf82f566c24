"""Training on whole tiles: the same weights and windows as blocks, U-Nets in 2D and 3D, averages, exact resuming."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from disc_training import Discs, trainer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.nn.functional import cross_entropy

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.inference.methods import log_odds_in_memory
from mitoseg.networks import ContextCNN, PatchCNN, UNet
from mitoseg.networks.checkpoint import load_model
from mitoseg.sampling import SlabLoader, TileDataModule, VolumeBank
from mitoseg.training import SegmentationModule, adamw, one_cycle
from mitoseg.training.callbacks import ShallowConvolutions
from mitoseg.training.checkpointing import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from mitoseg.training.losses import DeepSupervision
from mitoseg.workflows.train import tile_margin

SMALL = {"filters": [8, 12, 16], "strides": [2, 2], "stem": 2}
NETWORKS = {
    2: {"_target_": "mitoseg.networks.UNet", "spatial_dims": 2, "in_channels": 5, **SMALL},
    3: {"_target_": "mitoseg.networks.UNet", "spatial_dims": 3, **SMALL, "stem": [1, 2, 2], "strides": [[1, 2, 2], 2]},
}
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def tiles(spatial_dims=2, **options):
    given = {"spatial_dims": spatial_dims, "batch_size": 4, "epoch_tiles": 32}
    given |= (
        {"tile": (1, 32, 32), "channels": "adjacent5"}
        if spatial_dims == 2
        else {"tile": (4, 32, 32), "channels": "single"}
    )
    return TileDataModule(Discs, **given | options)


def make(spatial_dims, **options):
    torch.manual_seed(0)
    config = NETWORKS[spatial_dims]
    network = UNet(**{k: v for k, v in config.items() if k != "_target_"})
    return SegmentationModule(network, config, lambda n: adamw(n, lr=5e-3), one_cycle, tiles=True, **options)


def fit(folder, spatial_dims, *callbacks, last=None, **options):
    given = {"max_epochs": 4, "log_every_n_steps": 1} | options
    path = given.pop("ckpt_path", None)
    model = make(spatial_dims)
    listed = [*callbacks, BestCheckpoint(folder), LastCheckpoint(folder, minutes=0), *([last] if last else [])]
    run = trainer(folder, callbacks=listed, plugins=[AtomicCheckpointIO()], **given)
    run.fit(model, datamodule=tiles(spatial_dims), ckpt_path=path, weights_only=True)
    return model, run


@pytest.mark.parametrize("network", [ContextCNN, PatchCNN])
def test_every_pixel_of_a_tile_is_trained_by_its_own_window(network):
    """The loss of the dense form on a tile is the mean over blocks, and so are its gradients."""
    torch.manual_seed(0)
    net = network().double()
    module = SegmentationModule(net, {}, lambda n: adamw(n), tiles=True, channels_last=False)
    data = TileDataModule(Discs, tile=(1, 8, 8), margin=tile_margin(net), augment="none", batch_size=1, epoch_tiles=2)
    data.setup()
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (1, 3, 74, 74)
    scores = module(batch["image"].double())
    loss = cross_entropy(scores, batch["label"])
    gradients = torch.autograd.grad(loss, list(net.parameters()))

    bank = VolumeBank(data.splits.train, data.normalization, 67)
    corners = batch["position_b4"].tolist()
    place = torch.tensor([[r, z, y + i, x + j] for r, z, y, x in corners for i in range(8) for j in range(8)])
    oracle = ContextCNN().double()  # PatchCNN is this one without the zeros that it puts around a block
    oracle.load_state_dict(net.state_dict())
    place = place + torch.tensor([0, 0, 3, 3] if network is PatchCNN else [0] * 4)
    unturned = torch.zeros(len(place)), torch.zeros(len(place), dtype=torch.bool)
    answers = oracle(bank.gather(place, *unturned, window=67).double()).flatten(1)
    expected = torch.autograd.grad(cross_entropy(answers, batch["label"].flatten()), list(oracle.parameters()))
    torch.testing.assert_close(scores.movedim(1, -1).reshape(-1, 2), answers, atol=1e-6, rtol=1e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_u_net_learns_discs_and_its_checkpoint_predicts(spatial_dims, tmp_path):
    _, run = fit(tmp_path, spatial_dims, max_epochs=8)
    assert float(run.callback_metrics["val/jaccard_foreground"]) > 0.85
    loaded = load_model(tmp_path / "best.ckpt")
    assert type(loaded.network) is UNet
    assert loaded.channels == ("adjacent5" if spatial_dims == 2 else "single")
    volume = torch.randn(1, 1, 5, 40, 50) if spatial_dims == 3 else torch.randn(3, 5, 40, 50)
    assert log_odds_in_memory("auto", loaded.network, volume).shape == (5 if spatial_dims == 3 else 3, 40, 50)


def test_slabs_see_what_lies_around_them():
    data = tiles(3)
    data.setup()
    loader = data.val_dataloader()
    assert isinstance(loader, SlabLoader)
    (item,) = loader
    region = data.splits.validation[0]
    assert item["image_czyx"].shape == (1, 8, 96, 128)
    assert item["first"] == 5
    np.testing.assert_array_equal(item["label_zyx"], region.read_label())
    whole = data.normalization.apply(region.image.read(region.image.box))
    np.testing.assert_allclose(item["image_czyx"][0], whole)


class KilledError(Exception):
    """Ends a run in the middle."""


class KillAt(pl.Callback):
    """Raises `KilledError` after some steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, run, *_):
        if run.global_step == self.step:
            raise KilledError


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_killed_run_goes_on_with_the_same_average(spatial_dims, tmp_path):
    """The averaged weights and the current ones are those of a run that was not stopped, in the last bit."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "whole", spatial_dims, EMAWeightAveraging(decay=0.9), max_epochs=2)
    with pytest.raises(KilledError):
        fit(tmp_path / "parts", spatial_dims, EMAWeightAveraging(decay=0.9), last=KillAt(11), max_epochs=2)
    resume = {"max_epochs": 2, "ckpt_path": tmp_path / "parts" / "last.ckpt"}
    fit(tmp_path / "parts", spatial_dims, EMAWeightAveraging(decay=0.9), **resume)
    a, b = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(v, b[key][k]) for k, v in a[key].items())
    assert any(not torch.equal(v, a["current_model_state"][k]) for k, v in a["state_dict"].items())


def test_augmentation_gets_image_label_and_seeds():
    seen = []

    def augment(image, label, seed_b):
        seen.append((image.shape, label.shape, seed_b))
        return image + 1, label

    data, plain = tiles(augmentation=augment, margin=(3, 5)), tiles(margin=(3, 5))
    for d in (data, plain):
        d.setup()
    batch, bare = (d.on_after_batch_transfer(next(iter(d.train_dataloader())), 0) for d in (data, plain))
    assert seen[0][:2] == ((4, 5, 40, 40), (4, 40, 40))
    assert len(set(seen[0][2].tolist())) == 4
    torch.testing.assert_close(batch["image"], bare["image"] + 1)
    assert torch.equal(batch["label"], bare["label"])


def test_ignored_voxels_train_nothing():
    module = make(2)
    image, label = torch.randn(2, 5, 32, 32), torch.randint(0, 2, (2, 32, 32))
    half = label.clone()
    half[:, 16:] = 255
    module.network.eval()  # BatchNorm would carry the upper half into the lower
    one = module.training_step({"image": image, "label": half, "weight": 1.0}, 0)
    expected = cross_entropy(module(image)[:, :, :16], label[:, :16])
    torch.testing.assert_close(one, expected)
    assert int(module.block_counts.counts.sum()) == 2 * 16 * 32


def test_shallow_convolutions_are_refused_in_bfloat16(tmp_path):
    options = {"precision": "bf16-mixed", "max_epochs": 1}
    with pytest.raises(UserError, match="give a deeper"):
        fit(tmp_path, 3, ShallowConvolutions(), **options)
    fit(tmp_path, 3, ShallowConvolutions(), max_epochs=1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tile": (2, 32, 32)}, "tiles of one slice"),
        ({"tile": (32, 32)}, "not a size"),
        ({"tile": (1, 0, 32)}, "not a size"),
        ({"spatial_dims": 3, "tile": (2, 32, 32)}, "channels=single"),
        ({"augment": "turns"}, "unknown augment"),
    ],
)
def test_what_does_not_fit_together_is_told(options, line):
    with pytest.raises(UserError, match=line):
        TileDataModule(Discs, **{"tile": (1, 32, 32), "spatial_dims": 2, "channels": "adjacent5", **options})


RUNS = {
    2: ["augmentation=em_strong", "loss=boundary"],
    3: ["augmentation=em", "augmentation.volumetric=true", "loss=lovasz_cross_entropy"],
}


class Seen(pl.Callback):
    """Keeps what the network was given, and its losses."""

    def __init__(self):
        self.labels, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.labels.append(batch["label"])
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("ndim", RUNS)
def test_a_short_run_on_augmented_tiles_with_other_losses(ndim, tmp_path):
    """The same losses twice; deformed tiles with labels of 0, 1 and 255; nothing that is not finite."""
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        cfg = compose("train", [*RUNS[ndim], "hydra.mode=RUN"])
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        augmentation = instantiate(cfg.augmentation)
        deep = {"filters": [4, 8, 12, 16], "deep_supervision": 1}
        deep |= {"strides": [2, 2, 2], "stem": 2} if ndim == 2 else {"strides": [[1, 2, 2], 2, 1], "stem": [1, 2, 2]}
        network = UNet(ndim, 5 if ndim == 2 else 1, **deep)
        loss = DeepSupervision(instantiate(cfg.loss), cfg.head_weights)
        model = SegmentationModule(network, {}, lambda n: adamw(n), loss=loss, tiles=True)
        seen = Seen()
        run = trainer(tmp_path, callbacks=[seen], enable_checkpointing=False, limit_val_batches=0)
        run.fit(model, datamodule=tiles(ndim, epoch_tiles=16, augmentation=augmentation))
        runs.append(seen)
    assert len(runs[0].losses) == 8
    assert runs[0].losses == runs[1].losses
    assert all(0 < value < 100 for value in runs[0].losses)
    assert set(torch.cat(runs[0].labels).unique().tolist()) == {0, 1, 255}
