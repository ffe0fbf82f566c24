"""A command of its own, as the tests of launch start it: ``python fake_command.py key=value ...``."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from mitoseg.cli.launch import launch, run_dir
from mitoseg.errors import UserError


def relaunch(check=True):
    """Start rank 1 the way Lightning does with Hydra (lightning_fabric's subprocess_script.py)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd, to_absolute_path

    os.environ.update(LOCAL_RANK="0", WORLD_SIZE="2", MASTER_PORT="1")
    command = [sys.executable, to_absolute_path(sys.argv[0]), *sys.argv[1:]]
    command += [f'hydra.run.dir="{HydraConfig.get().run.dir}"', "hydra.job.name=rank_1", "hydra.output_subdir=null"]
    process = subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": "1"}, cwd=get_original_cwd())
    if check and process.wait():
        raise RuntimeError("rank 1 failed")


def train(victim=None):
    """Two epochs of nothing much on two processes; rank ``victim`` is killed on the way."""
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel

    class Killer(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)

    options = {"devices": 2, "accelerator": "cpu", "strategy": "ddp", "max_steps": 2 if victim is None else 1000}
    options |= dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    pl.Trainer(limit_val_batches=0, callbacks=[Killer()], **options).fit(BoringModel())


def save():
    """Leave what a run is taken up from."""
    (run_dir() / "checkpoints").mkdir(exist_ok=True)
    (run_dir() / "checkpoints" / "last.ckpt").touch()


def leave(*_):
    """End on SIGTERM as training does: write the last checkpoint first."""
    save()
    raise SystemExit(143)


def wait():
    """Work until somebody ends it."""
    signal.signal(signal.SIGTERM, leave)
    (run_dir() / "pid.json").write_text(str(os.getpid()))
    time.sleep(120)


def run(cfg):
    """Write down what arrived, then do what ``then`` says."""
    rank = os.environ.get("LOCAL_RANK", "0")
    told = {"input": cfg.input, "crop": list(cfg.crop or []), "seed": cfg.seed, "group": cfg.group.a, "world": world()}
    told |= {"argv": sys.argv, "resume": cfg.resume, "threads": os.environ.get("OMP_NUM_THREADS")}
    told["cores"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    (run_dir() / f"rank{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    logging.getLogger("mitoseg.fake").info("at work on %s", cfg.input)
    logging.getLogger("other").info("noise")
    fail(cfg)
    if cfg.then == "interrupt":
        raise KeyboardInterrupt
    if cfg.then == "warn":
        warnings.warn("odd\nthing", stacklevel=1)
    if cfg.then == "relaunch" and rank == "0":
        relaunch()
    if cfg.then == "lose_ranks":
        if rank == "0":
            relaunch(check=False)
            while not (run_dir() / "pid.json").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        wait()
    if cfg.then == "wait" and cfg.resume is None:
        wait()
    if cfg.then == "wait_once" and not (run_dir().parent / "waited").exists():
        (run_dir().parent / "waited").touch()
        wait()
    if cfg.then in {"train", "train_and_lose", "train_outside"}:
        train(victim=1 if cfg.then == "train_and_lose" and cfg.seed == 1 else None)
    score = -((math.log10(cfg.lr) + 2) ** 2) + cfg.seed
    (run_dir() / "metrics.json").write_text(json.dumps({"validation": {"jaccard_foreground": score}}))
    return score


def fail(cfg):
    """The ways to fail."""
    if cfg.then == "mistake":
        raise UserError("no such thing", cfg.input, "choose another")
    if cfg.then == "wrapped":
        raise RuntimeError("around") from UserError("inside", 1, "mend it")
    if cfg.then == "bug":
        raise KeyError("oops")
    if cfg.then == "missing":
        print(cfg.must)
    if cfg.then in {"die", "save_and_die"} and cfg.resume is None:
        if cfg.then == "save_and_die":
            save()
        os.kill(os.getpid(), signal.SIGKILL)


def world():
    """The ranks that the environment speaks of before anything is started."""
    return os.environ.get("WORLD_SIZE") if os.environ.get("LOCAL_RANK", "0") == "0" else None


if __name__ == "__main__":
    launch("fake", run, config_dir=Path(sys.argv[0]).resolve().parent / "conf")
