"""Tiles of many domains: drawn evenly, of the pixel size that was asked for, and a network that learns from them."""

from collections import Counter

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from mitoseg.datasets import IGNORE, Region, Splits
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference.prepare import adapt_greys
from mitoseg.networks.checkpoint import load_model
from mitoseg.sampling import DomainDataModule
from mitoseg.sampling.augmentation import TileSymmetry
from mitoseg.sampling.domains import DomainBank, DomainDraws
from mitoseg.training import SegmentationModule, adamw
from mitoseg.volumes import ArrayVolume

NETWORK = {"_target_": "mitoseg.networks.UNet", "in_channels": 1, "filters": [8, 8, 8], "strides": [2, 2]}
NETWORK |= {"norm": "instance_affine"}


def region(domain, depth, side, pixel, *, unknown=0, foreground=True):
    """Stripes along y and x that tell how far apart pixels are: 80 nm wide, labelled 1 where they cross."""
    at = (np.arange(side) * pixel // 80 % 2).astype(np.uint8)
    label = np.repeat((at[:, None] & at)[None], depth, axis=0).astype(np.uint8)
    image = label.astype(np.float32)
    label[:, :unknown] = IGNORE
    volumes = (ArrayVolume(a, (30.0, pixel, pixel)) for a in (image, label if foreground else 0 * label))
    return Region(*volumes, Box.of_shape(image.shape), domain, domain)


class Recipe:
    """Ready regions; domain a has 12 slices in two sets, b one."""

    def __init__(self, **options):
        self.options = options

    def prepare(self):
        """Nothing to do."""

    def splits(self):
        train = (region("a", 9, 96, 8.0), region("a", 3, 160, 4.0), region("b", 1, 96, 8.0, unknown=32))
        held = tuple(region(name, 2, side, 8.0) for name, side in (("a", 64), ("b", 32)))
        return Splits(train, held, (), (8.0, 8.0, 8.0), {"files": []})


def module(**options):
    given = {"tile": (1, 64, 64), "batch_size": 4, "channels": "single", "epoch_tiles": 200, "jitter": (1, 1)}
    found = DomainDataModule(Recipe, **{**given, **options})
    found.setup()
    return found


def batches(data):
    for batch in data.train_dataloader():
        yield data.on_after_batch_transfer(batch, 0)


def test_draws_are_even_by_domain_and_then_by_image():
    data = module(epoch_tiles=2400)
    draws = data.draws.draw(0)
    number_n, z_n = draws.position_n4[:, 0], draws.position_n4[:, 2]
    assert np.bincount(number_n == 2).tolist() == [1200, 1200]
    slices = Counter(zip(number_n[number_n < 2].tolist(), z_n[number_n < 2].tolist(), strict=True))
    assert len(slices) == 12
    assert 60 < min(slices.values()) <= max(slices.values()) < 140
    assert not np.array_equal(draws.position_n4, data.draws.draw(1).position_n4)
    assert np.array_equal(draws.position_n4, module(epoch_tiles=2400).draws.draw(0).position_n4)


@pytest.mark.parametrize("zoom", [0.5, 1.0, 1.6])
def test_tiles_have_the_pixel_size_that_was_asked_for(zoom):
    """Stripes of 80 nm are 80 / (8 zoom) pixels wide in tiles of 8 nm and of 4 nm, in image and label."""
    data = module(jitter=(zoom, zoom), augment="none", tile=(1, 48, 48), epoch_tiles=40)
    seen = set()
    for batch in batches(data):
        for image, label, place in zip(batch["image"][:, 0], batch["label"], batch["position_b4"], strict=True):
            changes = torch.nonzero(torch.diff((image.amax(0) > 0.5).int())).ravel()
            inner = torch.diff(changes)[:3].float()
            assert len(inner) < 2 or inner.mean() == pytest.approx(10 / zoom, abs=1)
            known = label != IGNORE
            assert ((image > 0.5) == (label == 1))[known].float().sum() >= 0.9 * known.sum()
            seen.add(int(place[0]))
    assert seen == {0, 1, 2}


def test_deep_volumes_of_cubic_voxels_are_cut_along_all_axes(monkeypatch):
    monkeypatch.setattr("mitoseg.sampling.domains._DEEP", 8)
    image = np.random.default_rng(0).random((9, 20, 30), np.float32)
    volumes = (ArrayVolume(a, (8.0, 8.0, 8.0)) for a in (image, (image > 0.5).astype(np.uint8)))
    cube = Region(*volumes, Box.of_shape(image.shape), "cube", "cube")
    draws = DomainDraws(
        [cube], (1, 8, 8), pixel_size=8, jitter=(1, 1), augment="none", foreground_share=0, size=900, seed=0
    )
    positions, bank = draws.draw(0).position_n4, DomainBank([cube])
    assert np.bincount(positions[:, 1]).tolist() == pytest.approx([450, 225, 225], abs=60)
    for number, axis, place, *window in positions[:50].tolist():
        tile, label = bank.gather(torch.tensor([[number, axis, place, *window]]), [TileSymmetry()], (1, 8, 8))
        y, x = window[:2]
        np.testing.assert_allclose(tile[0, 0], image.take(place, axis)[y : y + 8, x : x + 8], atol=1e-6)
        np.testing.assert_array_equal(label[0], image.take(place, axis)[y : y + 8, x : x + 8] > 0.5)


def test_jitter_is_log_uniform_and_windows_stay_inside_where_they_can():
    data = module(jitter=(0.5, 2.0), epoch_tiles=4000)
    number_n, _, _, y_n, _, height_n, _ = data.draws.draw(0).position_n4.T
    rows = np.array([96, 160, 96])[number_n]
    zoom = np.log2(height_n / 64 * np.array([8, 4, 8])[number_n] / 8)
    assert abs(zoom.mean()) < 0.05
    assert zoom.std() == pytest.approx(2 / 12**0.5, abs=0.03)
    assert ((y_n >= 0) & (y_n + height_n <= rows))[height_n <= rows].all()
    assert ((y_n <= 0) & (y_n + height_n >= rows))[height_n >= rows].all()


def test_unknown_voxels_and_those_outside_count_nowhere():
    data = module(jitter=(2.0, 2.0), augment="none")
    batch = next(batches(data))
    known = {
        int(p[0]): (label != IGNORE).float().mean()
        for p, label in zip(batch["position_b4"], batch["label"], strict=True)
    }
    assert known[2] == pytest.approx(48 * 32 / 64**2, abs=0.02)
    assert data.prior == pytest.approx(0.25, abs=0.03), "unknown voxels are not background"


def test_a_share_of_the_tiles_holds_a_mitochondrion():
    data = module(foreground_share=1.0, tile=(1, 16, 16), epoch_tiles=100)
    assert all((label == 1).any() for batch in batches(data) for label in batch["label"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": None}, "network=unet2d"),
        ({"spatial_dims": 3}, "network=unet2d"),
        ({"window": 32}, "network=unet2d"),
        ({"jitter": (2, 1)}, "data.jitter"),
        ({"channels": "adjacent"}, "single"),
        ({"epoch_tiles": 0}, "epoch_tiles"),
    ],
)
def test_bad_options_are_told(options, words):
    with pytest.raises(UserError, match=words):
        module(**options)


def test_domains_are_scored_apart_and_the_checkpoint_says_how_volumes_are_seen(tmp_path):
    data = module(tile=(1, 32, 32), epoch_tiles=24)
    learner = SegmentationModule(network_config=NETWORK, optimizer=adamw)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, accelerator="cpu", use_distributed_sampler=False, **quiet)
    trainer.fit(learner, datamodule=data)
    found = trainer.callback_metrics
    each = [found[f"val/jaccard_{name}"] for name in ("a", "b")]
    assert found["val/jaccard_foreground"] == pytest.approx(float(sum(each)) / 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = load_model(tmp_path / "last.ckpt")
    assert (model.voxel_size, model.record["normalize"]) == ((8.0, 8.0, 8.0), "volume")
    dark = ArrayVolume(np.random.default_rng(0).normal(40, 3, (2, 32, 32)).astype(np.float32))
    _, normalization = adapt_greys("checkpoint", dark, model)
    assert normalization.mean == pytest.approx(40, abs=0.5)
