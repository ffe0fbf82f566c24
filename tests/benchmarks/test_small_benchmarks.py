"""Every benchmark starts and knows its words; those of measuring and of augmentation run and write what they print."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mitoseg.sampling.augmentation import EMAugmentation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_finds_what_it_imports(scripts):
    for path in BENCHMARKS.glob("*.py"):
        assert scripts(path.stem).__doc__


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        *((name, "no such option: nonsense", ["nonsense=1"]) for name in ("confidence", "few_labels", "generalist")),
        *(("inference", "error: ", words) for words in (["nonsense=1"], ["parts=windows"], ["turns=many"])),
        *(("gpu", "error: ", words) for words in (["nonsense=1"], ["parts=unet,windows"])),
        *(("training", "error: ", words) for words in (["nonsense=1"], ["networks=unet", "quick=true"])),
    ],
)
def test_words_that_cannot_be_read(scripts, name, line, words):
    with pytest.raises(SystemExit, match=line):
        scripts(name).main(words)


@pytest.mark.parametrize("name", ["inference", "training", "instances", "postprocessing", "gpu"])
def test_help_names_every_option(scripts, capsys, name):
    script = scripts(name)
    script.main(["--help"])
    told = capsys.readouterr().out
    options = script.HELP if hasattr(script, "HELP") else script.Options.__dataclass_fields__
    assert all(f"\n{option}=" in told for option in options)


def test_without_a_gpu(scripts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: torch finds no CUDA GPU here; quick=true runs"):
        scripts("gpu").main([])


@pytest.mark.slow
def test_all_that_a_gpu_is_to_show_runs_on_a_cpu(scripts, tmp_path, capsys):
    script, out = scripts("gpu"), tmp_path / "out.json"
    report = script.main(["quick=true", "minutes=30", f"out={out}"])
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    assert {part: found["state"] for part, found in report["parts"].items()} == dict.fromkeys(script.SHARES, "done")
    found = {part: one["figures"] for part, one in report["parts"].items()}
    assert found["dense"]["context_cnn"]["fp32_eager"]["dense_fraction_of_ceiling"] > 0
    assert found["unet"]["voxels_per_second"] == pytest.approx(3 * 96 * 128 / min(found["unet"]["seconds"]))
    assert found["unet3d"]["largest_batch"] == 2
    assert found["ddp"]["backend"] == "gloo"
    assert list(found["oom"]) == ["skipped"]
    assert found["paper"]["seconds_of_45_epochs"] == pytest.approx(45 * found["paper"]["seconds_per_epoch"])
    assert "seconds_of_45_epochs" in capsys.readouterr().out


def test_measuring(scripts, tmp_path, capsys):
    labels_zyx = scripts("morphometry").tubes(10)
    assert np.unique(labels_zyx).tolist() == list(range(11))
    assert np.bincount(labels_zyx.ravel())[1:].min() > 500
    result = scripts("morphometry").main(["objects=8", "image=false", f"out={tmp_path / 'a.json'}"])
    assert "8 objects in 2 million voxels" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["ratio"] == result["ratio"] > 0


def test_augmentation_runs_with_every_effect(scripts, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    script, out = scripts("augmentation"), tmp_path / "out.json"
    numbers = {"magnitude", "scale", "volumetric", "outside", "gamma", "gain", "coarser", "extra"}
    assert set(inspect.signature(EMAugmentation).parameters) == numbers | set(script.EFFECTS)
    monkeypatch.setattr(script, "SHAPES", {"a volume": (1, 4, 32, 32), "sections": (3, 32, 32)})
    found = script.main(["samples=1", f"output={out}"])
    torch.set_num_threads(threads)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    assert set(found["sections"]) == {"all", *script.EFFECTS}
