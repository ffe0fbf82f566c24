"""A command of its own, as the tests of launch start it: ``python fake_command.py key=value ...``."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

from mitoseg.cli.launch import launch, run_dir
from mitoseg.errors import UserError


def relaunch():
    """Start rank 1 the way Lightning does with Hydra (lightning_fabric's subprocess_script.py)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd, to_absolute_path

    os.environ.update(LOCAL_RANK="0", WORLD_SIZE="2", MASTER_PORT="1")
    command = [sys.executable, to_absolute_path(sys.argv[0]), *sys.argv[1:]]
    command += [f'hydra.run.dir="{HydraConfig.get().run.dir}"', "hydra.job.name=rank_1", "hydra.output_subdir=null"]
    subprocess.run(command, env={**os.environ, "LOCAL_RANK": "1"}, cwd=get_original_cwd(), check=True)


def train():
    """Two epochs of nothing much on two processes."""
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        devices=2,
        accelerator="cpu",
        strategy="ddp",
        max_steps=2,
        limit_val_batches=0,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(BoringModel())


def run(cfg):
    """Write down what arrived, then do what ``then`` says."""
    rank = os.environ.get("LOCAL_RANK", "0")
    told = {"input": cfg.input, "crop": list(cfg.crop or []), "seed": cfg.seed, "group": cfg.group.a, "world": world()}
    (run_dir() / f"rank{rank}.json").write_text(json.dumps({**told, "argv": sys.argv}), encoding="utf-8")
    logging.getLogger("mitoseg.fake").info("at work on %s", cfg.input)
    logging.getLogger("other").info("noise")
    if cfg.then == "mistake":
        raise UserError("no such thing", cfg.input, "choose another")
    if cfg.then == "wrapped":
        raise RuntimeError("around") from UserError("inside", 1, "mend it")
    if cfg.then == "bug":
        raise KeyError("oops")
    if cfg.then == "interrupt":
        raise KeyboardInterrupt
    if cfg.then == "missing":
        print(cfg.must)
    if cfg.then == "warn":
        warnings.warn("odd\nthing", stacklevel=1)
    if cfg.then == "relaunch" and rank == "0":
        relaunch()
    if cfg.then == "train":
        train()


def world():
    """The ranks that the environment speaks of before anything is started."""
    return os.environ.get("WORLD_SIZE") if os.environ.get("LOCAL_RANK", "0") == "0" else None


if __name__ == "__main__":
    launch("fake", run, config_dir=Path(sys.argv[0]).resolve().parent / "conf")
