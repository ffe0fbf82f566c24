"""The benchmark of augmentation: that it runs, and that it knows every effect."""

import inspect
import json

import torch

from mitoseg.sampling.augmentation import EMAugmentation


def test_it_runs(scripts, tmp_path, monkeypatch):
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
