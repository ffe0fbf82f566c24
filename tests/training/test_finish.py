"""What the last step of training writes into a checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mitoseg.datasets import Region
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, precision, predict_volume
from mitoseg.metrics import Calibration, count, scores
from mitoseg.networks import ContextCNN
from mitoseg.training import module as module_module
from mitoseg.training.module import count_log_odds, finish_checkpoint
from mitoseg.volumes import ArrayVolume, Normalization, map_labels
from mitoseg.volumes.base import ArrayWriter


@pytest.fixture
def parts():
    """Two labelled parts of one volume: bright discs are mitochondria."""
    y, x = np.mgrid[:80, :90]
    disc = ((y - 40) ** 2 + (x - 45) ** 2 < 400).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 20, (4, 80, 90))
    image = np.clip(100 + 60 * disc + noise, 0, 255).astype(np.uint8)
    volume, label = ArrayVolume(image), map_labels(ArrayVolume(np.repeat(disc[None], 4, 0)))
    boxes = (Box((0, 0, 0), (1, 80, 90)), Box((2, 10, 0), (4, 80, 90)))
    return [Region(volume, label, box) for box in boxes]


@pytest.fixture
def prediction():
    torch.manual_seed(0)
    network = ContextCNN(1).eval()
    for parameter in network.parameters():
        parameter.data += 0.02
    return Prediction(network, Normalization(110.0, 40.0), "single", Calibration(prior_shift=-1.0), 0.5)


def test_every_voxel_of_the_parts_is_counted_once(prediction, parts):
    hist = count_log_odds(prediction, parts)
    truth = np.concatenate([part.read_label().ravel() for part in parts])
    assert hist.sum(axis=1).tolist() == [int((truth == 0).sum()), int((truth == 1).sum())]


def test_calibration_and_threshold_are_those_of_the_method(tmp_path, prediction, parts):
    path = tmp_path / "best.ckpt"
    torch.save({"mitoseg": {"threshold": 0.123, "kept": "yes"}, "state_dict": {}}, path)
    entries = finish_checkpoint(path, prediction, parts)
    record = torch.load(path, weights_only=True)["mitoseg"]
    assert record["kept"] == "yes"
    assert record["method"] == "dense"
    assert record["threshold"] == entries["threshold"] != 0.123
    calibrated = replace(prediction, calibration=Calibration(**record["calibration"]), threshold=record["threshold"])
    best = _jaccard(calibrated, parts, record["threshold"])
    for other in (0.8, 1.25):
        assert best >= _jaccard(calibrated, parts, record["threshold"] * other)


def test_the_cost_of_bfloat16_is_measured_where_the_device_has_it(tmp_path, prediction, parts, monkeypatch):
    path = tmp_path / "best.ckpt"
    torch.save({"mitoseg": {}, "state_dict": {}}, path)
    monkeypatch.setattr(module_module, "has_bf16", lambda device: True)
    entries = finish_checkpoint(path, prediction, parts)
    measured = entries["precision"]["bf16"]
    assert abs(measured["jaccard_drop"]) < 0.05
    assert measured["device"] == "cpu"
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    expected = "bf16" if measured["jaccard_drop"] < precision.LIMIT else "fp32"
    assert precision.choose_precision("auto", torch.device("cpu"), entries) == expected
    monkeypatch.setattr(module_module, "has_bf16", lambda device: False)
    assert finish_checkpoint(path, prediction, parts)["precision"] == {}


def _jaccard(prediction, parts, threshold):
    """Foreground JAC of all parts, from their probabilities."""
    guess, truth = [], []
    for part in parts:
        writer = ArrayWriter(part.box.shape)
        predict_volume(prediction, part.image, writer, box=part.box)
        guess.append(writer.array_zyx.ravel() >= threshold)
        truth.append(part.read_label().ravel())
    return scores(count(np.concatenate(guess), np.concatenate(truth)))["jaccard_foreground"]
