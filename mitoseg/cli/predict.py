"""``predict``: volumes and a checkpoint in, for each a probability, a mask or instances of the same size out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.cli.cleaning import chosen_steps
from mitoseg.cli.console import waiting
from mitoseg.cli.engine import make_engine
from mitoseg.cli.finishing import Finisher
from mitoseg.cli.inputs import plan_jobs
from mitoseg.cli.labelling import chosen_labelling
from mitoseg.cli.launch import run_dir
from mitoseg.cli.many import predict_many
from mitoseg.cli.predict_options import FINISHING, VOLATILE, check_options, check_places, identity, open_input
from mitoseg.cli.prediction import predict_with_progress, staged_kind
from mitoseg.cli.session import Session, load, open_session
from mitoseg.cli.tiles import Remote, decide_together, predict_on_workers
from mitoseg.cli.workers import check_sight
from mitoseg.errors import UserError
from mitoseg.inference import Predictor, choose_method
from mitoseg.inference.greys import adapt_greys
from mitoseg.inference.memory import budget_bytes, used_bytes
from mitoseg.inference.precision import choose_compile
from mitoseg.inference.prepare import INSTANCES
from mitoseg.inference.resampling import resample_input, restoring
from mitoseg.networks.bundle import DEFAULT
from mitoseg.progress import progress
from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, VolumeInfo
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.padding import Padding, as_stored
from mitoseg.volumes.staging import StagedVolume, holds_finished
from mitoseg.volumes.writing import check_volume_output

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
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
    folder = run_dir()
    with ExitStack() as stack:
        with waiting("starting the workers"):
            stack.enter_context(engine)
        session = open_session(cfg, engine, model, checkpoint)
        if source is not None:
            chosen = predict_one(cfg, session, source, folder / "report.html")
        else:
            assert jobs is not None
            chosen = {"precision": session.precision, "device": session.device}
            predict = partial(_predict_into, folder)
            predict_many(cfg, session, jobs, open_input=open_input, identity=identity, predict=predict)
    write_json(
        folder / "provenance.json", collect(input=given, checkpoint=cfg.checkpoint, output=cfg.output, chosen=chosen)
    )


def _predict_into(
    folder: Path, cfg: DictConfig, session: Session, source: Volume, on_written: Callable[[], None]
) -> None:
    """Predict one of several volumes, whose reports lie side by side."""
    predict_one(cfg, session, source, folder / f"report_{Path(cfg.output).name}.html", on_written)


def predict_one(
    cfg: DictConfig,
    session: Session,
    source: Volume,
    report: Path,
    on_written: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Predict one volume; what was decided for it. After a kill, no more is done again than what was left to be done.

    Args:
        cfg: Of this volume.
        session: What all volumes share.
        source: The input.
        report: Where a report goes, if there is to be one.
        on_written: Called when the output and the report are there, before it is forgotten how they were made.

    Raises:
        UserError: The volume, an option or the output is no good.
    """
    steps, labelling = chosen_steps(cfg), chosen_labelling(cfg)
    seen = resample_input(cfg.resample, source, session.model)
    with waiting("looking at the grey values"):
        volume, normalization = adapt_greys(cfg.normalize, seen, session.model)
    kind = staged_kind(cfg.save, cfg.dtype, cleaned=steps is not None)
    restored = restoring(seen, source, kind)
    if restored is not None and restored.mask:  # a mask is made of whole probabilities
        kind = "probability"
    prediction = session.prediction(cfg, normalization, kind)
    if cfg.save == INSTANCES:
        labelling.spacing(source.voxel_size or prediction.voxel_size)
    image = volume if restored is None else source
    predictor = Predictor(prediction, volume)
    about = {**identity(cfg, session, source), "tiles": kind}
    kept: dict[str, Any] = {"volatile": VOLATILE, "finishing": FINISHING}
    stage = StagedVolume(cfg.output, about, overwrite=cfg.overwrite, view=restored, **kept)
    with stage:
        if not stage.moved:
            predict_staged(cfg, session, predictor, stage)
            note_padding(source, stage)
        finisher = Finisher(predictor, stage, image, session.engine, cfg.progress)
        if cfg.save == INSTANCES and not stage.moved:
            finisher.write_instances(steps, labelling)
        elif steps is not None and not stage.moved:
            finisher.write_mask(steps)
        else:
            with progress("writing", source.box.size, unit="voxels", show=cfg.progress and stage.converts) as task:
                stage.finish(lambda box: task.advance(box.size))
        console = Console()
        console.print(f"{cfg.save} of {source.shape} voxels written to {cfg.output}", soft_wrap=True)
        console.print(f"threshold {prediction.threshold:.3f}", soft_wrap=True)
        chosen = {"precision": prediction.precision, "device": session.device, **stage.decisions, **stage.found}
        if restored is not None:
            chosen["resampled_to"] = seen.voxel_size
        if cfg.report:
            from mitoseg.cli.reporting import report_prediction_of  # draws, with libraries that take a second to load

            size = source.voxel_size or prediction.voxel_size
            report_prediction_of(cfg, report, as_stored(source), voxel_size=size, chosen=chosen)
        on_written()
    return chosen


def note_padding(source: Volume, stage: StagedVolume) -> None:
    """Say how much of the input was left out as padding, on the terminal and in the output."""
    if not isinstance(source.padding, Padding):
        return
    voxels = source.padding.count()
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
    decider = partial(decide, memory=cfg.memory, compiled=cfg.compile, method=cfg.method)
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


def decide(
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
