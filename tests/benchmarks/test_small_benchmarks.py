"""The benchmarks of measuring and of augmentation: they run, write what they print, and know every effect."""

import inspect
import json

import numpy as np
import torch

from mitoseg.sampling.augmentation import EMAugmentation


def test_tubes_are_apart_and_numbered(scripts):
    labels_zyx = scripts("morphometry").tubes(10)
    assert np.unique(labels_zyx).tolist() == list(range(11))
    assert np.bincount(labels_zyx.ravel())[1:].min() > 500


def test_numbers(scripts, tmp_path, capsys):
    result = scripts("morphometry").main(["objects=8", "image=false", f"out={tmp_path / 'a.json'}"])
    assert "8 objects in 2 million voxels" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["ratio"] == result["ratio"]
    assert written["ratio"] > 0


def test_augmentation_runs(scripts, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    script, out = scripts("augmentation"), tmp_path / "out.json"
    monkeypatch.setattr(script, "SHAPES", {"a volume": (1, 4, 32, 32), "sections": (3, 32, 32)})
    found = script.main(["samples=1", f"output={out}"])
    torch.set_num_threads(threads)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    assert set(found["sections"]) == {"all", *script.EFFECTS}


def test_every_probability_is_an_effect(scripts):
    numbers = {"magnitude", "scale", "volumetric", "outside", "gamma", "gain", "coarser", "extra"}
    assert set(inspect.signature(EMAugmentation).parameters) == numbers | set(scripts("augmentation").EFFECTS)
