"""``predict``: volumes and a checkpoint in, for each a probability, a mask or instances of the same size out.

The options of ``predict``: what is refused, the volume that is meant, and what tells one command from the next.

The last step of ``predict``: from the tiles of a network to what was asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from mitoseg import __version__
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.instances import label_prediction
from mitoseg.inference import Predictor, choose_method
from mitoseg.inference.precision import choose_compile
from mitoseg.inference.prepare import INSTANCES
from mitoseg.inference.sizing import budget_bytes, used_bytes
from mitoseg.networks.checkpoint import DEFAULT
from mitoseg.progress import Tell, progress, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Labelling, Postprocess, write_instances
from mitoseg.segmentation.blockwise import write_blocks
from mitoseg.segmentation.cleaning import BLOCK
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, VolumeInfo, VolumeWriter, open_volume
from mitoseg.volumes.images import SliceFolder
from mitoseg.volumes.opening import check_volume_output, place, stored_in, warn_of_gaps
from mitoseg.volumes.padding import as_stored, blanked, with_padding
from mitoseg.volumes.predicted import decide
from mitoseg.volumes.staging import StagedVolume, holds_finished
from mitoseg.volumes.zarrs import ZarrVolume
from mitoseg.workflows.many import plan_jobs, predict_many
from mitoseg.workflows.options import chosen_labelling, chosen_steps, cleaned, make_engine
from mitoseg.workflows.remote import Remote, check_sight, decide_together, predict_on_workers
from mitoseg.workflows.session import (
    Prepared,
    Session,
    load,
    open_session,
    predict_with_progress,
    prepare,
    staged_kind,
)

log = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path, tell: Tell) -> None:
    """Predict one volume or several; an unfinished prediction by the same command is taken up.

    Raises:
        UserError: The checkpoint, a volume, an option or an output is no good.
    """
    check_options(cfg)
    given = OmegaConf.to_container(cfg.input) if OmegaConf.is_config(cfg.input) else cfg.input
    jobs = plan_jobs(given, cfg.output, cfg.suffix)  # type: ignore[arg-type]
    for source, output in [(cfg.input, cfg.output)] if jobs is None else [(job.input, job.output) for job in jobs]:
        check_places(source, output)
    engine = make_engine(cfg)
    model, checkpoint = load(cfg)
    with waiting("opening the input"):
        source = open_input(cfg) if jobs is None else None  # starting an engine may take minutes: look first
    if source is not None and not engine.in_process and not holds_finished(cfg.output):
        check_volume_output(cfg.output, cfg.overwrite)
    with ExitStack() as stack:
        with waiting("starting the workers"):
            stack.enter_context(engine)
        session = open_session(cfg, engine, model, checkpoint)
        if source is not None:
            chosen = predict_one(cfg, session, source, folder / "report.html", tell)
        else:
            assert jobs is not None
            chosen = {"precision": session.precision, "device": session.device}

            def predict(own: DictConfig, volume: Volume, on_written: Callable[[], None]) -> None:
                report = folder / f"report_{Path(own.output).name}.html"
                predict_one(own, session, volume, report, tell, on_written)

            predict_many(cfg, session, jobs, open_input=open_input, identity=identity, predict=predict, tell=tell)
    write_json(
        folder / "provenance.json", collect(input=given, checkpoint=cfg.checkpoint, output=cfg.output, chosen=chosen)
    )


def predict_one(
    cfg: DictConfig,
    session: Session,
    source: Volume,
    report: Path,
    tell: Tell,
    on_written: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Predict one volume; what was decided for it. After a kill, no more is done again than what was left to be done.

    Args:
        cfg: Of this volume.
        session: What all volumes share.
        source: The input.
        report: Where a report goes, if there is to be one.
        tell: Takes what was written.
        on_written: Called when the output and the report are there, before it is forgotten how they were made.

    Raises:
        UserError: The volume, an option or the output is no good.
    """
    steps, labelling = chosen_steps(cfg), chosen_labelling(cfg)
    kind = staged_kind(cfg.save, cfg.dtype, cleaned=steps is not None)
    make, options = partial(session.prediction, cfg), {"normalize": cfg.normalize, "resample": cfg.resample}
    prepared = prepare(session.model, source, make, kind=kind, **options)
    predictor, prediction = prepared.predictor, prepared.predictor.prediction
    if cfg.save == INSTANCES:
        labelling.spacing(prepared.voxel_size)
    about = {**identity(cfg, session, source), "tiles": prepared.kind}
    kept: dict[str, Any] = {"volatile": VOLATILE, "finishing": FINISHING}
    stage = StagedVolume(cfg.output, about, overwrite=cfg.overwrite, view=prepared.restored, **kept)
    with stage:
        if not stage.moved:
            predict_staged(cfg, session, predictor, stage)
            note_padding(prepared, stage)
        finisher = Finisher(predictor, stage, prepared.image, session.engine, cfg.progress)
        if cfg.save == INSTANCES and not stage.moved:
            finisher.write_instances(steps, labelling)
        elif steps is not None and not stage.moved:
            finisher.write_mask(steps)
        else:
            with progress("writing", source.box.size, unit="voxels", show=cfg.progress and stage.converts) as task:
                stage.finish(lambda box: task.advance(box.size))
        tell(f"{cfg.save} of {source.shape} voxels written to {cfg.output}")
        tell(f"threshold {prediction.threshold:.3f}")
        chosen = {"precision": prediction.precision, "device": session.device, **stage.decisions, **stage.found}
        if prepared.restored is not None:
            chosen["resampled_to"] = predictor.volume.voxel_size
        if cfg.report:
            from mitoseg.workflows.evaluate import (
                report_prediction_of,  # draws, with libraries that take a second to load
            )

            report_prediction_of(cfg, report, as_stored(source), voxel_size=prepared.voxel_size, chosen=chosen)
            tell(f"report in {report}")
        on_written()
    return chosen


def note_padding(prepared: Prepared, stage: StagedVolume) -> None:
    """Say how much of the input was left out as padding, on the terminal and in the output."""
    source, voxels = prepared.source, prepared.padding
    if not voxels:
        return
    if voxels == source.box.size:
        log.warning("%s: every slice is one value throughout: there is no tissue to predict", source.path)
    else:
        share = 100 * voxels / source.box.size
        log.info("%s: %.1f %% is padding of one value, which was left out; see padding=", source.path, share)
    stage.add_metadata({"padding": voxels})


def predict_staged(cfg: DictConfig, session: Session, predictor: Predictor, stage: StagedVolume) -> None:
    """Predict every tile that the stage does not hold yet."""
    volume, remote = predictor.volume, None
    decider = partial(decide_tiling, memory=cfg.memory, compiled=cfg.compile, method=cfg.method)
    if session.team is not None:
        remote = session.remote(predictor.prediction, volume)
        files = {"checkpoint": session.checkpoint, "input": stored_in(cfg.input)}
        check_sight(session.engine, files, stage.folder)
        decider = partial(decider, workers=session.team.neighbours, besides=used_bytes())
    decisions = stage.decisions
    if not decisions:
        with waiting("choosing the tiles"):
            decisions = decider(predictor) if remote is None else decide_together(session.engine, remote, decider)
    tile = tuple(decisions["tile"])
    log.info(
        "%s on %s, %s%s, tiles of %s voxels",
        decisions["method"],
        session.device,
        predictor.prediction.precision,
        ", compiled" if decisions["compile"] else "",
        " x ".join(map(str, tile)),
    )
    stage.start(output_info(cfg, predictor), tile, decisions)
    if stage.done:
        log.info("going on: %d of %d tiles are done", len(stage.done), stage.count)
    try:
        predict_tiles(cfg, session, predictor, remote, stage)
    except BaseException:
        if stage.done:
            log.warning("%d of %d tiles are kept: the same command goes on from there", len(stage.done), stage.count)
        raise


def predict_tiles(
    cfg: DictConfig, session: Session, predictor: Predictor, remote: Remote | None, stage: StagedVolume
) -> None:
    """Predict the tiles that are missing, in this process or by the workers."""
    title, compiled = Path(cfg.input).name, stage.decisions["compile"]
    if remote is not None:
        predict_on_workers(session.engine, remote, stage, compiled=compiled, title=title, show=cfg.progress)
        return
    if compiled:
        log.info("compiling: the first tile takes ten seconds or more")
        predictor.compile(stage.tile)
    predict_with_progress(
        predictor,
        predictor.volume,
        stage,
        tile=stage.tile,
        done=frozenset(stage.done),
        done_voxels=sum(part.size for part in stage.done),
        title=title,
        show=cfg.progress,
    )


def output_info(cfg: DictConfig, predictor: Predictor) -> VolumeInfo:
    """What is written."""
    volume = predictor.volume
    voxel_size = volume.voxel_size or predictor.prediction.voxel_size
    if volume.voxel_size is None and voxel_size is not None and cfg.resample != "auto":  # which has told it already
        log.warning("%s has no voxel size: taking the checkpoint's, %s nm; or give voxel_size=", cfg.input, voxel_size)
    metadata = {**predictor.prediction.metadata, "checkpoint": Path(cfg.checkpoint or DEFAULT).name}
    return VolumeInfo(cfg.output, volume.shape, predictor.prediction.dtype, voxel_size, metadata)


def decide_tiling(
    predictor: Predictor, *, memory: object, compiled: str | bool, method: str, workers: int = 1, besides: int = 0
) -> dict[str, Any]:
    """Tile and compilation, chosen once for a volume and kept for when the command is run again.

    Raises:
        UserError: Not even the smallest tile fits into the memory that there is for each worker of a machine.
    """
    predictor.operations((1, 1, 1))  # torch loads its compiler for this, which the budget must know of
    try:
        tile = predictor.choose_tile(budget_bytes(memory, workers=workers, besides=besides))
    except UserError as error:
        remedy = (
            error.remedy if workers == 1 else f"{error.remedy} for each of {workers} workers, or use fewer of them"
        )
        raise UserError(error.what, error.value, remedy) from None
    chosen = choose_method(method, predictor.prediction.network)
    compiles = choose_compile(compiled, predictor.device, predictor.operations(tile))
    return {"tile": list(tile), "compile": compiles, "method": chosen}


NEUTRAL = (
    *("checkpoint", "trust", "accelerator", "precision"),  # the file's checksum counts, and what was chosen
    *("output", "suffix", "overwrite", "report", "progress"),
    *("engine", "devices", "workers", "memory"),
    *("missing_chunks", "missing_slices"),  # which refuse a volume or read it
)
"""Options that change no voxel. Every other one makes a command another than the next: a killed run is taken up by the
same command alone."""

VOLATILE = ("input_files", "checkpoint_sha256", "mitoseg", "torch")
"""What may change between two runs of one command; then what was computed is out of date."""

FINISHING = ("save", "postprocess", "labelling")
"""Options of what is made of the network's tiles, which are kept when nothing else changes."""


def check_options(cfg: DictConfig) -> None:
    """Refuse what would be taken for something else.

    Raises:
        UserError: A path has no value, a switch is neither true nor false, or post-processing is to make no mask.
    """
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    for key in ("overwrite", "trust", "progress", "report"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    chosen_labelling(cfg)
    if chosen_steps(cfg) is not None and cfg.save not in ("mask", INSTANCES):
        remedy = "give save=mask or save=instances, or postprocess=none"
        raise UserError("postprocess makes masks", f"save={cfg.save}", remedy)
    if cfg.report and cfg.save == "uncertainty":
        raise UserError("the report shows mitochondria", "save=uncertainty", "leave report= or save= away")


def check_places(source: str, output: str) -> None:
    """Refuse an output that would change its input.

    Raises:
        UserError: It lies at or in the input.
    """
    ours, theirs = (Path(os.path.realpath(path)) for path in (place(output)[0], stored_in(source)))
    if ours == theirs or theirs in ours.parents or ours in theirs.parents:
        where = "is the input itself" if ours == theirs else "lies inside the input or around it"
        raise UserError(f"the output {where}", output, "choose another name")


def open_input(cfg: DictConfig) -> Volume:
    """The volume to predict.

    Raises:
        UserError: It cannot be read, chunks or slices of it are missing, or it does not state what it must.
    """
    if cfg.missing_chunks not in ("error", "fill"):
        raise UserError("no such way to treat missing chunks", cfg.missing_chunks, "choose error or fill")
    if cfg.missing_slices not in ("error", "ignore"):
        raise UserError("no such way to treat missing slices", cfg.missing_slices, "choose error or ignore")
    volume = open_volume(cfg.input, axes=cfg.axes, voxel_size=cfg.voxel_size)
    if isinstance(volume, ZarrVolume):
        volume.check_scale()
    if (cfg.missing_slices if isinstance(volume, SliceFolder) else cfg.missing_chunks) == "error":
        volume.check_complete()
    else:
        warn_of_gaps(volume)
    return with_padding(volume, cfg.padding)


def identity(cfg: DictConfig, session: Session, volume: Volume) -> Mapping[str, Any]:
    """What makes this prediction another one than the next; not who computes it."""
    return {
        **{str(key): _plain(cfg[key]) for key in cfg if key not in NEUTRAL},
        "input": os.path.abspath(cfg.input),
        "input_files": [volume.shape, str(volume.dtype), volume.voxel_size, volume.state()],
        "precision": session.precision,
        "device": session.device,
        "checkpoint_sha256": session.sha256,
        "mitoseg": __version__,
        "torch": torch.__version__,
    }


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@dataclass(frozen=True)
class Finisher:
    """Makes of all tiles what was asked for.

    Attributes:
        predictor: That made the tiles.
        stage: That holds them.
        image: The EM image on the output's grid.
        engine: Started.
        show: Whether progress bars are drawn.
    """

    predictor: Predictor
    stage: StagedVolume
    image: Volume
    engine: Engine
    show: bool

    def write_mask(self, steps: Postprocess) -> None:
        """Write the mask that post-processing makes of the probabilities."""

        def write(tiles_zyx: Volume, writer: VolumeWriter) -> None:
            with self._mask(steps, tiles_zyx) as mask:
                write_blocks(mask, BLOCK, writer, engine=self.engine)

        about = {**self._about, "kind": "mask", "postprocess": asdict(steps)}
        self.stage.finish_as(write, np.dtype(np.uint8), about)

    def write_instances(self, steps: Postprocess | None, labelling: Labelling) -> None:
        """Write the instances of the mask."""

        def write(tiles_zyx: Volume, writer: VolumeWriter) -> None:
            with self._mask(steps, tiles_zyx) as mask:
                with waiting("numbering mitochondria"):
                    instances = label_prediction(mask, decide(mask), labelling, engine=self.engine)
                with waiting("writing instances"):
                    write_instances(instances, writer, engine=self.engine)
            log.info("%d mitochondria, %d of them cut by the border", len(instances), instances.touches_border.sum())

        about = {**self._about, "kind": "instances", "labelling": asdict(labelling)}
        if steps is not None:
            about["postprocess"] = asdict(steps)
        self.stage.finish_as(write, np.dtype(np.uint32), about)

    @contextmanager
    def _mask(self, steps: Postprocess | None, tiles_zyx: Volume) -> Iterator[Volume]:
        """What the network gave, or the mask that post-processing makes of it, in tissue alone."""
        if steps is None:
            yield tiles_zyx
            return
        options = {"image": self.image, "engine": self.engine, "show": self.show}
        with cleaned(steps, tiles_zyx, self.stage.folder, **options) as mask:  # type: ignore[arg-type]
            yield blanked(mask, self.image.padding)

    @property
    def _about(self) -> dict[str, Any]:
        return {"threshold": self.predictor.prediction.threshold, "scale": 1, **self.stage.found}
