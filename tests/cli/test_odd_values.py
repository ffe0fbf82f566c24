"""Every key of a training given nonsense ends in one line before anything is trained, or is legal."""

import random

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from tiny_training import TINY, command

from mitoseg.cli.console import user_message
from mitoseg.cli.launch import default_config_dir
from mitoseg.workflows.train import build

NONSENSE = ("many", "-1", "0", "null", "[]", "{}", "1.5", "true", "[many]")
GROUPS = ("data", "network", "augmentation", "optimizer", "scheduler", "loss", "postprocess", "trainer", "logger")


def keys(cfg, prefix=""):
    for key in map(str, cfg):
        yield prefix + key
        if not OmegaConf.is_missing(cfg, key) and isinstance(cfg[key], DictConfig):
            yield from keys(cfg[key], f"{prefix}{key}.")


def untold(tmp_path, cases):
    """The cases that end as a bug would: with a traceback."""
    found = []
    with hydra.initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        for key, value in cases:
            words = [word for word in [*TINY, "name=x"] if not word.startswith((f"{key}=", "data.root="))]
            try:
                cfg = hydra.compose("train", overrides=[*words, f"data.root={tmp_path}", f"{key}={value}"])
                *_, data, _ = build(cfg, tmp_path / "run")
                data.setup("fit")
            except Exception as error:
                if user_message(error) is None:
                    found.append((key, value, repr(error)))
    return found


def all_cases():
    with hydra.initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        composed = hydra.compose("train", overrides=[*TINY, "name=x"])
    return [(key, value) for key in keys(composed) if "_" not in key.rpartition(".")[2][:1] for value in NONSENSE]


def test_nonsense_is_told(tmp_path):
    named = [(key, value) for key in GROUPS for value in ("null", "[]", "nothing")]
    named += [("epochs", "many"), ("optimizer.lr", "-1"), ("trainer.devices", "0"), ("trainer.devices", "two")]
    named += [("data.epoch_blocks", "many"), ("save_overlays", "{}"), ("method", "1.5"), ("seed", "-1")]
    assert untold(tmp_path, [*named, *random.Random(1).sample(all_cases(), 12)]) == []


@pytest.mark.slow
def test_all_nonsense_is_told(tmp_path):
    assert untold(tmp_path, all_cases()) == []


def test_nonsense_on_the_command_line_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in ("trainer.devices=two", "optimizer.lr=-1", "epochs=many", "scheduler=nothing", "+foo=1"):
        kept = [given for given in TINY if given.split("=")[0] != word.split("=")[0]]
        assert command(monkeypatch, "train", *kept, word) == 1
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("error: ")
