"""Every key of a training given nonsense ends in one line before anything is trained; every network trains alone."""

import random

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny_training import TINY, command

from mitoseg.cli.console import user_message
from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.workflows.train import build, built_from, hyper_parameters, write_hparams

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


def test_a_class_that_is_not_there_is_told():
    with (
        pytest.raises(UserError, match=r"No module named 'my_losses'.*; check _target_ in loss/NAME\.yaml$"),
        built_from("loss"),
    ):
        instantiate({"_target_": "my_losses.Tverski"})


NAMES = sorted(path.stem for path in (default_config_dir() / "network").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"network={name}", "trainer.max_steps=1", "test=false", "figures=false", "save_overlays=0"]
    words += ["data.train_shape=[64,96,128]", "data.epoch_tiles=4", "data.validation_stride=8"]
    words += ["trainer.val_check_interval=1", "callbacks=monitor", "hydra.run.dir=run"]
    if name == "patch_cnn" or name == "context_cnn":
        words += ["data.batch_size=8"]
    else:
        tile = {"unet3d": "[32,64,64]", "residual_unet3d": "[32,64,64]", "unet3d_anisotropic": "[8,64,64]"}
        words += [f"data.tile={tile[name]}"] if name in tile else []
        words += ["data.tile=[1,64,64]"] if "3d" not in name and name not in ("segresnet",) else []
        words += ["data.batch_size=1"]
    assert command(monkeypatch, "train", *words) in (None, 0)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_what_sets_a_run_apart():
    cfg = OmegaConf.create(
        {
            "seed": 2, "epochs": 3, "patience": None, "data": {"batch_size": 10, "box": [1, 2]}, "resume": "x",
            "optimizer": {"_target_": "a.b", "lr": 0.1},
        }
    )  # fmt: skip
    words = ["data.box=[1,2]", "resume=x", "patience=null", "network=patch_cnn"]
    assert hyper_parameters(cfg, {"network": "patch_cnn", "experiment": None}, words) == {
        "network": "patch_cnn", "optimizer.lr": 0.1, "seed": 2, "epochs": 3, "data.batch_size": 10,
        "data.box": "[1, 2]",
    }  # fmt: skip


def test_tensorboard_reads_the_table(tmp_path):
    write_hparams(tmp_path, {"network": "patch_cnn", "optimizer.lr": 0.1}, {"validation/jaccard_foreground": 0.8})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["network"].string_value == "patch_cnn"
    assert session.hparams["optimizer.lr"].number_value == 0.1
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["validation/jaccard_foreground"]
    (score,) = events.Scalars("validation/jaccard_foreground")
    assert round(score.value, 6) == 0.8
