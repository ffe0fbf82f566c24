"""Every option of every group composes, and what it describes can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import build_network
from mitoseg.sampling import BlockDataModule, TileDataModule
from mitoseg.segmentation import Labelling
from mitoseg.workflows.train import make_data

CONF = default_config_dir()
OUTSIDE = {"engine", "hydra", "experiment", "labelling", "methods"}
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name not in OUTSIDE)
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml")) if path.stem != "blocks"
]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(*overrides, config="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*overrides, "hydra.mode=RUN"], return_hydra_config=False)


def check(cfg, tmp_path):
    network = instantiate(cfg.network)
    assert isinstance(network, nn.Module)
    plain = OmegaConf.to_container(cfg.network, resolve=True)
    assert type(build_network(plain)) is type(network)
    optimizer = instantiate(cfg.optimizer)(network)
    schedule = instantiate(cfg.scheduler)(optimizer, 10)
    assert optimizer.param_groups[0]["lr"] > 0
    optimizer.step()
    schedule.step()
    assert isinstance(instantiate(cfg.loss), nn.Module)
    data = make_data(cfg, network)
    assert isinstance(data, BlockDataModule if cfg.data.tile is None else TileDataModule)
    trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert trainer.max_epochs == cfg.epochs


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option(group, option, tmp_path):
    given = ["data.root=" + str(tmp_path)] if group == "data" else []
    named = ["data.train.image=a.tif", "data.train.label=b.tif"] if option == "files" else []
    named += ["network=unet25d"] if group == "augmentation" else []
    check(composed(f"{group}={option}", "trainer.enable_progress_bar=false", *given, *named), tmp_path)


@pytest.mark.parametrize("config", ["predict", "evaluate", "measure"])
@pytest.mark.parametrize("option", ["components", "split"])
def test_every_labelling(config, option):
    labelling = instantiate(composed(f"labelling={option}", config=config).labelling)
    assert labelling == Labelling(split=option == "split")


@pytest.mark.parametrize("config", ["predict", "evaluate", "measure"])
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "engine").glob("*.yaml")))
def test_every_engine(config, name):
    cfg = composed(f"engine={name}", "workers=3", config=config)
    assert instantiate(cfg.engine, _convert_="all").workers == 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment(name, tmp_path):
    given = [f"experiment={name}", f"data.root={tmp_path}", "trainer.enable_progress_bar=false"]
    cfg = composed(*given)
    check(cfg, tmp_path)
    assert cfg.name == name


def test_the_paper_is_faithful():
    """The experiment's yaml against the published description."""
    cfg = composed("data=lucchi", "experiment=paper")
    assert cfg.epochs == 45
    assert cfg.data.batch_size == 100
    assert (cfg.data.positions, cfg.data.label_rule, cfg.data.balance) == ("grid", "purity", "rotate")
    assert list(cfg.data.purity) == [0.2, 0.8]
    assert cfg.data.augment == "none"
    assert cfg.network._target_ == "mitoseg.networks.PatchCNN"
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (0.05, 0.9, 1e-4)
    assert list(cfg.scheduler.shares) == [30, 10, 5]


def test_a_group_has_a_config_of_every_kind():
    assert {"data", "loss", "network", "optimizer", "scheduler", "trainer"} <= set(GROUPS)
    assert {"patch_cnn", "context_cnn"} <= {o for g, o in OPTIONS if g == "network"}
    assert {"lucchi", "lucchi_pp", "vnc", "phantom", "files"} <= {o for g, o in OPTIONS if g == "data"}


@pytest.mark.parametrize("config", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_primary_config_composes(config):
    assert composed(config=config)


def test_yaml_files_are_small():
    for path in Path(CONF).rglob("*.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_blocks_are_not_augmented_as_tiles_are(tmp_path):
    cfg = composed("augmentation=em", f"data.root={tmp_path}")
    with pytest.raises(UserError, match="augmentation= is for training on tiles"):
        make_data(cfg, instantiate(cfg.network))
