"""``train``: compose, build, fit, score."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from mitoseg.blocks import RegionDataModule
from mitoseg.cli.cleaning import chosen_steps
from mitoseg.cli.console import shown, user_message
from mitoseg.cli.continuing import Continuation
from mitoseg.cli.costs import training_costs
from mitoseg.cli.hparams import log_hparams
from mitoseg.cli.launch import run_dir
from mitoseg.cli.ranks import held, is_main_process
from mitoseg.cli.resume import replace_saved_words, words_kept
from mitoseg.cli.scoring import score_run
from mitoseg.cli.watching import make_callbacks, make_loggers
from mitoseg.errors import UserError
from mitoseg.geometry import anchor
from mitoseg.inference import choose_method
from mitoseg.inference.precision import can_compile
from mitoseg.inference.protocol import BlockNetwork, dimensions, per_axis
from mitoseg.networks import DenseForm
from mitoseg.networks.fine_tuning import freeze, init_from
from mitoseg.provenance import collect
from mitoseg.storage import write_json, write_text
from mitoseg.training import SegmentationModule
from mitoseg.training.checkpointing import AtomicCheckpointIO
from mitoseg.training.losses import DeepSupervision
from mitoseg.training.tuning import find_batch_size, find_learning_rate
from mitoseg.volumes import CHANNEL_OFFSETS

log = logging.getLogger(__name__)

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of ``torch.compile``; the second and third replay CUDA graphs."""


def run(cfg: DictConfig) -> float | None:
    """Train one network and, on the first rank, score it.

    Returns:
        The foreground JAC on the validation slabs, which a sweep maximises; None on further ranks.

    Raises:
        UserError: Something in the config or the data is wrong.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` is written first.
        SystemExit: The job was asked to end (143); ``last.ckpt`` is written first.
    """
    folder = run_dir()
    with ExitStack() as stack:
        with words_kept(folder):
            if is_main_process():
                lock = folder / "checkpoints" / ".lock"
                stack.enter_context(held(lock, "another training is running in this folder"))
            before, module, trainer, data, origins = build(cfg, folder)
        return train(cfg, folder, before, module, trainer, data, origins)


def build(
    cfg: DictConfig, folder: Path
) -> tuple[Continuation, SegmentationModule, Trainer, RegionDataModule, dict[str, Any]]:
    """Everything that a training needs: what it starts from, the module, Trainer and data, and facts for provenance.

    Raises:
        UserError: Something in the config is wrong.
    """
    check_options(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    with built_from("data"):
        match_channels(cfg)
    before = Continuation.find(cfg, folder)
    with built_from("network"):
        with before.bounds:
            network = instantiate(cfg.network)
        choose_method(cfg.method, network)
    origin = start_weights(cfg, network) if before.checkpoint is None else None
    with built_from("freeze"):
        frozen = freeze(network, cfg.freeze)
    with built_from("data"):
        data = make_data(cfg, network)
    with built_from("trainer"):
        trainer = build_trainer(cfg, folder, max_epochs=before.epochs)
    with built_from("optimizer"):
        trial = instantiate(cfg.optimizer)(network)
    with built_from("scheduler"):
        scheduler = instantiate(cfg.scheduler)
        if scheduler is not None:
            scheduler(trial, 100)
    with built_from("loss"):
        loss = DeepSupervision(instantiate(cfg.loss), cfg.head_weights)
    make_module = partial(
        SegmentationModule,
        network,
        OmegaConf.to_container(cfg.network, resolve=True),  # type: ignore[arg-type]
        scheduler=scheduler,
        loss=loss,
        method=cfg.validation_method,
        extended=before.extended,
        channels_last=cfg.channels_last,
        tiles=cfg.data.tile is not None,
    )
    if before.checkpoint is None and (cfg.tune_batch_size or cfg.tune_lr):
        tune(cfg, make_module, data, folder)
    compiled = choose_compile(cfg.compile, trainer)
    module = make_module(optimizer=instantiate(cfg.optimizer), compile=compiled)
    return before, module, trainer, data, {"seed": cfg.seed, "init_from": origin, "frozen": frozen}


@contextmanager
def built_from(key: str) -> Iterator[None]:
    """What a part cannot be built from is told with its key; the traceback shows with ``hydra.verbose=true``.

    Raises:
        UserError: The options of ``key`` build nothing.
    """
    try:
        yield
    except Exception as error:
        if user_message(error) is not None:
            raise
        log.debug("%s cannot be built", key, exc_info=True)
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        what = f"{key} cannot be built from its options ({type(cause).__name__}: {cause})"
        raise UserError(what, None, f"see what is given for {key}; --help lists the options") from error


def check_options(cfg: DictConfig) -> None:
    """Refuse numbers and switches of the wrong kind before anything is made: some are used hours later.

    Raises:
        UserError: With the option and a remedy.
    """
    for key in ("seed", "save_overlays"):
        if not _whole(cfg[key], 0):
            raise UserError(f"{key} is no whole number from 0", cfg[key], f"write {key}=NUMBER")
    for key in ("epochs", "seeds"):
        if not _whole(cfg[key], 1):
            raise UserError(f"{key} is no whole number from 1", cfg[key], f"write {key}=NUMBER")
    for key in ("extend", "patience", "data.epoch_blocks", "data.epoch_tiles"):
        if (value := OmegaConf.select(cfg, key)) is not None and not _whole(value, 1):
            raise UserError(f"{key} is no whole number from 1", value, f"write {key}=NUMBER, or {key}=null")
    for key in ("test", "figures", "channels_last", "tune_lr", "tune_batch_size", "trust"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    minutes = cfg.checkpoint_minutes
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0:
        raise UserError("checkpoint_minutes is no time", minutes, "give minutes, more than 0")
    if not isinstance(cfg.trainer.enable_progress_bar, bool):
        raise UserError("trainer.enable_progress_bar is neither true nor false", cfg.trainer.enable_progress_bar)
    for key in ("init_from", "resume"):
        if cfg[key] is not None and not isinstance(cfg[key], str):
            raise UserError(f"{key} is no path", cfg[key], f"write {key}=PATH")
    with built_from("postprocess"):
        chosen_steps(cfg)


def _whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**31


def train(
    cfg: DictConfig,
    folder: Path,
    before: Continuation,
    module: SegmentationModule,
    trainer: Trainer,
    data: RegionDataModule,
    origins: Mapping[str, Any],
) -> float | None:
    """Fit what `build` gives, and score it; see `run`."""
    if trainer.is_global_zero:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_json(folder / "provenance.json", collect(**origins))
        before.put_scores_aside()
    rank_zero_only(log.info)("training on %s", describe_devices(trainer))
    if cfg.compile:
        rank_zero_only(log.info)("compiling: the first step takes half a minute or more")
    fit(trainer, module, data, before.checkpoint)
    if not trainer.is_global_zero:
        return None
    costs = training_costs(trainer, module.network)
    provenance = collect(**origins, **costs, data=dict(data.splits.provenance), draws=dict(data.summary))
    write_json(folder / "provenance.json", provenance)
    validation = score_run(folder, data.splits, cfg)["validation"]
    log_hparams(folder, cfg, validation)
    return float(validation["jaccard_foreground"])  # type: ignore[arg-type]


def make_data(cfg: DictConfig, network: torch.nn.Module) -> RegionDataModule:
    """The datamodule, told what the network sees.

    Raises:
        UserError: Blocks are to be augmented as tiles are.
    """
    augmentation = instantiate(cfg.augmentation) or None
    if augmentation is not None and cfg.data.tile is None:
        what = "augmentation= is for training on tiles; blocks are augmented by data.augment="
        raise UserError(what, None, "give data.tile=[z,y,x], or augmentation=none")
    data: RegionDataModule = instantiate(
        cfg.data,
        window=getattr(network, "window", None),
        spatial_dims=dimensions(network),
        margin=tile_margin(network),
        augmentation=augmentation,
        seed=cfg.seed,
    )
    return data


def tile_margin(network: torch.nn.Module) -> tuple[int, int]:
    """Pixels that a network sees before and after a tile of which it answers every pixel."""
    if not isinstance(network, BlockNetwork):
        return 0, 0
    form = DenseForm(network)
    before = anchor(per_axis(network.window, form.ndim)[-1]) + form.padding[-1]
    return before, form.field[-1] - 1 - before


def fit(trainer: Trainer, module: SegmentationModule, data: RegionDataModule, checkpoint: Path | None) -> None:
    """Train; an interrupt or the end of a job's time leaves ``last.ckpt``, and says how to go on."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run's own
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        rank_zero_only(log.warning)("terminated; %s", how_to_go_on(trainer))
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # how Lightning passes Ctrl-C on
            rank_zero_only(log.warning)("stopped; %s", how_to_go_on(trainer))
        raise


def how_to_go_on(trainer: Trainer) -> str:
    """What to type to take up a run that ended early."""
    return f"go on with: python train.py resume={shown(Path(trainer.default_root_dir))}"


def start_weights(cfg: DictConfig, network: torch.nn.Module) -> dict[str, object] | None:
    """Take the weights that ``init_from`` names; for provenance, where they come from."""
    if cfg.init_from is None:
        return None
    record = init_from(network, cfg.init_from)
    log.info("weights from %s", cfg.init_from)
    return {"checkpoint": cfg.init_from, "version": record["version"], "voxel_size": record.get("voxel_size")}


def tune(
    cfg: DictConfig, make_module: Callable[..., SegmentationModule], data: RegionDataModule, folder: Path
) -> None:
    """Find a batch size and a learning rate first, where asked; they enter the config and the words of the run.

    Raises:
        UserError: The run has several devices, or nothing was found.
    """
    if cfg.trainer.devices != 1:
        raise UserError("tune_lr and tune_batch_size need one device", cfg.trainer.devices, "set trainer.devices=1")
    make_trainer = partial(instantiate, cfg.trainer)
    module = make_module(optimizer=instantiate(cfg.optimizer))
    found: dict[str, int | float] = {}
    if cfg.tune_batch_size:
        cfg.data.batch_size = found["data.batch_size"] = find_batch_size(make_trainer, module, data)
    if cfg.tune_lr:
        figure = folder / "figures" / "learning_rate.png"
        cfg.optimizer.lr = found["optimizer.lr"] = find_learning_rate(make_trainer, module, data, figure=figure)
    for key, value in found.items():
        log.info("%s set to %.4g", key, value)
    replace_saved_words(folder, found, drop=("tune_lr", "tune_batch_size"))


def choose_compile(wish: bool | str, trainer: Trainer) -> bool | str:
    """What `SegmentationModule` takes as ``compile``.

    Raises:
        UserError: An unknown mode, or nothing here that could compile.
    """
    if not isinstance(wish, bool) and wish not in COMPILE_MODES:
        raise UserError("compile is none of its choices", wish, f"true, false, {', '.join(COMPILE_MODES)}")
    device = trainer.strategy.root_device
    if wish and not can_compile(device):
        raise UserError("cannot compile here", device.type, "install a C++ compiler, or give compile=false")
    return wish


def match_channels(cfg: DictConfig) -> None:
    """Give the network as many input channels as ``data.channels`` makes."""
    if cfg.data.channels not in CHANNEL_OFFSETS:
        raise UserError(
            "no such way to make channels", cfg.data.channels, f"choose one of {', '.join(CHANNEL_OFFSETS)}"
        )
    if cfg.network.get("spatial_dims") == 3 and cfg.data.channels != "single":
        log.info("data.channels set to single, as a network on volumes takes")
        cfg.data.channels = "single"
    count = len(CHANNEL_OFFSETS[cfg.data.channels])
    if "in_channels" in cfg.network and cfg.network.in_channels != count:
        log.info("network.in_channels set to %d, as data.channels=%s makes", count, cfg.data.channels)
        with open_dict(cfg):
            cfg.network.in_channels = count


def build_trainer(cfg: DictConfig, folder: Path, **replaced: Any) -> Trainer:  # noqa: ANN401 (the Trainer's own)
    """The Trainer with its loggers and callbacks; everything it writes lies in the run's folder.

    Args:
        cfg: The composed training config.
        folder: The run's folder.
        **replaced: Arguments of the Trainer instead of those of ``cfg.trainer``.
    """
    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=make_loggers(cfg, folder),
        callbacks=make_callbacks(cfg, folder),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        **replaced,
    )
    return trainer


def describe_devices(trainer: Trainer) -> str:
    """For the log: how many devices of which kind, and threads where it is the CPU."""
    kind = trainer.strategy.root_device.type
    threads = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    return f"{trainer.world_size} {kind} device(s){threads}"
