"""``finetune``: a model that knows the tissue of a few painted regions, and how good it is where nobody painted.

    final model   trained on all regions                               -> checkpoints/best.ckpt
    score         trained anew without a part, which is then predicted  -> metrics.json
                  threshold and calibration of a part come from the other parts

The start model predicts the same voxels, at its own threshold and at one that the other parts choose. Unless the gain
is above the noise, the start model is what is kept, with a new threshold if at least that gains. Pieces of one or two
regions do not show how places differ: then the gain must also be above the noise over the new threshold.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy import stats
from scipy.special import expit, logit

from mitoseg.datasets.base import IGNORE
from mitoseg.datasets.painted import (
    Painted,
    PaintedRecipe,
    open_painted,
    own_statistics,
    parts_to_leave_out,
    strips,
)
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference.precision import has_bf16
from mitoseg.inference.predictor import predict_volume
from mitoseg.inference.prepare import KINDS, NEAR, choose_device, make_prediction, size_seen
from mitoseg.metrics.calibration import choose_decision
from mitoseg.metrics.counts import Counts, scores
from mitoseg.metrics.histogram import curve, logit_histogram
from mitoseg.networks.checkpoint import AUTO, KEY, Model, find_weights, load_model
from mitoseg.networks.ensemble import Ensemble
from mitoseg.networks.kinds import dimensions
from mitoseg.progress import Tell, clock
from mitoseg.progress import progress as show_progress
from mitoseg.storage import atomic_output, held, write_json
from mitoseg.training.checkpointing import BestCheckpoint
from mitoseg.volumes import CHANNEL_OFFSETS, ArrayVolume, Normalization, Volume
from mitoseg.volumes.base import Array, ArrayWriter, CroppedVolume
from mitoseg.volumes.resampling import resampled
from mitoseg.workflows.options import FinetuneOptions
from mitoseg.workflows.suggest import Advice, advise, draw
from mitoseg.workflows.suitable import choose_model
from mitoseg.workflows.train import build, compose_training, fit_run, quiet_lightning

log = logging.getLogger(__name__)
TILE, BATCH = 256, 4
UNSCORED = "unscored.ckpt"
"""What a training writes; it becomes ``best.ckpt`` when the score is known."""
STEPS = 300
"""Of the final model; those that score take half as many each."""
LEVEL = 0.95
THICK = 2.0
"""Slices thicker than so many pixels are wide, or voxels of the start model, show too little of each other."""
CONTEXT = 64
"""Pixels around what is predicted that the network sees as well."""
ENOUGH = 3
"""Regions from which pieces show how places differ."""
LEAST_PIECES = 6
"""Pieces of tissue over which intervals are made; larger ones are halved until there are so many."""

Pieces = list[tuple[int, npt.NDArray[np.int64]]]
"""Log-odds by class (`logit_histogram`) of pieces of what is painted, each with the number of its part."""


@dataclass(frozen=True)
class Progress:
    """How far fine-tuning is: its ``stage``, the share that is ``done``, and the seconds that are ``left``.

    While the final model is trained, ``preview`` predicts a box of an image, (z, y, x) probabilities, with the network
    as it is.
    """

    stage: str
    done: float
    left: float
    preview: Callable[[Volume, Box], Array] | None = None


Report = Callable[[Progress], None]
"""Called after each step; what it raises ends the work, and no model is written."""


ENDS = {
    "tuned": "the tuned model is kept",
    "threshold": "tuning gains nothing above the noise: the start model is kept, with a new threshold",
    "start": "no gain above the noise: the start model is kept",
}


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gave: the ``checkpoint`` to use, and the foreground JAC on voxels that were left out.

    ``kept`` is ``tuned``, ``start``, or ``threshold``: the start model with a new threshold and calibration, whose JAC
    is ``recalibrated``. ``gain`` is that of the tuned model over the start model.
    """

    checkpoint: Path
    kept: str
    start: Estimate
    recalibrated: Estimate
    tuned: Estimate
    gain: Estimate
    regions: int
    parts: int
    advice: Advice

    def __str__(self) -> str:
        how = f"{self.regions} painted region(s) in {self.parts} parts, each predicted without having been painted"
        lines = [f"foreground JAC, 95 % interval; {how}:", f"  start model         {self.start}"]
        lines += [f"  with new threshold  {self.recalibrated}", f"  tuned model         {self.tuned}"]
        lines += [f"  gain of tuning      {self.gain}", ENDS[self.kept], str(self.advice)]
        return "\n".join(lines)


def run(options: FinetuneOptions, folder: Path, tell: Tell) -> float:
    """Fine-tune, and say how good it is; returns the foreground JAC of the tuned model.

    Raises:
        UserError: The image, the paint or an option is invalid.
    """
    with show_progress("fine-tuning", 1.0, show=options.progress) as task:
        found = finetune(options, folder, lambda progress: task.reach(progress.done))
    tell(str(found))
    return found.tuned.value


def finetune(
    options: FinetuneOptions,
    folder: Path,
    report: Report = lambda _: None,
    regions: Sequence[Painted] | None = None,
) -> Finetuned:
    """Fine-tune in a folder; ``regions`` are those of the options' files or volumes, unless they are given.

    ``best.ckpt`` is written last of all: what is not scored never has that name.

    Raises:
        UserError: The image, the paint or an option is invalid.
    """
    if regions is None:
        keys = ("reviewed", "foreground", "background", "unknown", "axes", "voxel_size")
        files = [[given] if isinstance(given, str) or not isinstance(given, Sequence) else given
                 for given in (options.image, options.labels)]  # fmt: skip
        regions = open_painted(*files, **{key: getattr(options, key) for key in keys})
    parts = parts_to_leave_out(regions)
    work = Work.plan(options, regions)
    part_steps = max(1, work.steps // 2)
    pixels = sum(region.label_zyx.size for region in regions)
    meter = Meter(report, 1.2 * (work.steps + len(parts) * part_steps) + 4 * pixels / (BATCH * TILE**2))
    learning = f"all layers but {', '.join(options.freeze)}" if options.freeze else "all layers"
    log.info(
        "%d painted region(s), %.2f megapixels; from %s, %s, %s; about %s: %d steps of %.2f s in %s, and %d times %d",
        *(len(regions), pixels / 1e6, work.name, work.channels, learning),
        *(clock(meter.total * work.seconds), work.steps, work.seconds, work.precision, len(parts), part_steps),
    )
    checkpoint = folder / "checkpoints" / "best.ckpt"
    with held(folder / ".lock", "another fine-tuning is running in this folder"):
        if checkpoint.exists():
            raise UserError("the folder holds a model already", str(folder), "choose another folder")
        try:
            work.train(regions, (), folder, work.steps, meter, "training")
            before, after, models = left_out(work, parts, part_steps, meter)
            predict = partial(work.probabilities, models)
            meter.advance(0, "choosing what to paint next")
            fixed = [decided(work.model, histogram) for _, histogram in before]
            anew, tuned = left_out_counts(before), left_out_counts(after)
            result = Finetuned(
                checkpoint=checkpoint,
                kept=choose_kept(fixed, anew, tuned, len(regions)),
                start=jackknife(fixed, jaccard),
                recalibrated=jackknife(anew, jaccard),
                tuned=jackknife(tuned, jaccard),
                gain=gain(fixed, tuned),
                regions=len(regions),
                parts=len(parts),
                advice=advise(regions, predict, seed=options.seed),
            )
            record = choose_record(after)
            counts = {"validation": tuned, "start": fixed, "new_threshold": anew}
            write_metrics(folder, result, counts, record["threshold"])
            draw(result.advice, predict, folder / "next")
            if len(work.statistics) > 1:
                record["normalize"] = "volume"
            work.save(record, result, choose_record(before) if result.kept == "threshold" else {})
        finally:
            checkpoint.with_name(UNSCORED).unlink(missing_ok=True)
    report(Progress("done", 1.0, 0.0))
    return result


def left_out(
    work: Work, parts: Sequence[Sequence[Painted]], steps: int, meter: Meter
) -> tuple[Pieces, Pieces, list[Model]]:
    """Predict each part by the start model and by one that was trained on the others; returns the latter, too.

    Intervals are made over the regions, halved while there are too few.
    """
    before: Pieces = []
    after: Pieces = []
    models: list[Model] = []
    start, accelerator = work.model, work.options.accelerator
    with tempfile.TemporaryDirectory() as scratch:
        for number, part in enumerate(parts):
            stage = f"scoring, part {number + 1} of {len(parts)}"
            others = [region for k, other in enumerate(parts) if k != number for region in other]
            models.append(work.train(others, part, Path(scratch) / str(number), steps, meter, stage))
            pieces = list(part)
            while len(pieces) * len(parts) < LEAST_PIECES:
                pieces = [half for piece in pieces for half in strips(piece, 2)]
            for piece in pieces:
                if not (piece.label_zyx != IGNORE).any():
                    continue
                own = work.statistics[piece.image.path]
                usual = None if start.record.get("normalize", "checkpoint") == "checkpoint" else own
                for found, model, statistics in ((before, start, usual), (after, models[-1], own)):
                    answers = log_odds(model, piece.image, piece.box, statistics, accelerator)
                    found.append((number, logit_histogram(answers, piece.label_zyx)))
                meter.advance(2 * piece.label_zyx.size / (BATCH * TILE**2), stage)
    return before, after, models


def choose_channels(model: Model, image: Volume) -> str:
    """Those of the start model, or single slices where the sections are thick or few."""
    own = image.voxel_size
    spread = max(map(abs, CHANNEL_OFFSETS[model.channels]))
    thick = own is not None and own[0] > THICK * max(min(own[1:]), (model.voxel_size or own)[0] / 2)
    return "single" if thick or image.shape[0] <= spread else model.channels


def choose_pixel_size(model: Model, image: Volume, wanted: float | None) -> tuple[float, float] | None:
    """(y, x) in nm: what is asked for; else the start model's where the image's are finer, which costs time alone."""
    if wanted is not None:
        if image.voxel_size is None:
            raise UserError("the image has no voxel size", image.path, "give voxel_size=[z,y,x] in nm")
        return wanted, wanted
    if image.voxel_size is None or model.voxel_size is None:
        return None
    y, x = (new if new / old >= NEAR else old for old, new in
            zip(image.voxel_size[1:], model.voxel_size[1:], strict=True))  # fmt: skip
    return (y, x)


@dataclass(frozen=True)
class Work:
    """How the models of one fine-tuning are trained, from a ``model`` with its ``name`` and ``path``."""

    options: FinetuneOptions
    name: str
    path: Path
    model: Model
    channels: str
    pixel_size: tuple[float, float] | None
    tile: int
    steps: int
    precision: str
    seconds: float
    statistics: dict[str, Normalization]

    @classmethod
    def plan(cls, options: FinetuneOptions, regions: Sequence[Painted]) -> Work:
        """Choose all that the options leave open; without a model, the bundled one that suits the images."""
        images = list({region.image.path: region.image for region in regions}.values())
        name = options.model
        if name in (None, AUTO):
            name = choose_model(images, accelerator=options.accelerator)
        path = find_weights(name)
        model = load_model(path, trust=options.trust)
        network = model.network
        if isinstance(network, Ensemble) or dimensions(network) != 2:
            kind = "an ensemble" if isinstance(network, Ensemble) else "a 3D network"
            raise UserError(f"{kind} cannot be fine-tuned", name, "give model= a checkpoint of one 2D network")
        if model.channels not in CHANNEL_OFFSETS:
            raise UserError("the checkpoint makes channels in an unknown way", model.channels, "use another one")
        found = {choose_channels(model, image) for image in images}
        channels = found.pop() if len(found) == 1 else "single"
        pixel_size = choose_pixel_size(model, regions[0].image, options.pixel_size)
        recipe = PaintedRecipe(regions, pixel_size=pixel_size)
        side = min(min(recipe.seen(image).shape[1:]) for image in images)
        step = max(getattr(network, "multiple", (32,)))
        tile = min(TILE, side // step * step)
        if not tile:
            what = "the image is too small to train on"
            raise UserError(what, regions[0].image.shape, f"it takes {step} x {step} pixels")
        shape = (BATCH, getattr(network, "in_channels", len(CHANNEL_OFFSETS[channels])), tile, tile)
        precision, seconds = fastest_precision(network, shape, options.accelerator, options.precision)
        steps, statistics = options.steps or STEPS, own_statistics(regions)
        return cls(options, str(name), path, model, channels, pixel_size, tile, steps, precision, seconds, statistics)

    def train(
        self,
        regions: Sequence[Painted],
        left_out: Sequence[Painted],
        folder: Path,
        steps: int,
        meter: Meter,
        stage: str,
    ) -> Model:
        """Train on regions, but not on what lies close to those that are left out."""
        recipe = PaintedRecipe(regions, left_out, self.pixel_size, self.tile, self.tile // 4, self.statistics)
        with quiet_lightning():
            cfg = self.config(steps)
            before, module, trainer, data, origins = build(cfg, folder, lambda **_: recipe)
            watcher = Watcher(meter, stage, None if left_out else self)
            trainer.callbacks.append(watcher)  # type: ignore[attr-defined]
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, BestCheckpoint):
                    callback.filename = Path(UNSCORED).stem
            try:
                fit_run(cfg, folder, before, module, trainer, data, origins, resumable=False)
            except UserError as error:
                if "the loss is not finite" not in error.what:
                    raise
                raise UserError("the loss is not finite", None, "lower rate=, or check the image") from error
        return load_model(folder / "checkpoints" / UNSCORED, trust=self.options.trust)

    def probabilities(self, models: Sequence[Model], image: Volume, box: Box) -> list[Array]:
        """Of a box of an image, by each of the models."""
        own = self.statistics[image.path]
        return [expit(log_odds(model, image, box, own, self.options.accelerator)) for model in models]

    def preview(self, module: Any, image: Volume, box: Box) -> Array:  # noqa: ANN401 (a `SegmentationModule`)
        """Probabilities of a box by the network in training, as it is."""
        size = None if self.pixel_size is None else (image.voxel_size or (0.0,))[:1] + self.pixel_size
        model = replace(self.model, network=module.network.eval(), channels=self.channels, voxel_size=size)
        own = self.statistics.get(image.path) or next(iter(self.statistics.values()))
        found: Array = expit(log_odds(model, image, box, own, self.options.accelerator))
        module.network.train()
        return found

    def config(self, steps: int) -> DictConfig:
        """The options of ``train`` for one of the models."""
        options, network = self.options, self.model.config
        changed: dict[str, Any] = {
            "network": {**network, **({"in_channels": None} if "in_channels" in network else {})},
            "init_from": str(self.path),
            "freeze": list(options.freeze),
            "seed": options.seed,
            "epochs": 1,
            "data.tile": [1, self.tile, self.tile],
            "data.batch_size": BATCH,
            "data.channels": self.channels,
            "data.augment": "dihedral" if self.channels == "single" else "dihedral_z",
            "data.epoch_tiles": steps * BATCH,
            "data.foreground_share": 0.5,
            "optimizer.lr": options.rate,
            "trainer.precision": self.precision,
            "trainer.accelerator": options.accelerator,
        }
        groups = ["network=unet2d", "augmentation=em_strong", "loss=dice_cross_entropy", "name=finetune"]
        return compose_training(groups, changed)

    def save(self, record: Mapping[str, Any], result: Finetuned, for_start: Mapping[str, Any]) -> None:
        """Write the checkpoint that is kept as ``best.ckpt``, and beside a start model that is kept the tuned one."""
        kept = {True: result.checkpoint, False: result.checkpoint.with_name("tuned.ckpt")}
        trained = result.checkpoint.with_name(UNSCORED)
        found = torch.load(trained, map_location="cpu", weights_only=True)
        found[KEY] |= record
        with atomic_output(kept[result.kept == "tuned"], overwrite=True) as temporary:
            torch.save(found, temporary)
        if result.kept != "tuned":
            own = self.model
            weights = {f"network.{name}": weight.cpu() for name, weight in own.network.state_dict().items()}
            with atomic_output(result.checkpoint, overwrite=True) as temporary:
                torch.save({"state_dict": weights, KEY: {**own.record, **for_start}}, temporary)


def fastest_precision(
    network: torch.nn.Module, shape: tuple[int, ...], accelerator: str, wanted: str
) -> tuple[str, float]:
    """Lightning's name of a precision, and the seconds of a step: bfloat16 where the device has it, if it is faster.

    On a CPU with AVX-512 bfloat16 a step takes about half as long; without it several times as long.
    """
    device, names = choose_device(accelerator), {"fp32": "32-true", "bf16": "bf16-mixed"}
    chosen = [wanted] if wanted in names else ["fp32", *(["bf16"] if has_bf16(device) else [])]
    trial = deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    image = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    found: dict[str, float] = {}
    for name in chosen:
        for _ in range(2):  # the first one makes the kernels
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                answers = trial(image)
            answers.float().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[names[name]] = time.perf_counter() - began
    best = min(found, key=found.__getitem__)
    return best, found[best]


class Meter:
    """Counts work in steps, and reports how much is done."""

    def __init__(self, report: Report, total: float) -> None:
        self.report, self.total, self.done, self.began = report, total, 0.0, time.monotonic()

    def advance(self, steps: float, stage: str, preview: Callable[[Volume, Box], Array] | None = None) -> None:
        """So many steps more are done."""
        self.done = min(self.total, self.done + 1.2 * steps)
        spent = time.monotonic() - self.began
        self.report(Progress(stage, self.done / self.total, spent * (self.total / self.done - 1), preview))


class Watcher(Callback):
    """Reports each step of a training; with ``work``, with a preview."""

    def __init__(self, meter: Meter, stage: str, work: Work | None) -> None:
        self.meter, self.stage, self.work = meter, stage, work

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Report one step."""
        preview = None if self.work is None else partial(self.work.preview, pl_module)
        self.meter.advance(1, self.stage, preview)


def log_odds(
    model: Model, image: Volume, box: Box, normalization: Normalization | None, accelerator: str = "auto"
) -> npt.NDArray[np.float32]:
    """Log-odds, not calibrated, of a box of an image on the image's own grid.

    ``normalization`` None is that of the checkpoint. The network sees no less than a tile around the box, on which
    instance normalisation depends.
    """
    own = image.voxel_size or (1.0, 1.0, 1.0)
    trained = own if image.voxel_size is None else model.voxel_size or own
    tile = getattr(model.network, "tile", None) or (1, TILE, TILE)
    sides = zip(tile[1:], trained[1:], own[1:], box.shape[1:], strict=True)
    y, x = (max(CONTEXT, math.ceil((n * new / old - side) / 2)) for n, new, old, side in sides)
    around = box.grow((max(map(abs, CHANNEL_OFFSETS[model.channels])), y, x)).clip(image.box)
    crop: Volume = CroppedVolume(image, around)
    seen = crop
    if crop.voxel_size is not None and model.voxel_size is not None:
        seen = resampled(crop, size_seen(crop.voxel_size, model.voxel_size, model))
    prediction = make_prediction(model, accelerator=accelerator, normalization=normalization)
    writer = ArrayWriter(seen.shape, KINDS["probability"])
    predict_volume(replace(prediction, save="log_odds"), seen, writer)
    found: Volume = ArrayVolume(writer.array_zyx, seen.voxel_size)
    if seen is not crop and crop.voxel_size is not None:
        found = resampled(found, crop.voxel_size, crop.shape)
    return found.read(box.inside(around)).astype(np.float32)


def left_out_counts(pieces: Pieces) -> list[Counts]:
    """The counts of each piece at the threshold that is best for the other parts."""
    found = []
    for part, histogram in pieces:
        others = np.sum([other for number, other in pieces if number != part], axis=0)
        found.append(curve(histogram).at(choose_decision(others, 0.0).raw_threshold))
    return found


def choose_record(pieces: Pieces) -> dict[str, Any]:
    """The calibration and the threshold for all pieces together, as a checkpoint states them."""
    decision = choose_decision(np.sum([histogram for _, histogram in pieces], axis=0), 0.0)
    return {"calibration": asdict(decision.calibration), "threshold": decision.threshold}


def decided(model: Model, histogram: npt.NDArray[np.int64]) -> Counts:
    """The counts at a model's own threshold."""
    calibration = model.calibration
    wanted = float(logit(np.clip(model.threshold, 1e-9, 1 - 1e-9)))
    raw = (wanted - calibration["bias"]) * calibration["temperature"] - calibration["prior_shift"]
    return curve(histogram).at(raw)


def jaccard(counts: Sequence[Counts]) -> float:
    """The foreground JAC of all pieces together; 0 where there is neither a true nor a found voxel."""
    tp, wrong = sum(c.tp for c in counts), sum(c.fp + c.fn for c in counts)
    return tp / (tp + wrong) if tp + wrong else 0.0


def gain(before: Sequence[Counts], after: Sequence[Counts]) -> Estimate:
    """The difference of two JAC on the same pieces."""
    pairs = list(zip(before, after, strict=True))
    return jackknife(pairs, lambda some: jaccard([b for _, b in some]) - jaccard([a for a, _ in some]))


def choose_kept(start: Sequence[Counts], recalibrated: Sequence[Counts], tuned: Sequence[Counts], regions: int) -> str:
    """Which model is kept, by the counts of each on the same pieces; see `Finetuned`."""
    others = [start, recalibrated] if regions < ENOUGH else [start]
    if jaccard(tuned) > jaccard(recalibrated) and all(gain(other, tuned).low > 0 for other in others):
        return "tuned"
    return "threshold" if gain(start, recalibrated).low > 0 else "start"


def jackknife(pieces: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> Estimate:
    """A statistic of all pieces, with an interval by leaving out one after the other (Tukey, 1958; Student's t).

    Fewer than two pieces determine no interval: it is all that a difference of two JAC may be.
    """
    value, n = statistic(pieces), len(pieces)
    if n < 2:
        return Estimate(value, -1.0, 1.0)
    without = np.array([statistic([*pieces[:i], *pieces[i + 1 :]]) for i in range(n)])
    spread = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread
    return Estimate(value, max(-1.0, value - reach), min(1.0, value + reach))


def write_metrics(folder: Path, result: Finetuned, counts: Mapping[str, Sequence[Counts]], threshold: float) -> None:
    """Write ``metrics.json``: scores of the left-out voxels, of the tuned and of the start model."""
    found: dict[str, Any] = {name: scores(sum(pieces, Counts())) for name, pieces in counts.items()}
    estimates = {"validation": result.tuned, "start": result.start, "new_threshold": result.recalibrated}
    for name, estimate in estimates.items():
        found[name]["interval"] = {"jaccard_foreground": [estimate.low, estimate.high]}
    found["validation"]["threshold"] = threshold
    found["next"] = [
        {"image": s.image.path, "box": str(s.box), "disagreement": s.disagreement, "share": s.share}
        for s in result.advice.suggestions
    ]
    found["expected_gain_of_another"] = result.advice.expected
    found |= {"gain": asdict(result.gain), "kept": result.kept, "regions": result.regions, "parts": result.parts}
    write_json(folder / "metrics.json", found)
