"""``train``: compose, build, fit, score.

``extend=N`` continues a finished run for N epochs. The schedule runs again from its start over the N new epochs: a
warm restart (Loshchilov and Hutter, SGDR, 2017). Momentum, the best score and the numbering of epochs continue.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, Timer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from mitoseg.arguments import as_typed, changed_arguments, key_of, replace_saved_words, words_kept
from mitoseg.datasets.base import Recipe
from mitoseg.errors import UserError
from mitoseg.evaluation.figures import overlay_figure
from mitoseg.geometry import anchor
from mitoseg.inference import choose_method
from mitoseg.inference.precision import can_compile, has_bf16
from mitoseg.networks import DenseForm
from mitoseg.networks.bounds import Bounds, within
from mitoseg.networks.checkpoint import KEY, read_checkpoint
from mitoseg.networks.fine_tuning import freeze, init_from
from mitoseg.networks.kinds import BlockNetwork, dimensions, per_axis
from mitoseg.processes import is_main_process
from mitoseg.progress import Tell, on_terminal
from mitoseg.provenance import collect, peak_memory
from mitoseg.sampling import RegionDataModule
from mitoseg.storage import changes, explain, held, move_into_place, write_json, write_text
from mitoseg.training import SegmentationModule
from mitoseg.training.callbacks import (
    FiniteLoss,
    Progress,
    ProgressLines,
    ShallowConvolutions,
    SlicePictures,
    Throughput,
)
from mitoseg.training.checkpointing import SCORE, AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from mitoseg.training.losses import DeepSupervision
from mitoseg.training.module import STATE
from mitoseg.training.tuning import find_batch_size, find_learning_rate
from mitoseg.volumes import CHANNEL_OFFSETS
from mitoseg.workflows.options import default_config_dir
from mitoseg.workflows.scoring import score_checkpoint
from mitoseg.workflows.session import chosen_steps, quiet

log = logging.getLogger(__name__)

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of ``torch.compile``; the second and third replay CUDA graphs."""


def run(cfg: DictConfig, folder: Path, tell: Tell) -> float | None:
    """Train one network and, on the first rank, score it: the foreground JAC on the validation slabs, or None.

    Raises:
        UserError: Something in the config or the data is wrong.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` is written first.
        SystemExit: The job was terminated (143); ``last.ckpt`` is written first.
    """
    with ExitStack() as stack:
        with words_kept(folder):
            if is_main_process():
                lock = folder / "checkpoints" / ".lock"
                stack.enter_context(held(lock, "another training is running in this folder"))
            before, module, trainer, data, origins = build(cfg, folder)
        if not fit_run(cfg, folder, before, module, trainer, data, origins):
            return None
        best = folder / "checkpoints" / "best.ckpt"
        if not best.is_file():
            remedy = "train longer, or validate sooner with trainer.val_check_interval=STEPS"
            raise UserError("training ended before its first validation", f"epochs={cfg.epochs}", remedy)
        # a class from outside mitoseg is trusted if the run has built its own network from it
        trust = read_checkpoint(best)[KEY].get("network") == module.network_config
        given = {"accelerator": cfg.trainer.accelerator, "trust": trust}
        validation = score_checkpoint(best, folder, data.splits, cfg, tell, **given)["validation"]
        if HydraConfig.initialized():
            runtime = HydraConfig.get()
            shown = hyper_parameters(cfg, dict(runtime.runtime.choices), list(runtime.overrides.task))
            keys = ("jaccard_foreground", "jaccard_background", "jaccard_mean")
            scores = {f"validation/{key}": float(validation[key]) for key in keys if key in validation}
            write_hparams(folder, shown, scores)
        return float(validation["jaccard_foreground"])


def train_files(images: Sequence[str], labels: Sequence[str], folder: Path, options: Mapping[str, object]) -> Path:
    """Train on volumes as ``data=files`` does, with further keys of ``conf/train.yaml``; return the checkpoint."""
    files = {"data.train.image": list(images), "data.train.label": list(labels)}
    groups = {key: value for key, value in options.items() if (default_config_dir() / key).is_dir()}
    if options.get("seeds", 1) != 1:
        raise UserError("seeds= makes several runs", options["seeds"], "train once for each seed=")
    for key, value in groups.items():
        if not isinstance(value, str | list):
            raise UserError(f"{key} is not a name", value, f"give {key}=NAME")
    words = ["name=python", *(f"{key}={value}" for key, value in groups.items())]
    changed = {key: value for key, value in options.items() if key not in groups}
    with quiet_lightning():
        run(compose_training(words, {**files, **changed}), folder, lambda _: None)
    return folder / "checkpoints" / "best.ckpt"


def compose_training(words: Sequence[str], changed: Mapping[str, object]) -> DictConfig:
    """The config of a training on files, without progress bar, test and figures; call it in `quiet_lightning`."""
    quiet = {"trainer.enable_progress_bar": False, "test": False, "figures": False, "save_overlays": 0}
    outer = GlobalHydra.instance().hydra  # of the command that calls, if there is one
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
            cfg = compose("train", ["data=files", *words])
    finally:
        GlobalHydra.instance().hydra = outer
    for key, value in {**quiet, **changed}.items():
        if key not in cfg and OmegaConf.select(cfg, key, default=key) == key:
            raise UserError("no such option", key, "docs/TRAINING.md lists them")
        OmegaConf.update(cfg, key, value, merge=False)
    return cfg


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning, and raise errors of a config as a `UserError`."""
    try:
        with quiet("pytorch_lightning", "lightning_fabric"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error) or str(error).partition("\n    full_key")[0]) from error


def build(
    cfg: DictConfig, folder: Path, recipe: Callable[..., Recipe] | None = None
) -> tuple[Continuation, SegmentationModule, Trainer, RegionDataModule, dict[str, Any]]:
    """The parts of a training: what it starts from, module, Trainer, data, and facts for the provenance.

    ``recipe`` replaces the config's.
    """
    check_options(cfg)
    choose_precision(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    config = network_config(cfg)
    before = Continuation.find(cfg, folder)
    if before.checkpoint is not None:
        check_changes(folder, extends=before.scored)
    with built_from("network"):
        with before.bounds:
            network = instantiate(config)
        choose_method(cfg.method, network)
    origin = None
    if before.checkpoint is None and cfg.init_from is not None:
        record = init_from(network, cfg.init_from)
        log.info("weights from %s", cfg.init_from)
        origin = {"checkpoint": cfg.init_from, **{key: record.get(key) for key in ("version", "voxel_size")}}
    with built_from("freeze"):
        frozen = freeze(network, cfg.freeze)
    with built_from("data"):
        data = make_data(cfg, network, recipe)
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
        config,
        scheduler=scheduler,
        loss=loss,
        method=cfg.validation_method,
        extended=before.extended,
        channels_last=cfg.channels_last,
        tiles=cfg.data.tile is not None,
    )
    if before.checkpoint is None and (cfg.tune_batch_size or cfg.tune_lr):
        tune(cfg, make_module, data, folder)
    if not isinstance(cfg.compile, bool) and cfg.compile not in COMPILE_MODES:
        raise UserError("unknown choice of compile", cfg.compile, f"give true, false, {', '.join(COMPILE_MODES)}")
    if cfg.compile and not can_compile(device := trainer.strategy.root_device):
        raise UserError("cannot compile here", device.type, "install a C++ compiler, or give compile=false")
    module = make_module(optimizer=instantiate(cfg.optimizer), compile=cfg.compile)
    return before, module, trainer, data, {"seed": cfg.seed, "init_from": origin, "frozen": frozen}


def check_changes(folder: Path, *, extends: bool) -> None:
    """Log the options that a resumed run changes; refuse those that the checkpoint would silently override.

    That is the state of the optimizer; only the learning rate of an extension is new.
    """
    old, new = changed_arguments(folder)
    for key in sorted({*old, *new}):
        if key.partition(".")[0] == "optimizer" and not (extends and key == "optimizer.lr"):
            remedy = "resume without it, or start a new run with init_from=RUN/checkpoints/best.ckpt"
            raise UserError(f"a resumed run restores its optimizer, {key} would have no effect", new.get(key), remedy)
    if how := changes(old, new):
        rank_zero_only(log.warning)("the run continues with other options than before: %s", how)


@contextmanager
def built_from(key: str) -> Iterator[None]:
    """Name the key of a part that cannot be built; ``hydra.verbose=true`` shows the traceback."""
    try:
        yield
    except Exception as error:
        if explain(error) is not None:
            raise
        log.debug("%s cannot be built", key, exc_info=True)
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        what = f"{key} cannot be built from its options ({type(cause).__name__}: {cause})"
        remedy = f"check the options of {key}; --help lists them"
        if str(error).startswith("Error locating target"):
            remedy = f"check _target_ in {key}/NAME.yaml"
        raise UserError(what, None, remedy) from error


def check_options(cfg: DictConfig) -> None:
    """Refuse numbers out of range at the start: some are used only hours later."""
    least = {"seed": 0, "save_overlays": 0, "epochs": 1, "seeds": 1, "extend": 1, "patience": 1}
    for key, lowest in {**least, "data.epoch_blocks": 1, "data.epoch_tiles": 1}.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not (type(value) is int and lowest <= value < 2**31):
            raise UserError(f"{key} is not a whole number from {lowest}", value, f"write {key}=NUMBER")
    if not cfg.checkpoint_minutes > 0:
        raise UserError("checkpoint_minutes is not a duration", cfg.checkpoint_minutes, "give minutes, above 0")
    if cfg.ema is not None and not 0 < cfg.ema < 1:
        raise UserError("ema is not a decay rate", cfg.ema, "give a number between 0 and 1, such as 0.995, or null")
    if not isinstance(cfg.trainer.enable_progress_bar, bool):
        raise UserError("trainer.enable_progress_bar is neither true nor false", cfg.trainer.enable_progress_bar)
    with built_from("postprocess"):
        chosen_steps(cfg.postprocess)


def choose_precision(cfg: DictConfig) -> None:
    """Decide ``trainer.precision=auto``: bf16-mixed where the device has it natively, else float32."""
    if cfg.trainer.precision == "auto":
        on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
        native = has_bf16(torch.device("cuda" if on_gpu else "cpu"))
        cfg.trainer.precision = "bf16-mixed" if native else "32-true"
    clipped = cfg.trainer.gradient_clip_val is not None and "mixed" in str(cfg.trainer.precision)
    if clipped and cfg.optimizer.get("fused"):
        what = "a fused optimizer cannot clip gradients in mixed precision"
        raise UserError(what, cfg.trainer.gradient_clip_val, "add optimizer.fused=false")


def fit_run(
    cfg: DictConfig,
    folder: Path,
    before: Continuation,
    module: SegmentationModule,
    trainer: Trainer,
    data: RegionDataModule,
    origins: Mapping[str, Any],
    *,
    resumable: bool = True,
) -> bool:
    """Fit what `build` returns and record config, provenance and costs; return whether this is the first rank."""
    if trainer.is_global_zero:
        known = OmegaConf.merge(cfg, {"network": module.network_config})
        write_text(folder / "config.yaml", OmegaConf.to_yaml(known, resolve=True))
        write_json(folder / "provenance.json", collect(**origins))
        if before.scored:  # the run is extended: until there are new scores, those of before have another name
            name = f"metrics_after_{before.epochs - before.extended[-1]}_epochs.json"
            move_into_place(folder / "metrics.json", folder / name, overwrite=True)
    kind = trainer.strategy.root_device.type
    threads = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    tell = rank_zero_only(log.info)
    tell("training on %d %s device(s)%s, precision %s", trainer.world_size, kind, threads, cfg.trainer.precision)
    if cfg.compile:
        tell("compiling: the first step takes half a minute or more")
    fit(trainer, module, data, before.checkpoint, resumable=resumable)
    if trainer.is_global_zero:
        (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
        on_device = torch.cuda.max_memory_allocated(trainer.strategy.root_device) if kind == "cuda" else None
        costs = {
            "training_seconds": round(timer.time_elapsed(), 1),  # without the parts that were lost when it was killed
            "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
            "peak_memory": {"process": peak_memory(), "device": on_device},
        }
        provenance = collect(**origins, **costs, data=dict(data.splits.provenance), draws=dict(data.summary))
        write_json(folder / "provenance.json", provenance)
    return trainer.is_global_zero


def make_data(
    cfg: DictConfig, network: torch.nn.Module, recipe: Callable[..., Recipe] | None = None
) -> RegionDataModule:
    """The datamodule that suits the network's input."""
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
        **({} if recipe is None else {"recipe": recipe}),
    )
    return data


def tile_margin(network: torch.nn.Module) -> tuple[int, int]:
    """Pixels that a network needs before and after a tile to predict all of its pixels."""
    if not isinstance(network, BlockNetwork):
        return 0, 0
    form = DenseForm(network)
    before = anchor(per_axis(network.window, form.ndim)[-1]) + form.padding[-1]
    return before, form.field[-1] - 1 - before


def fit(
    trainer: Trainer,
    module: SegmentationModule,
    data: RegionDataModule,
    checkpoint: Path | None,
    *,
    resumable: bool = True,
) -> None:
    """Train; on an interrupt or at the end of a job's time, save ``last.ckpt`` and print how to continue."""
    folder = as_typed(Path(trainer.default_root_dir))
    go_on = f"continue with: python train.py resume={folder}" if resumable else "give the command again"
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # by a resumed run
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        rank_zero_only(log.warning)("terminated; %s", go_on)
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):  # how Lightning passes on Ctrl-C
            rank_zero_only(log.warning)("stopped; %s", go_on)
        raise
    except Exception as error:
        if checkpoint is None or module.begun or explain(error) is not None:
            raise
        log.debug("the training cannot be restored", exc_info=True)
        what = f"training cannot continue from this checkpoint ({type(error).__name__}: {str(error).splitlines()[0]})"
        remedy = f"start a new run with init_from={checkpoint.with_name('best.ckpt')}"
        raise UserError(what, str(checkpoint), remedy) from error


def tune(
    cfg: DictConfig, make_module: Callable[..., SegmentationModule], data: RegionDataModule, folder: Path
) -> None:
    """Search for a batch size and a learning rate if requested; add them to the config and the saved overrides."""
    if cfg.trainer.devices != 1:
        raise UserError("tune_lr and tune_batch_size need one device", cfg.trainer.devices, "set trainer.devices=1")
    make_trainer, module = partial(instantiate, cfg.trainer), make_module(optimizer=instantiate(cfg.optimizer))
    found: dict[str, int | float] = {}
    if cfg.tune_batch_size:
        cfg.data.batch_size = found["data.batch_size"] = find_batch_size(make_trainer, module, data)
    if cfg.tune_lr:
        figure = folder / "figures" / "learning_rate.png"
        cfg.optimizer.lr = found["optimizer.lr"] = find_learning_rate(make_trainer, module, data, figure=figure)
    for key, value in found.items():
        log.info("%s set to %.4g", key, value)
    replace_saved_words(folder, found, drop=("tune_lr", "tune_batch_size"))


def network_config(cfg: DictConfig) -> dict[str, Any]:
    """The network's config: ``network`` with as many input channels as ``data.channels`` makes."""
    config: dict[str, Any] = OmegaConf.to_container(cfg.network, resolve=True)  # type: ignore[assignment]
    channels = cfg.data.channels
    if channels not in CHANNEL_OFFSETS:
        raise UserError("no such way to make channels", channels, f"choose one of {', '.join(CHANNEL_OFFSETS)}")
    if "in_channels" not in config:
        return config
    count = len(CHANNEL_OFFSETS[channels])
    if config["in_channels"] not in (None, count):
        what = f"the network takes other channels than the {count} that data.channels={channels} makes"
        raise UserError(what, f"network.in_channels={config['in_channels']}", "give network.in_channels=null")
    return {**config, "in_channels": count}


@dataclass(frozen=True)
class Continuation:
    """Where a run starts: from scratch, from its own checkpoint, or from its finished state, extended.

    ``extended`` are the epochs of each extension, including the one starting now (``scored``); ``epochs`` those of the
    whole run. The network is built within ``bounds``, as its arguments may come from an untrusted file.
    """

    checkpoint: Path | None
    extended: tuple[int, ...]
    epochs: int
    scored: bool
    bounds: AbstractContextManager[None] = field(default_factory=nullcontext)

    @classmethod
    def find(cls, cfg: DictConfig, folder: Path) -> Continuation:
        """The start requested by ``resume`` (a run's folder or a file in it) and ``extend``."""
        if cfg.resume is None:
            if cfg.extend is not None:
                raise UserError("extend= without a run", cfg.extend, "add resume=RUN, the run to extend")
            return cls(None, (), cfg.trainer.max_epochs, False)
        given = Path(cfg.resume)
        checkpoint = given if given.is_file() else given / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            remedy = "name a run folder that has checkpoints/last.ckpt, or start the run again if it had none yet"
            raise UserError("nothing to resume from", cfg.resume, remedy)
        found = read_checkpoint(checkpoint)
        extended = list(found.get(STATE, {}).get("extended", []))
        if not all(isinstance(epochs, int) for epochs in extended):
            raise UserError("the checkpoint does not say how the run was extended", str(checkpoint), "start a new run")
        best, states = folder / "checkpoints" / "best.ckpt", found.get("callbacks")
        had_best = isinstance(states, dict) and any(
            "BestCheckpoint" in str(name) and "best.ckpt" in str(state) for name, state in states.items()
        )
        if had_best and not best.is_file():
            remedy = f"copy it from where the run was made, or start a new run with init_from={checkpoint}"
            raise UserError("the best checkpoint of the run is missing", str(best), remedy)
        if cfg.extend is not None:
            if not (folder / "metrics.json").is_file():
                raise UserError("the run has not finished", str(folder), "resume it without extend=")
            extended.append(cfg.extend)
        epochs = cfg.trainer.max_epochs + sum(extended)
        bounds = nullcontext() if cfg.trust else within(Bounds(found["state_dict"].values()))
        return cls(checkpoint, tuple(extended), epochs, cfg.extend is not None, bounds)


def build_trainer(cfg: DictConfig, folder: Path, **replaced: Any) -> Trainer:  # noqa: ANN401 (the Trainer's own)
    """The Trainer with its loggers and callbacks, which write to ``folder``; ``replaced`` overrides its config."""
    loggers: list[Logger] = [TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, name="csv")]
    for name, config in (cfg.get("logger") or {}).items():
        try:
            loggers.append(instantiate(config))
        except InstantiationException as error:
            if isinstance(error.__cause__, ImportError):
                raise UserError(f"logger={name} needs a package", str(name), f"run: pip install {name}") from error
            raise
    kept, throughput = folder / "checkpoints", Throughput()
    callbacks: list[Callback] = [FiniteLoss(), ShallowConvolutions(), SlicePictures(overlay_figure), throughput]
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(SCORE, mode="max", patience=cfg.patience, check_on_train_epoch_end=False))
    if cfg.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=cfg.ema))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress(throughput) if on_terminal() else ProgressLines())
    callbacks.extend(map(instantiate, (cfg.callbacks or {}).values()))
    callbacks.append(Timer(cfg.trainer.max_time))  # the Trainer adds its own only if there is a limit
    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=loggers,
        callbacks=[*callbacks, BestCheckpoint(kept), LastCheckpoint(kept, cfg.checkpoint_minutes)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        **replaced,
    )
    return trainer


Value = bool | int | float | str


def hyper_parameters(cfg: DictConfig, choices: Mapping[str, str | None], words: Iterable[str]) -> dict[str, Value]:
    """What distinguishes a run: its choice in each group, common numbers, the optimizer's, and each override."""
    groups = ("data", "network", "optimizer", "scheduler", "experiment")
    found: dict[str, Value] = {
        group: option for group in groups if (option := choices.get(group)) not in {None, "null"}
    }
    for key, value in cfg.get("optimizer", {}).items():
        if isinstance(value, Value) and not str(key).startswith("_"):
            found[f"optimizer.{key!s}"] = value
    for key in ("seed", "epochs", "data.batch_size", *map(key_of, words)):
        value = OmegaConf.select(cfg, key)
        if key not in found and value is not None and not key.startswith(("hydra", "resume", "name")):
            found[key] = value if isinstance(value, Value) else str(value)
    return found


def write_hparams(folder: Path, given: Mapping[str, Value], scores: Mapping[str, float]) -> None:
    """Write hyperparameters and scores as TensorBoard events to a run's folder."""
    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    logger.log_hyperparams(dict(given), dict(scores))
    logger.finalize("success")
