"""A few real steps of training on a small volume: what is learnt, logged, calibrated and saved."""

import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from disc_training import CONFIG, checkpoints, datamodule, module, trainer
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from mitoseg.evaluation.figures import overlay_figure
from mitoseg.inference import predict_volume
from mitoseg.inference.prepare import make_prediction
from mitoseg.metrics import Counts, count, scores
from mitoseg.networks.checkpoint import load_model
from mitoseg.training.callbacks import SlicePictures
from mitoseg.volumes.base import ArrayWriter


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short run, shared: its folder, module, data and trainer."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [TensorBoardLogger(folder, name="", version="tb"), CSVLogger(folder, name="", version="csv")]
    callbacks = [*checkpoints(folder / "ck"), SlicePictures(overlay_figure, count=2)]
    model, data = module(), datamodule()
    run = trainer(folder, logger=loggers, callbacks=callbacks, log_every_n_steps=5)
    run.fit(model, datamodule=data)
    return folder, model, data, run


def test_the_validation_score_is_that_of_whole_slices_at_the_best_threshold(trained):
    """Predicting the slab afresh with the checkpoint and its threshold gives the logged score."""
    folder, _, data, run = trained
    assert min(run.callback_metrics[name] for name in ("val/jaccard_foreground", "train/block_jaccard")) > 0.6
    model = load_model(folder / "ck" / "last.ckpt")
    prediction = make_prediction(model, method="strided", precision="fp32")
    (region,) = data.splits.validation
    writer = ArrayWriter(region.box.shape)
    predict_volume(prediction, region.image, writer, box=region.box)
    found = scores(count(writer.array_zyx >= model.threshold, region.read_label()))
    for name in ("jaccard_foreground", "jaccard_background", "jaccard_mean", "precision", "recall"):
        assert run.callback_metrics[f"val/{name}"] == pytest.approx(found[name], abs=2e-3), name


def test_the_checkpoint_is_plain_and_complete(trained):
    folder, model, data, _ = trained
    checkpoint = torch.load(folder / "ck" / "best.ckpt", weights_only=True)
    record = checkpoint["mitoseg"]
    found = [record[key] for key in ("network", "voxel_size", "channels")]
    assert found == [CONFIG, [5.0, 5.0, 5.0], "adjacent"]
    assert record["prior"] == {"positions": data.prior, "batches": data.batch_prior}
    assert 0 < record["threshold"] < 1
    assert set(record["calibration"]) == {"prior_shift", "temperature", "bias"}
    assert record["calibration"]["prior_shift"] == pytest.approx(model.shift)
    assert checkpoint["hyper_parameters"]["network_config"] == CONFIG


def test_prior_shift_moves_balanced_scores_to_the_share_of_the_volume(trained):
    """With half of each class in the batches, the corrected mean probability is near the true share."""
    _, model, data, _ = trained
    assert data.batch_prior == pytest.approx(0.5)
    assert data.prior == pytest.approx(np.mean(data.splits.train[0].read_label() == 1), abs=1e-6)
    assert model.shift == pytest.approx(np.log(data.prior / (1 - data.prior)))


def test_pictures_and_curves_are_in_tensorboard(trained):
    folder, *_ = trained
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert len([t for t in tags["images"] if t.startswith("validation/region 0")]) == 2
    assert len([t for t in tags["images"] if t.startswith("validation probability/")]) == 2
    assert "validation/precision_recall" in tags["tensors"]
    assert "validation/probability of mitochondria" in tags["histograms"]
    for name in ("jaccard_foreground", "jaccard_background", "jaccard_mean", "threshold", "average_precision"):
        assert f"val/{name}" in tags["scalars"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resuming_gives_the_uninterrupted_run(tmp_path, monkeypatch):
    """Two epochs, and one epoch twice: the same bits of weights, calibration and threshold, on as many threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    whole = module()
    trainer(tmp_path / "whole").fit(whole, datamodule=datamodule(epoch_blocks=200))
    trainer(tmp_path / "part", max_epochs=1).fit(module(), datamodule=datamodule(epoch_blocks=200))
    rest = module()
    torch.set_num_threads(1)
    trainer(tmp_path / "part").fit(
        rest, datamodule=datamodule(epoch_blocks=200), ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True
    )
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (whole.calibration, whole.threshold) == (rest.calibration, rest.threshold)


class Interrupt(pl.Callback):
    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        if run.global_step == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_last_ckpt(tmp_path):
    callbacks = [Interrupt(), *checkpoints(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path, callbacks=callbacks).fit(module(), datamodule=datamodule())
    assert isinstance(caught.value.__context__, KeyboardInterrupt)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert load_model(tmp_path / "last.ckpt").channels == "adjacent"


def test_same_seed_same_weights(tmp_path):
    results = []
    for name in "ab":
        model = module()
        trainer(tmp_path / name, max_epochs=1).fit(model, datamodule=datamodule(epoch_blocks=200))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=2, max_size=5))
def test_pooling_is_not_averaging(parts):
    """The score of the sum is what is logged; it is what one count over all voxels gives."""
    pooled = sum((Counts(*part) for part in parts), Counts(0, 0, 0, 0))
    tp, fp, fn = (sum(column) for column in list(zip(*parts, strict=True))[:3])
    expected = tp / (tp + fp + fn) if tp + fp + fn else float("nan")
    assert scores(pooled)["jaccard_foreground"] == pytest.approx(expected, nan_ok=True)
