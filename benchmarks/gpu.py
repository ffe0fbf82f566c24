"""What a machine with a CUDA GPU has to show, in one command.

python benchmarks/gpu.py [key=value ...]

dense    165 x 768 x 1024 voxels through `predict.py` with patch_cnn and context_cnn, and their dense forms alone
unet     the same volume with the bundled U-Net
unet3d   `train.py experiment=unet3d` in bf16-mixed; the largest batch that fits, halving from one that should not
ddp      `train.py trainer.strategy=ddp` on one device for five steps: whether NCCL starts and ends
oom      `predict.py` with a tile for which memory is too short: it is halved, and the result stays the same
paper    `train.py experiment=paper`, 45 epochs, extrapolated if the time runs out

Each part is a process of its own with a share of the time, the last with all that is left; if one fails or does not
fit, the next begins. The data is EPFL CA1 below MITOSEG_DATA, or else a phantom.

out=       JSON file for all figures, written after each part
parts=     which of them, such as unet,paper
quick=     true: tiny sizes that say nothing, without a GPU on the CPU, to see whether all runs
minutes=8  for all parts together
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from inference import Options as InferenceOptions
from inference import measure_device
from inference_command import NETWORKS, ROOT, make_checkpoint, make_volume
from inference_sides import possible_settings
from options import read_options
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timing import name_processor
from training import Options as TrainingOptions
from training import data_words

from mitoseg.cli.launch import main as mitoseg
from mitoseg.datasets import Phantom
from mitoseg.inference import Predictor
from mitoseg.networks.checkpoint import read_checkpoint
from mitoseg.provenance import git_state
from mitoseg.storage import write_json
from mitoseg.volumes import open_volume

SHARES = {"dense": 0.2, "unet": 0.1, "unet3d": 0.24, "ddp": 0.08, "oom": 0.08, "paper": 0.3}
LARGEST_BATCH = 1024  # tiles of 48 x 128 x 128, of which each takes some 100 MB
CLOSE = 1e-4  # between probabilities of tiles of two sizes: cuDNN chooses its algorithm by the size


@dataclass
class Options:
    """The words of the command line, see above."""

    out: str | None = None
    parts: str = ",".join(SHARES)
    quick: bool = False
    minutes: float = 8.0


@dataclass
class Job:
    """One part, with its data as words of `train.py`, its volume, and until when (`time.time`) it may run."""

    part: str
    data: list[str]
    image: str
    folder: str
    device: str
    quick: bool
    deadline: float

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()

    def keep(self, found: dict[str, Any]) -> dict[str, Any]:
        """Store what is known so far: the process may be ended at any time."""
        write_json(Path(self.folder) / "found.json", found)
        return found

    def command(self, *words: str) -> Path:
        """Run a command of mitoseg in this process and return its folder; the line that ends it is raised."""
        folder, told = Path(self.folder) / str(time.time_ns()), io.StringIO()
        peak(forget=True)
        try:
            with contextlib.redirect_stderr(told):
                mitoseg([*words, f"hydra.run.dir={folder}"])
        except SystemExit:
            print(told.getvalue(), file=sys.stderr)
            raise RuntimeError(told.getvalue().strip().splitlines()[-1]) from None
        return folder

    def predict(self, image: str, *words: str) -> dict[str, Any]:
        """The whole command, twice if there is time: the first time it also starts CUDA and cuDNN."""
        output, seconds = Path(self.folder) / "out.tif", []
        files = [f"input={image}", f"output={output}", f"accelerator={self.device}"]
        while not seconds or (len(seconds) < 2 and self.left() > 2 * seconds[0]):
            output.unlink(missing_ok=True)
            start = time.perf_counter()
            run = self.command("predict", *files, *words, "expect=false", "progress=false")
            seconds.append(time.perf_counter() - start)
        speed, chosen = open_volume(image).box.size / min(seconds), read_json(run / "provenance.json")["chosen"]
        return {"voxels_per_second": speed, "seconds": seconds, "peak_gpu_bytes": peak(), "chosen": chosen}

    def train(self, *words: str, seconds: float | None = None) -> dict[str, Any]:
        """The whole command without its test, which ends after some seconds if they are given."""
        quiet = ["trainer.enable_progress_bar=false", "test=false", "figures=false", "save_overlays=0"]
        if seconds is not None:
            minutes, rest = divmod(3 if self.quick else max(5, int(seconds)), 60)
            quiet.append(f"trainer.max_time=00:00:{minutes:02}:{rest:02}")
        run = self.command("train", *words, *self.data, *quiet, f"trainer.accelerator={self.device}")
        costs, logged = read_json(run / "provenance.json"), pd.read_csv(run / "csv" / "version_0" / "metrics.csv")
        drawn = sum(costs["draws"].get(key, 0) for key in ("draws", "draws_foreground", "draws_background"))
        return {
            "steps": read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"],
            "samples_per_epoch": drawn,
            "samples_per_second": float(logged.get("train/blocks_per_second", pd.Series(dtype=float)).median()),
            "seconds": costs["training_seconds"],
            "loss_at_the_end": float(logged["train/loss"].dropna().tail(10).mean()),
            "validation_jaccard": read_json(run / "metrics.json")["validation"]["jaccard_foreground"],
            "peak_gpu_bytes": costs["peak_memory"]["device"],
        }


def read_json(path: Path) -> Any:
    """What a file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def peak(*, forget: bool = False) -> int | None:
    """The most bytes of this process's tensors on the GPU since they were forgotten; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    if forget:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def dense(job: Job) -> dict[str, Any]:
    """The commands, then the networks alone beside a product of matrices, not compiled (this volume is too small)."""
    volume, found = open_volume(job.image), {}
    checkpoints = {name: make_checkpoint(name, None, volume, Path(job.folder)) for name in NETWORKS}
    for name, checkpoint in checkpoints.items():
        found[name] = {"predict": job.predict(job.image, f"checkpoint={checkpoint}")}
        job.keep(found)
    settings = ",".join(
        setting.name for setting in possible_settings(torch.device(job.device)) if not setting.compiled
    )
    options = InferenceOptions(parts="dense", settings=settings, seconds=1, turns=3, quick=job.quick)
    peak(forget=True)
    timed = measure_device(torch.device(job.device), volume, checkpoints, options)["per_setting"]
    keys = ("megapixels_per_second", "dense_fraction_of_ceiling", "ceiling_flops")
    for name, by_setting in timed.items():
        found[name] |= {setting: {key: one[key] for key in keys} for setting, one in by_setting.items()}
    return found | {"peak_gpu_bytes": peak()}


def unet(job: Job) -> dict[str, Any]:
    """The bundled U-Net."""
    return job.predict(job.image, "checkpoint=epfl-unet25d")


def unet3d(job: Job) -> dict[str, Any]:
    """Steps of a 3D network, and the largest batch of its tiles; what was tried is its memory or its error."""
    words = ["experiment=unet3d", "trainer.precision=bf16-mixed"]
    short = ["epochs=1", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1"]
    if job.quick:
        words += ["data.tile=[48,32,32]", "data.epoch_tiles=4", *short]
    found = job.train(*words, seconds=job.left() / 5)
    found |= {"steps_per_second": found.pop("samples_per_second") / 2, "largest_batch": None, "tried": {}}
    batch = 2 if job.quick else LARGEST_BATCH
    while batch and not found["largest_batch"] and job.left() > 15:
        job.keep(found)
        sizes = [f"data.batch_size={batch}", f"data.epoch_tiles={batch}"]
        try:
            found["tried"][batch] = job.train(*dict.fromkeys([*words, *short]), *sizes)["peak_gpu_bytes"]
            found["largest_batch"] = batch
        except RuntimeError as error:
            found["tried"][batch] = str(error)
        batch //= 2
    return found


def ddp(job: Job) -> dict[str, Any]:
    """A training with a process group; if it hangs, its time runs out."""
    job.keep({"finished": False})
    start = torch.distributed.init_process_group
    with patch("torch.distributed.init_process_group", wraps=start) as started:
        short = ["epochs=1", "trainer.limit_train_batches=5", "data.validation.slabs=[[0,2]]"]
        found = job.train("trainer.strategy=ddp", "trainer.devices=1", *short)
    return {"finished": True, "backend": started.call_args.args[0], "seconds": found["seconds"]}


def oom(job: Job) -> dict[str, Any]:
    """Small tiles, a whole one, and the same with half of the memory that it took."""
    if job.device != "cuda":
        return {"skipped": "only the memory of a GPU can be limited"}
    shape = (8, *open_volume(job.image).shape[1:])
    volume = make_volume(job.image, shape, Path(job.folder))
    words = [f"checkpoint={make_checkpoint('patch_cnn', None, volume, Path(job.folder))}", "precision=fp32"]
    halved, results, peaks, compute = [], {}, {}, Predictor._compute

    def counted(self: Predictor, greys: Any, write: Any) -> Any:
        try:
            return compute(self, greys, write)
        except torch.OutOfMemoryError:
            halved.append([name, *write.shape])
            raise

    Predictor._compute = counted
    for name, tile in {"small": (2, 256, 256), "whole": shape, "short": shape}.items():
        if name == "short":  # it is not made smaller beforehand, as the GPU has free memory
            torch.cuda.set_per_process_memory_fraction(peaks["whole"] / 2 / torch.cuda.mem_get_info()[1])
        peaks[name] = job.predict(volume.path, *words, f"tile=[{','.join(map(str, tile))}]")["peak_gpu_bytes"]
        results[name] = open_volume(Path(job.folder) / "out.tif").read()
    difference = {name: float(np.abs(results["short"] - results[name]).max()) for name in ("small", "whole")}
    found = job.keep({"halved": halved, "difference": difference, "peak_gpu_bytes": peaks})
    if {name for name, *_ in halved} != {"short"} or max(difference.values()) > CLOSE:
        raise RuntimeError(f"halved tiles: {halved}; differences of the result: {difference}")
    return found


def paper(job: Job) -> dict[str, Any]:
    """The 45 epochs of the paper."""
    found = job.train("experiment=paper", "data.batch_size=100", seconds=job.left() - 60)  # the rest is for its scores
    epochs = found["steps"] / math.ceil(found["samples_per_epoch"] / 100)
    each = found["seconds"] / epochs
    return {"epochs": epochs, "seconds_per_epoch": each, "seconds_of_45_epochs": 45 * each} | found


def find_data(folder: Path, *, quick: bool) -> tuple[str, list[str], str]:
    """The data's name, its words for `train.py`, and its training image."""
    epfl = Path(os.environ.get("MITOSEG_DATA", "")) / "epfl_ca1" / "training.tif"
    if not quick and epfl.is_file():
        return "EPFL CA1", data_words(TrainingOptions(), folder), str(epfl)
    shapes = {"train_shape": [64, 224, 224] if quick else [72, 384, 512], "test_shape": [4, 96, 96]}
    phantom = Phantom(root=str(folder), **shapes)
    phantom.prepare()
    words = [f"data.{key}=[{','.join(map(str, shape))}]" for key, shape in shapes.items()]
    return "phantom", ["data=phantom", f"data.root={folder}", *words], phantom.named("train").image[0]


def run_part(job: Job) -> dict[str, Any]:
    """One part in a process of its own, until its time is over: its state and figures."""
    folder, start, code = Path(job.folder), time.time(), None
    folder.mkdir()
    with (folder / "log").open("w", encoding="utf-8") as log, contextlib.suppress(subprocess.TimeoutExpired):
        words = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(job))]
        code = subprocess.run(words, stdout=log, stderr=log, timeout=max(1, job.left())).returncode
    kept, lines = folder / "found.json", (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    figures = read_json(kept) if kept.is_file() else {}
    result = {"state": "done", "seconds": time.time() - start, "figures": figures}
    if code is None:
        return result | {"state": "did not fit into its time", "log": lines[-25:]}
    if code:
        figures["error"] = lines[-1] if lines else f"exit code {code}"
        return result | {"state": "failed", "log": lines[-25:]}
    return result


def show(report: dict[str, Any]) -> None:
    """Print the figures."""
    title = f"{report['gpu'] or report['cpu']}, torch {report['torch']}, {report['commit']}, {report['data']}"
    table = Table("part", "figure", "value", title=title)
    for part, found in report["parts"].items():
        table.add_row(part, found["state"], f"{found['seconds']:.0f} s")
        figures = pd.json_normalize(found["figures"], sep=" ").iloc[0] if found["figures"] else {}
        for name, value in figures.items():
            shown = f"{value:,.4g}" if isinstance(value, float) or ("bytes" in name and value) else str(value)
            table.add_row("", name, escape(shown))
        table.add_section()
    (Console() if sys.stdout.isatty() else Console(width=140)).print(table)


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return {}
    if words and words[0].startswith("{"):  # the process of one part
        job = Job(**json.loads(words[0]))
        return job.keep(globals()[job.part](job))
    start, options, device = time.time(), read_options(Options, words), "cuda" if torch.cuda.is_available() else "cpu"
    left = {part: share for part, share in SHARES.items() if part in options.parts.split(",")}
    if set(options.parts.split(",")) - set(left):
        sys.exit(f"error: parts={options.parts}: choose some of {','.join(SHARES)}")
    if device == "cpu" and not options.quick:
        sys.exit("error: torch finds no CUDA GPU here; quick=true runs all parts in tiny sizes on the CPU")
    commit, dirty = git_state(ROOT)
    report: dict[str, Any] = {
        "gpu": None,
        "cpu": name_processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    report |= {"commit": commit, "dirty": dirty, "quick": options.quick, "parts": {}}
    with TemporaryDirectory() as folder:
        report["data"], data, image = find_data(Path(folder), quick=options.quick)
        image = make_volume(image, (3, 96, 128) if options.quick else (165, 768, 1024), Path(folder)).path
        while left:
            now, shares, part = time.time(), sum(left.values()), next(iter(left))
            deadline = now + (start + 60 * options.minutes - now) * left.pop(part) / shares
            Console(stderr=True).print(f"{part}: {deadline - now:.0f} s at most", style="dim")
            job = Job(part, data, str(image), f"{folder}/{part}", device, options.quick, deadline)
            report["parts"][part] = run_part(job)
            if device == "cuda" and not left:
                report["gpu"] = torch.cuda.get_device_name()  # only now, as it takes memory of the GPU
            if options.out:
                write_json(options.out, report)
    show(report)
    return report


if __name__ == "__main__":
    sys.exit(any(found["state"] == "failed" for found in main(sys.argv[1:]).get("parts", {}).values()))
