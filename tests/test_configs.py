"""Every option of every group composes, and what it describes can be built."""

from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import build_network
from mitoseg.sampling import BlockDataModule, TileDataModule
from mitoseg.segmentation import Labelling
from mitoseg.workflows.train import choose_precision, make_data, network_config

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
    choose_precision(cfg)
    network = instantiate(network_config(cfg))
    assert isinstance(network, nn.Module)
    assert type(build_network(network_config(cfg))) is type(network)
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
    named += ["network=unet2d"] if option == "domains" or option.startswith("tiles") else []
    named += ["network=unet3d"] if option.startswith("tiles3d") else []
    check(composed(f"{group}={option}", "trainer.enable_progress_bar=false", *given, *named), tmp_path)


@pytest.mark.parametrize("config", ["predict", "evaluate", "measure"])
def test_every_labelling_and_every_engine(config):
    for option in ("components", "split"):
        labelling = instantiate(composed(f"labelling={option}", config=config).labelling)
        assert labelling == Labelling(split=option == "split")
    for path in (CONF / "engine").glob("*.yaml"):
        cfg = composed(f"engine={path.stem}", "workers=3", config=config)
        assert instantiate(cfg.engine, _convert_="all").workers == 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment(name, tmp_path):
    given = [f"experiment={name}", f"data.root={tmp_path}", "trainer.enable_progress_bar=false"]
    cfg = composed(*given)
    check(cfg, tmp_path)
    assert cfg.name == name
    single = composed(*given, "data.channels=single")
    assert (single.data.channels, network_config(single)["in_channels"]) == ("single", 1)


NETWORKS = sorted(path.stem for path in (CONF / "network").glob("*.yaml"))


@cache
def network_alone(name):
    return composed(f"network={name}")


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["a quarter", "all"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_network_of_the_command_line_beats_an_experiment(experiment, step):
    """It comes with all that it is and all that it asks of sampling, but for what the experiment says of tiles."""
    for name in NETWORKS[EXPERIMENTS.index(experiment) % step :: step]:
        alone, beside = network_alone(name), composed(f"experiment={experiment}", f"network={name}")
        assert network_config(beside) == network_config(alone)
        assert beside.data.channels == alone.data.channels
        if experiment != "paper_tiles":
            assert (beside.data.tile, beside.data.batch_size) == (alone.data.tile, alone.data.batch_size)


def test_a_data_set_beats_what_a_network_asks_of_sampling(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [phantom, _self_]\ntile: [1, 64, 64]\nbatch_size: 3\n")
    words = [f"hydra.searchpath=['{tmp_path.as_uri()}']", "data=mine"]
    data = composed(*words, "network=unet25d").data
    assert (list(data.tile), data.batch_size, data.channels) == ([1, 64, 64], 3, "adjacent5")
    data = composed(*words, "network=unet25d", "data.batch_size=5", "experiment=unet25d", "data=mine").data
    assert (list(data.tile), data.batch_size, data.epoch_tiles) == ([1, 64, 64], 5, 1600)


def test_sampling_of_the_command_line_beats_a_network():
    assert composed("network=unet25d", "sampling=tiles").data.channels == "single"
    assert composed("network=unet3d", "experiment=unet25d", "sampling=tiles3d_small").data.tile == [32, 96, 96]


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(UserError, match=r"network\.in_channels=null"):
        network_config(composed("network=unet2d", "network.in_channels=3"))
    cfg = composed("augmentation=em", f"data.root={tmp_path}")
    with pytest.raises(UserError, match="augmentation= is for training on tiles"):
        make_data(cfg, instantiate(network_config(cfg)))


def test_the_paper_is_faithful():
    """The experiment's yaml against the published description."""
    cfg = composed("data=lucchi", "experiment=paper")
    data, optimizer = cfg.data, cfg.optimizer
    assert (cfg.epochs, data.batch_size, data.augment) == (45, 100, "none")
    assert (data.positions, data.label_rule, data.balance) == ("grid", "purity", "rotate")
    assert list(data.purity) == [0.2, 0.8]
    assert cfg.network._target_ == "mitoseg.networks.PatchCNN"
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.05, 0.9, 1e-4)
    assert list(cfg.scheduler.shares) == [30, 10, 5]


@pytest.mark.parametrize("config", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_primary_config_composes(config):
    assert composed(config=config)
