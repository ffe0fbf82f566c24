"""The datamodule from recipe to batches, alone and under a Trainer."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from small_regions import Guarded

from mitoseg.datasets import Region, Splits
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling import BlockDataModule, RegionDataModule, TileDataModule
from mitoseg.sampling import datamodule as module_file
from mitoseg.volumes import ArrayVolume


class TwoVolumes:
    """Two volumes of different shapes; the label is the sign of a bright blob, so that blocks can be checked."""

    def __init__(self, shape=(7, 130, 100), stop=4):
        self.shape, self.stop, self.prepared = shape, stop, 0

    def prepare(self):
        self.prepared += 1

    def splits(self):
        train = [Box((0, 0, 0), (self.stop, *self.shape[1:])), Box((1, 10, 0), (3, 80, 90))]
        volumes = []
        for seed, (shape, box) in enumerate([(self.shape, train[0]), ((3, 90, 97), train[1])]):
            rng = np.random.default_rng(seed)
            label_zyx = np.zeros(shape, np.uint8)
            label_zyx[:, 20:75, 24:66] = 1
            image_zyx = (label_zyx * 100 + rng.integers(0, 60, shape)).astype(np.uint8)
            allowed = [box, Box((self.stop + 1, 0, 0), shape)] if seed == 0 else [box]
            volumes.append((ArrayVolume(image_zyx), Guarded(label_zyx, *allowed)))
        regions = tuple(Region(*volume, box) for volume, box in zip(volumes, train, strict=True))
        return Splits(regions, (Region(*volumes[0], Box((self.stop + 1, 0, 0), self.shape)),))


def ready(**options):
    data = BlockDataModule(TwoVolumes, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def gathered(data, epoch=0, batches=None):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, batches)]


@pytest.mark.parametrize(("channels", "window"), [("adjacent", 32), ("repeat", 67), ("single", 32)])
@pytest.mark.parametrize("label_rule", ["purity", "majority", "center"])
@pytest.mark.parametrize("positions", ["grid", "any"])
def test_batches_have_the_contract_s_shape(positions, label_rule, channels, window):
    options = {"channels": channels, "window": window, "epoch_blocks": None if positions == "grid" else 60}
    data = ready(positions=positions, label_rule=label_rule, batch_size=16, **options)
    assert 0 < data.prior < 1
    assert data.batch_prior == 0.5
    for batch in gathered(data, batches=4):
        B = len(batch["label"])
        assert set(batch) == {"image", "label", "position_b4", "weight"}
        assert batch["image"].shape == (B, 1 if channels == "single" else 3, window, window)
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == batch["position_b4"].dtype == torch.int64
        middle = batch["image"][:, :, window // 2 - 16 : window // 2 + 16, window // 2 - 16 : window // 2 + 16]
        grey = middle.mean((1, 2, 3)) * data.normalization.std + data.normalization.mean
        if label_rule != "center":  # what is in the block is what the label says
            assert ((grey > 29.5 + 50) == batch["label"].bool()).all()


def test_the_answered_pixel_stays_in_place_under_center():
    data = ready(positions="any", label_rule="center", balance="none", augment="dihedral", epoch_blocks=200)
    volumes = [region.read_image() for region in data.splits.train]
    for batch in gathered(data):
        for block, (r, z, y, x) in zip(batch["image"], batch["position_b4"].tolist(), strict=True):
            assert block[1, 16, 16] == data.normalization.apply(volumes[r][z, y, x][None])[0]


def test_voxels_may_stay_on_the_host():
    here, there = ready(seed=5), ready(seed=5, voxels_on="host")
    batch = next(iter(there.train_dataloader()))
    gathered_early = there.on_before_batch_transfer(batch, 0)
    assert "angle_b" not in gathered_early
    assert there.on_after_batch_transfer(gathered_early, 0) is gathered_early
    late = next(iter(here.train_dataloader()))
    assert here.on_before_batch_transfer(late, 0) is late
    assert torch.equal(here.on_after_batch_transfer(late, 0)["image"], gathered_early["image"])


def test_the_same_seed_gives_the_same_voxels_whose_positions_can_be_told_afterwards():
    data = ready(seed=5)
    first, again, other = gathered(data, 3), *(gathered(ready(seed=s), 3) for s in (5, 6))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
    for number, batch in enumerate(first):
        assert data.batch_positions(3, number).tolist() == batch["position_b4"].tolist()


def test_setup_is_done_once_and_logged(caplog):
    with caplog.at_level("INFO"):
        data = ready()
        bank = data.bank
        data.setup("validate")
    assert data.bank is bank
    assert data.recipe.prepared == 1
    assert caplog.text.count("Training blocks: positions=any") == 1
    image = np.concatenate([region.read_image().ravel() for region in data.splits.train])
    assert data.normalization.mean == pytest.approx(image.mean())
    assert data.normalization.std == pytest.approx(image.std())


def test_ranks_come_from_torch_distributed(monkeypatch):
    whole = ready()
    assert [item["z"] for item in whole.val_dataloader()] == [0, 1]
    monkeypatch.setattr(module_file.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(module_file.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(module_file.distributed, "get_rank", lambda rank=rank: rank)
        sampler = whole.train_dataloader().sampler
        assert (sampler.rank, sampler.world) == (rank, 2)
        assert [item["z"] for item in whole.val_dataloader()] == [rank]


class Recorder(pl.LightningModule):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch["position_b4"].tolist()))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, batch_idx):
        assert batch["image_cyx"].shape[1:] == batch["label_yx"].shape

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tmp_path, recorder, **options):
    off = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    off["use_distributed_sampler"] = False
    trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=3, accelerator="cpu", **off)
    trainer.fit(recorder, datamodule=BlockDataModule(TwoVolumes, batch_size=8), **options)


def test_a_trainer_sees_each_epoch_s_own_draws_and_resumes_within_one(tmp_path):
    whole = Recorder()
    fit(tmp_path, whole)
    expected = []
    for epoch in range(3):
        expected += [(epoch, batch["position_b4"].tolist()) for batch in gathered(ready(batch_size=8), epoch)]
    assert whole.seen == expected

    class Saver(Recorder):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if len(self.seen) == len(expected) // 3 + 2:
                self.trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(tmp_path, Saver())
    resumed = Recorder()
    fit(tmp_path, resumed, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert resumed.seen == expected[len(expected) // 3 + 2 :]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"channels": "x"}, "unknown channels: 'x'; choose one of adjacent, adjacent5, every_second9, repeat, single"),
        ({"interpolation": "x"}, "choose one of bilinear, nearest"),
        ({"positions": "x"}, "choose one of grid, any"),
        ({"balance": "x"}, "choose one of rotate, subsample, none"),
        ({"augment": "x"}, "choose one of none, turns, dihedral, any_angle"),
        ({"label_rule": "x"}, "choose one of purity, majority, center"),
        ({"voxels_on": "x"}, "choose one of auto, device, host"),
        *(({"purity": purity}, "purity") for purity in ([0.5], [0.8, 0.2])),
        *(({name: 0}, f"{name} is not positive") for name in ("batch_size", "validation_stride", "block", "window")),
        ({"batch_size": float("nan")}, "batch_size is not positive"),
        *(({"seed": -1}, "seed"), ({"shape": (6, 31, 100), "stop": 4}, "smaller than a block")),
    ],
)
def test_mistakes_are_told_before_training(options, line):
    with pytest.raises(UserError, match=line):
        ready(**options)


def test_the_config_names_every_option():
    files = (Path(__file__).parents[2] / "conf" / group / "blocks.yaml" for group in ("data", "sampling"))
    config = {key: value for file in files for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
    config.pop("defaults", None)
    assert config.pop("_target_") == "mitoseg.sampling.data_module"
    assert config.pop("tile") is None
    both = RegionDataModule.__init__.__kwdefaults__
    blocks, tiles = (both | c.__init__.__kwdefaults__ for c in (BlockDataModule, TileDataModule))
    for told_by_train in ("window", "seed", "spatial_dims", "margin", "augmentation"):
        blocks.pop(told_by_train, None), tiles.pop(told_by_train, None)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    assert given == {**tiles, **blocks}
