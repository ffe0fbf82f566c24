"""The whole command ``predict`` in `inference.py`: its volume, its checkpoint, and its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from inference_sides import Bench, Setting
from timing import Sample, Turns, measure_bandwidth, measure_link

from mitoseg.datasets import Phantom
from mitoseg.geometry import Box, reflect
from mitoseg.inference.precision import can_compile, choose_precision
from mitoseg.networks import ContextCNN, PatchCNN
from mitoseg.networks.checkpoint import FORMAT, KEY, load_model
from mitoseg.volumes import Volume, create_volume, measure_normalization, open_volume

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"patch_cnn": PatchCNN, "context_cnn": ContextCNN}


def find_image(data: str | None) -> str:
    """The image asked for, else the first of EPFL CA1 below ``MITOSEG_DATA``, else the phantom's."""
    if data is None and (folder := os.environ.get("MITOSEG_DATA")):
        return str(Path(folder) / "epfl_ca1" / "training.tif")
    if data is None:
        phantom = Phantom()
        phantom.prepare()
        return phantom.named("train").image[0]
    return data


def make_volume(path: str, shape: tuple[int, int, int], folder: Path) -> Volume:
    """The image itself where it has this shape, else a TIFF cut from it, or continued by reflection."""
    volume = open_volume(path)
    if volume.shape == shape:
        return volume
    image_zyx = volume.read(Box.of_shape([min(a, b) for a, b in zip(shape, volume.shape, strict=True)]))
    for axis, size in enumerate(shape):
        image_zyx = np.take(image_zyx, reflect(np.arange(size), image_zyx.shape[axis]), axis)
    made = folder / "volume.tif"
    with create_volume(made, shape, image_zyx.dtype, voxel_size=volume.voxel_size, metadata={}) as writer:
        writer.write(Box.of_shape(shape), image_zyx)
    return open_volume(str(made))


def make_checkpoint(name: str, given: str | None, volume: Volume, folder: Path) -> Path:
    """The checkpoint given, if it is of this network, else one with random weights."""
    kind = NETWORKS[name]
    if given and isinstance(load_model(given).network, kind):
        return Path(given)
    torch.manual_seed(0)
    record = {
        "format": FORMAT,
        "network": {"_target_": f"mitoseg.networks.{kind.__name__}", "in_channels": 3},
        "normalization": asdict(measure_normalization([(volume, volume.box)])),
        "channels": "adjacent",
        "voxel_size": [5.0, 5.0, 5.0],
        "calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.0},
        "threshold": 0.5,
        "precision": {"bf16": {"jaccard_drop": 0.0}},
    }
    weights = {f"network.{key}": value for key, value in kind(in_channels=3).state_dict().items()}
    path = folder / f"{name}.ckpt"
    torch.save({"state_dict": weights, KEY: record}, path)
    return path


def time_command(bench: Bench, checkpoint: Path, sample: Sample) -> dict[str, Any]:
    """The command against the bare dense form, timed just before and after it in the setting that it chose."""
    expected = Setting(choose_precision("auto", bench.device, bench.model.record), can_compile(bench.device))
    before = bench.time_dense(expected, sample)
    with TemporaryDirectory() as folder:
        output, run = Path(folder) / "out.tif", Path(folder) / "run"
        files = {"checkpoint": checkpoint, "input": bench.volume.path, "output": output, "hydra.run.dir": run}
        words = [f"{key}={os.path.abspath(path)}" for key, path in files.items()]
        words += [f"accelerator={bench.device.type}", "progress=false"]
        caches = {name: str(Path(folder) / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        seconds = _run([str(ROOT / "predict.py"), *words], caches)
        chosen = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["chosen"]
    setting = Setting(chosen["precision"], bool(chosen["compile"]))
    turns = Turns([*(before if setting == expected else []), *bench.time_dense(setting, sample)])
    slices = bench.volume.shape[0]
    found = {
        "slices": slices,
        "seconds": seconds,
        "seconds_of_imports": min(_run(["-c", "import mitoseg.workflows.predict"], {}) for _ in range(2)),
        "chosen": chosen,
        "setting": setting.name,
        "dense_seconds_per_slice": turns.median,
        "dense_seconds_per_slice_best": turns.best,
        "predict_fraction_of_network": slices * turns.median / seconds,
    }
    return found | (gpu_volume(bench, setting, sample) if bench.device.type == "cuda" else {})


def gpu_volume(bench: Bench, setting: Setting, sample: Sample) -> dict[str, Any]:
    """Seconds that a GPU computes for all slices, and those that it would need at the least for one reason alone."""
    side = bench.dense(setting)
    side.seconds(2, bench.device)
    batches = -(-bench.volume.shape[0] // bench.slices)  # the last one is filled up
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode(), side.context():
        start.record()
        for _ in range(batches):
            side.call()
        stop.record()
    torch.cuda.synchronize(bench.device)
    bandwidth, link = measure_bandwidth(bench.device, sample), measure_link(bench.device, sample)
    slices, voxels = bench.volume.shape[0], bench.volume.box.size
    return {
        "device_seconds": start.elapsed_time(stop) / 1e3,
        "operations": slices * bench.count_operations()["dense"],
        "bytes_of_layers": slices * bench.count_bytes(setting.precision),
        "bytes_per_second": bandwidth,
        "link_bytes_per_second": link,
        "link_seconds": voxels * (bench.volume.dtype.itemsize / link["to"] + 4 / link["back"]),
    }


def limits(found: Mapping[str, Any], ceiling: float) -> dict[str, float]:
    """Seconds that `gpu_volume`'s volume needs at the least for its operations, its layers' bytes, and its voxels."""
    return {
        "operations": found["operations"] / ceiling,
        "bytes of the layers": found["bytes_of_layers"] / found["bytes_per_second"],
        "voxels to the GPU and back": found["link_seconds"],
    }


def _run(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds from the start of a Python command to its exit.

    Raises:
        SystemExit: It failed.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, encoding="utf-8", cwd=ROOT, env={**os.environ, **environment}
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {' '.join(words)} failed:\n{done.stderr}")
    return seconds
