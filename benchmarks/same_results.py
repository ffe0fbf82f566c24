"""Whether a change of the code changed any result: hashes of what small runs give, recorded and compared.

python benchmarks/same_results.py out=FILE.json [parts=[predict,train]]
python benchmarks/same_results.py before=A.json after=B.json

predict    probabilities and masks of the bundled model and of two networks trained on the phantom, by every method
train      weights after 40 steps on blocks and 8 on tiles, and the scores of their runs
formats    a volume in every format that is written, and in those that are only read
objects    instances, their measurements, surfaces and centre lines, and the tables of reports
classical  probabilities and masks of the methods that are no networks
export     weights, and what an ONNX file answers

The EPFL volumes are read in the folder that MITOSEG_DATA names; without it their results are left out. Only commands
and the public Python interface are used: an older commit can be recorded as well, with its folder on PYTHONPATH.
The comparison prints the results that differ and exits with 1 if there are any. Everything runs on one CPU thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import hashlib
import json
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
import torch
from options import read_options
from safetensors.numpy import load_file

import mitoseg
from mitoseg.volumes import open_volume

Array = npt.NDArray[Any]

BLOCKS = [
    "data=phantom",
    "data.root=phantom",
    "data.train_shape=[10,96,128]",
    "data.test_shape=[5,96,128]",
    "data.validation_stride=2",
    "epochs=1",
    "save_overlays=0",
    "figures=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
]
TRAININGS = {
    "blocks": ["data.epoch_blocks=4000"],
    "purity": ["data.positions=grid", "data.purity=[0.02,0.1]", "data.label_rule=purity", "data.balance=rotate"],
    "tiles": ["network=unet25d", "data.tile=[1,64,64]", "data.epoch_tiles=32", "augmentation=em", "ema=0.9"],
    "context": ["network=context_cnn", "data.tile=[1,16,16]", "data.epoch_tiles=32", "data.batch_size=4"],
}
METHODS = {
    "blocks": ("dense", "strided", "window"),
    "purity": ("dense",),
    "tiles": ("blend",),
    "context": ("dense", "window"),
}
VOLATILE = re.compile("duration|seconds|date|time|memory|version|commit|host|path|command|machine|run|created", re.I)
"""Keys of what may differ from one run to the next."""


@dataclass
class Options:
    """The words of the command line: what to record where, or which two records to compare."""

    out: str | None = None
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    before: str | None = None
    after: str | None = None


def digest(values: object) -> str:
    """Type, shape and hash of an array, or the hash of a text."""
    if isinstance(values, str):
        return "text " + hashlib.sha256(values.encode()).hexdigest()
    array = np.ascontiguousarray(values)
    mean = f" mean {array.mean():.6g}" if array.dtype.kind in "buif" and array.size else ""
    return f"{array.dtype} {array.shape}{mean} {hashlib.sha256(array.tobytes()).hexdigest()}"


def command(name: str, *words: str) -> None:
    """Run a command in this process."""
    arguments, environment = sys.argv, dict(os.environ)
    sys.argv = ["mitoseg", name, f"hydra.run.dir={name}", *words]
    try:
        runpy.run_module("mitoseg", run_name="__main__")
    except SystemExit as leaving:
        if leaving.code:
            sys.exit(f"error: {' '.join([name, *words])} failed")
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)


@cache
def crop() -> tuple[Array, Array] | None:
    """A part of the EPFL test volume and its labels."""
    folder = Path(os.environ.get("MITOSEG_DATA", "")) / "epfl_ca1"
    if "MITOSEG_DATA" not in os.environ or not folder.is_dir():
        return None
    files = ("testing_z000-081.tif", "testing_z000-081_groundtruth.tif")
    image_zyx, truth_zyx = (open_volume(folder / name).read()[20:30, 200:360, 300:492] for name in files)
    return image_zyx, truth_zyx


@cache
def phantom() -> tuple[Array, Array]:
    """The phantom's test volume and its labels: image, truth."""
    train("blocks")
    folder = next(Path("phantom").glob("fibsem_5x*/image.tif")).parent
    return tifffile.imread(folder / "image.tif"), tifffile.imread(folder / "label.tif")


@cache
def train(name: str) -> Path:
    """The folder of one training run."""
    command("train", *BLOCKS, *TRAININGS[name], f"hydra.run.dir=train_{name}")
    return Path(f"train_{name}")


def load(name: str | Path | None) -> Any:
    """A model on the CPU."""
    return mitoseg.load(name, accelerator="cpu")


def predict() -> Iterator[tuple[str, object]]:
    """Predictions of the trained and the bundled networks."""
    image_zyx, _ = phantom()
    for name in TRAININGS:
        model, size = load(train(name) / "checkpoints" / "best.ckpt"), (5, 5, 5)
        for method in METHODS[name]:
            yield f"{name} {method}", model.predict(image_zyx, size, method=method, tile=(3, 48, 64))
        if "window" in METHODS[name]:
            yield f"{name} every second", model.predict(image_zyx, size, method="window", window_stride=2)
        views = {"tta": "all", "consensus": "median", "tile": (3, 80, 96)}
        yield f"{name} views", model.predict(image_zyx[:, :80, :96], size, **views)
        yield f"{name} resampled", model.predict(image_zyx, (5, 7.5, 7.5), tile=(3, 48, 64))
    if (real := crop()) is None:
        return
    model, (image_zyx, _) = load(None), real
    padded_zyx = image_zyx.copy()
    padded_zyx[:, :, :40] = 0
    changed = {
        "default": {},
        "tiles": {"tile": (1, 64, 96), "overlap": 0.3},
        "flips": {"tta": "flips"},
        "normalize": {"normalize": "volume"},
        "match": {"normalize": "match"},
        "bf16": {"precision": "bf16"},
    }
    for name, options in changed.items():
        yield f"bundled {name}", model.predict(image_zyx, (5, 5, 5), **options)
    yield "bundled padded", model.predict(padded_zyx, (5, 5, 5))
    yield "bundled resampled", model.predict(image_zyx, (5, 7.5, 7.5))
    for postprocess in ("none", "clean"):
        yield f"bundled {postprocess}", model.segment(image_zyx, (5, 5, 5), postprocess=postprocess)
    tifffile.imwrite("epfl.tif", image_zyx)
    given = ("input=epfl.tif", "voxel_size=[5,5,5]", "accelerator=cpu", "progress=false", "overwrite=true")
    command("predict", *given, "output=cleaned.zarr", "save=mask", "postprocess=paper", "workers=2")
    yield "bundled by workers", open_volume("cleaned.zarr").read()
    command("predict", *given, "output=instances.tif", "save=instances", "labelling=split")
    yield "bundled instances", open_volume("instances.tif").read()
    command("predict", *given, "output=uncertain.h5", "save=uncertainty", "tta=flips", "dtype=uint8")
    yield "bundled uncertainty", open_volume("uncertain.h5").read()


def training() -> Iterator[tuple[str, object]]:
    """Weights and scores of each training."""
    for name in TRAININGS:
        folder = train(name)
        for file in ("best", "last"):
            saved = torch.load(folder / "checkpoints" / f"{file}.ckpt", map_location="cpu", weights_only=False)
            for key, weights in saved["state_dict"].items():
                yield f"{name} {file} {key}", weights.numpy()
        yield from scores(name, folder / "metrics.json")


def scores(name: str, file: Path) -> Iterator[tuple[str, object]]:
    """The numbers of a JSON file that do not depend on the time or the machine."""

    def leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            for part, child in value.items():
                if not VOLATILE.search(part):
                    yield from leaves(child, f"{key} {part}")
        elif not isinstance(value, str):
            yield key, np.array(json.dumps(value))

    yield from leaves(json.loads(file.read_text(encoding="utf-8")), name)


def formats() -> Iterator[tuple[str, object]]:
    """What is read back of each format."""
    image_zyx, _ = phantom()
    model = load(train("blocks") / "checkpoints" / "best.ckpt")
    for suffix in (".tif", ".h5", ".zarr", ".ome.zarr", ".mrc"):
        for dtype in ("float32", "uint8"):
            name = f"format_{dtype}{suffix}"
            tifffile.imwrite("image.tif", image_zyx)
            given = ("checkpoint=train_blocks/checkpoints/best.ckpt", "input=image.tif", f"output={name}")
            command("predict", *given, f"dtype={dtype}", "voxel_size=[5,5,5]", "accelerator=cpu", "progress=false")
            volume = open_volume(name)
            yield f"{dtype}{suffix}", volume.read()
            yield f"{dtype}{suffix} voxel size", np.array(volume.voxel_size)
        yield f"read {suffix}", model.predict(f"format_uint8{suffix}", (5, 5, 5))
    import nibabel
    import nrrd

    nibabel.save(nibabel.Nifti1Image(image_zyx.T, np.diag([5.0, 5.0, 5.0, 1.0])), "image.nii.gz")
    nrrd.write("image.nrrd", image_zyx.T)
    Path("slices").mkdir()
    for z, slice_yx in enumerate(image_zyx):
        tifffile.imwrite(f"slices/{z:03d}.tif", slice_yx)
    for name in ("image.nii.gz", "image.nrrd", "slices"):
        yield f"read {name}", open_volume(name).read()


def objects() -> Iterator[tuple[str, object]]:
    """Instances, measurements, surfaces, centre lines and reports."""
    sources = {"phantom": phantom(), "epfl": crop()}
    for name, pair in sources.items():
        if pair is None:
            continue
        image_zyx, truth_zyx = pair
        mask_zyx = (truth_zyx > 0).astype(np.uint8)
        labels_zyx = mitoseg.label(mask_zyx, (5, 5, 5))
        yield f"{name} components", labels_zyx
        yield f"{name} split", mitoseg.label(mask_zyx, (5, 5, 5), labelling=mitoseg.Labelling(split=True))
        yield from table(name, mitoseg.measure(labels_zyx, (5, 5, 5), image=image_zyx))
        tifffile.imwrite(f"{name}_image.tif", image_zyx)
        tifffile.imwrite(f"{name}_labels.tif", labels_zyx)
        smoothed = Path(f"{name}_wrong.tif")
        tifffile.imwrite(smoothed, np.roll(mask_zyx, (1, 2, 3), (0, 1, 2)))
        made = (f"meshes={name}_meshes", f"skeletons={name}_skeletons", "mesh_formats=[ply,obj]", "report=true")
        size, quiet = "voxel_size=[5,5,5]", "progress=false"
        command(
            "measure", f"input={name}_labels.tif", f"image={name}_image.tif", f"output={name}.csv", size, quiet, *made
        )
        yield from table(f"{name} command", pd.read_csv(f"{name}.csv", comment="#"))
        yield from table(f"{name} summary", pd.read_csv(f"{name}_summary.csv", comment="#"))
        for file in sorted([*Path(f"{name}_meshes").iterdir(), *Path(f"{name}_skeletons").iterdir()]):
            if file.suffix in (".ply", ".obj", ".swc"):
                yield f"{name} {file.name}", np.frombuffer(file.read_bytes(), np.uint8)
        yield from report(f"{name} measured", Path("measure/report.html"))
        given = (f"prediction={smoothed}", f"truth={name}_labels.tif", f"image={name}_image.tif", "instances=true")
        command("evaluate", *given, size, quiet, "report=true", f"hydra.run.dir={name}_scores")
        yield from scores(f"{name} scores", Path(f"{name}_scores/metrics.json"))
        yield from report(f"{name} scored", Path(f"{name}_scores/report.html"))


def table(name: str, frame: pd.DataFrame) -> Iterator[tuple[str, object]]:
    """Every column of a table."""
    for column in frame:
        if not VOLATILE.search(str(column)):
            yield f"{name} {column}", frame[column].to_csv(index=False)


def report(name: str, file: Path) -> Iterator[tuple[str, object]]:
    """The text of the tables of a page."""
    for number, found in enumerate(re.findall(r"<table.*?</table>", file.read_text(encoding="utf-8"), re.S)):
        rows = [" ".join(unescape(re.sub("<[^>]*>", " ", row)).split()) for row in found.split("</tr>")]
        yield f"{name} table {number}", "\n".join(row for row in rows if not VOLATILE.search(row))


def classical() -> Iterator[tuple[str, object]]:
    """The methods that are no networks."""
    from mitoseg import classical as methods

    image_zyx, truth_zyx = phantom()
    labels_zyx = (truth_zyx > 0).astype(np.uint8)
    size: dict[str, Any] = {"voxel_size": (5.0, 5.0, 5.0), "seed": 1}
    made = {
        "forest": methods.ForestClassifier(samples=3000, trees=8, **size),
        "neila": methods.NeilaSegmenter(samples=3000, trees=8, leaves=15, **size),
        "supervoxel": methods.SupervoxelSegmenter(landmarks=30, **size),
        "structured": methods.StructuredSegmenter(landmarks=30, rounds=4, **size),
    }
    for name, method in made.items():
        method.fit(image_zyx, labels_zyx)
        method.tune(image_zyx, labels_zyx)
        yield f"{name} probability", method.predict_proba(image_zyx)
        yield f"{name} mask", method.predict(image_zyx)
        method.save(Path(f"{name}_saved"))
        yield f"{name} loaded", type(method).load(Path(f"{name}_saved")).predict(image_zyx)


def export() -> Iterator[tuple[str, object]]:
    """Exported weights, and what they answer."""
    import onnxruntime

    for name in ("blocks", "tiles"):
        checkpoint = f"checkpoint={train(name)}/checkpoints/best.ckpt"
        command("export", checkpoint, f"output=exported_{name}/model.safetensors")
        for key, weights in load_file(f"exported_{name}/model.safetensors").items():
            yield f"{name} {key}", weights
        again = load(f"exported_{name}").predict(phantom()[0], (5, 5, 5), tile=(3, 48, 64))
        yield f"{name} loaded", again
        command("export", checkpoint, f"output=exported_{name}.onnx")
        session = onnxruntime.InferenceSession(f"exported_{name}.onnx", providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        sizes = [edge if isinstance(edge, int) else 1 if axis == 0 else 64 for axis, edge in enumerate(given.shape)]
        noise = np.random.default_rng(0).integers(0, 256, sizes).astype(np.float32)
        yield f"{name} onnx inputs", f"{given.name} {given.shape} {given.type}"
        yield f"{name} onnx", session.run(None, {given.name: noise})[0]


PARTS: dict[str, Callable[[], Iterator[tuple[str, object]]]] = {
    "train": training,
    "predict": predict,
    "formats": formats,
    "objects": objects,
    "classical": classical,
    "export": export,
}


def record(parts: list[str]) -> dict[str, str]:
    """The results of some parts by name, made in a folder of their own."""
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for part in parts:
                for name, value in PARTS[part]():
                    found[f"{part}: {name}"] = digest(value)
        finally:
            os.chdir(here)
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for each result that is not the same in both."""
    names = sorted({*before, *after}, key=lambda name: ([*before].index(name) if name in before else -1, name))
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [f"{name}\n  {before.get(name, 'missing')}\n  {after.get(name, 'missing')}" for name in changed]


def main(words: list[str]) -> None:
    """Record, or compare two records."""
    options = read_options(Options, words)
    if options.out:
        out = Path(options.out).resolve()
        out.write_text(json.dumps(record(options.parts), indent=1), encoding="utf-8")
    elif options.before and options.after:
        before, after = (
            json.loads(Path(path).read_text(encoding="utf-8")) for path in (options.before, options.after)
        )
        if changed := differences(before, after):
            print("\n".join(changed))
            sys.exit(f"{len(changed)} of {len(before)} results differ")
        print(f"{len(before)} results are the same")
    else:
        sys.exit("error: give out=FILE.json, or before=A.json after=B.json")


if __name__ == "__main__":
    main(sys.argv[1:])
