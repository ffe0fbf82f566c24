"""``predict``: apply a checkpoint to volumes; for each, write probabilities, a mask or instances of the same shape.

The same command continues a killed prediction; if one of several volumes fails, the others are still predicted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from mitoseg import __version__
from mitoseg.engines import Engine, EngineError, Prepared, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.evaluation.instances import label_prediction
from mitoseg.geometry import Box, tiles
from mitoseg.inference import Predictor, choose_method, predict_volume
from mitoseg.inference.precision import choose_compile
from mitoseg.inference.prepare import INSTANCES
from mitoseg.inference.sizing import budget_bytes, used_bytes
from mitoseg.networks.checkpoint import AUTO, bundled, find_weights, load_model
from mitoseg.progress import Tell, progress, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Labelling, Postprocess, write_instances
from mitoseg.segmentation.blockwise import write_blocks
from mitoseg.segmentation.postprocess import BLOCK
from mitoseg.storage import changes, explain, held, plain, remove, write_json
from mitoseg.volumes import Volume, VolumeInfo, VolumeWriter, open_volume
from mitoseg.volumes.images import SliceFolder
from mitoseg.volumes.opening import check_volume_output, check_voxel_type, place, stored_in, warn_of_gaps
from mitoseg.volumes.padding import as_stored, blanked, with_padding
from mitoseg.volumes.predicted import KINDS, Decision, decide
from mitoseg.volumes.staging import StagedVolume, holds_finished, stage_folder
from mitoseg.volumes.zarrs import ZarrVolume, remove_partial
from mitoseg.workflows.many import DONE, FAILED, NAME, Row, plan_rows, read_rows, write_rows
from mitoseg.workflows.options import PredictOptions
from mitoseg.workflows.session import (
    PreparedVolume,
    Session,
    ask_predictors,
    check_shared_storage,
    chosen_steps,
    cleaned,
    make_engine,
    tile_writer,
)
from mitoseg.workflows.suitable import choose_model, expected_score, judge

log = logging.getLogger(__name__)

COUNTED = (64, 512, 512)
"""Voxels (z, y, x) counted at a time."""

JUDGED = 8
"""Of a list, so many volumes, evenly spread, get a score to expect; for small volumes it takes most of the time."""

NEUTRAL = (
    *("checkpoint", "trust", "accelerator", "precision"),  # the file's checksum and the resolved choices count
    *("output", "suffix", "overwrite", "report", "progress", "expect"),
    *("engine", "devices", "workers", "memory"),
    *("missing_chunks", "missing_slices"),  # which only decide whether a volume is refused
)
"""Options that change no voxel. Any other option makes it a different command, and only the same command continues a
killed run."""

VOLATILE = ("input_files", "checkpoint_sha256", "mitoseg", "torch")
"""What may change between two runs of one command, so that earlier results are out of date."""

FINISHING = ("save", "postprocess", "labelling")
"""Options of the steps after the network; its tiles are kept if nothing else changes."""


def run(options: PredictOptions, folder: Path, tell: Tell) -> None:
    """Predict one or several volumes; continue an unfinished prediction by the same command.

    Raises:
        UserError: The checkpoint, a volume, an option or an output is invalid.
    """
    if chosen_steps(options.postprocess) is not None and options.save not in ("mask", INSTANCES):
        remedy = "give save=mask or save=instances, or postprocess=none"
        raise UserError("postprocess makes masks", f"save={options.save}", remedy)
    instantiate(options.labelling)
    rows = plan_rows(options.input, options.output, options.suffix)
    for row in [Row(options.input, options.output)] if rows is None else rows:
        ours, theirs = (Path(os.path.realpath(path)) for path in (place(row.output)[0], stored_in(row.input)))
        if ours == theirs or theirs in ours.parents or ours in theirs.parents:
            where = "is the input itself" if ours == theirs else "lies inside the input or around it"
            raise UserError(f"the output {where}", row.output, "choose another name")
    engine = make_engine(options)
    with waiting("opening the input"):
        source = open_input(options) if rows is None else None  # checked first: starting an engine may take minutes
    options = replace(options, checkpoint=chosen_model(options, source, rows or []))
    checkpoint = find_weights(options.checkpoint)
    model = load_model(checkpoint, trust=options.trust)
    if source is not None and not engine.in_process and not holds_finished(options.output):
        check_volume_output(options.output, options.overwrite)
    with ExitStack() as stack:
        with waiting("starting the workers"):
            stack.enter_context(engine)
        session = Session.open(options, engine, model, checkpoint)
        if source is not None:
            chosen = predict_one(options, session, source, folder / "report.html", tell)
        else:
            chosen = {"precision": session.precision, "device": session.device}
            predict_many(options, session, rows or [], folder, tell)
    about = {"input": options.input, "checkpoint": options.checkpoint, "output": options.output}
    write_json(folder / "provenance.json", collect(**about, chosen=chosen))


def chosen_model(options: PredictOptions, source: Volume | None, rows: Sequence[Row]) -> str:
    """The checkpoint that is named, else the bundled model that suits the input; for several volumes, one for all.

    A folder of results is continued with the model that began it.
    """
    if options.checkpoint not in (None, AUTO):
        return str(options.checkpoint)
    before = read_rows(Path(options.output)).values() if rows else ()
    used = {json.loads(row.command).get("checkpoint_sha256") for row in before if row.command}
    for name in bundled():
        if hashlib.sha256(find_weights(name).read_bytes()).hexdigest() in used:
            return name
    volumes = [] if source is None else [source]
    for row in rows[:: -(-len(rows) // JUDGED) or 1]:
        with suppress(Exception):  # which is told when its turn comes
            volumes.append(open_input(replace(options, input=row.input)))
    greys = options.normalize
    return choose_model(volumes, accelerator=options.accelerator, normalize=greys, resample=options.resample)


def predict_one(
    options: PredictOptions,
    session: Session,
    source: Volume,
    report: Path,
    tell: Tell,
    on_written: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Predict one volume and return the settings chosen for it; a killed prediction is continued.

    ``on_written`` is called once output and report exist, before the records needed to continue are removed.
    """
    steps, labelling = chosen_steps(options.postprocess), instantiate(options.labelling)
    instances = options.save == INSTANCES
    if instances:
        if options.dtype is not None:
            remedy = "leave dtype out: instances are uint32"
            raise UserError("cannot save instances as that type", options.dtype, remedy)
        check_voxel_type(options.output, np.uint32)
    kind = "mask" if instances else options.save
    prepared = session.prepare(options, source, kind if steps is None else "probability")
    prediction = prepared.predictor.prediction
    if instances:
        labelling.spacing(prepared.voxel_size)
    about = {**identity(options, session, source), "tiles": prepared.kind}
    kept: dict[str, Any] = {"volatile": VOLATILE, "finishing": FINISHING}
    with StagedVolume(options.output, about, overwrite=options.overwrite, view=prepared.restored, **kept) as stage:
        with waiting("judging the model on a few fields"):
            line, expected = expected_score(judge(prepared.predictor) if options.expect else [])
        if not stage.moved:
            predict_staged(options, session, prepared.predictor, stage)
            if voxels := prepared.padding:
                share = 100 * voxels / source.box.size
                if voxels == source.box.size:
                    log.warning("%s: every slice has a single value: there is no tissue to predict", source.path)
                else:
                    log.info("%s: %.1f %% is constant padding, which was left out; see padding=", source.path, share)
                stage.add_metadata({"padding": voxels})
        if (instances or steps is not None) and not stage.moved:
            finish(prepared, stage, session.engine, steps, labelling if instances else None, show=options.progress)
        else:
            show = options.progress and stage.converts
            with progress("writing", source.box.size, unit="voxels", show=show) as task:
                stage.finish(lambda box: task.advance(box.size))
        tell(f"{options.save} of {source.shape} voxels written to {options.output}")
        tell(f"threshold {prediction.threshold:.3f}")
        chosen = {"precision": prediction.precision, "device": session.device, **stage.decisions, **stage.found}
        if prepared.restored is not None:
            chosen["resampled_to"] = prepared.predictor.volume.voxel_size
        if line:
            tell(line)
            chosen["expected"] = expected
        if options.report:
            from mitoseg.workflows import evaluate  # imports plotting libraries, which take a second

            evaluate.report_predicted(options, report, as_stored(source), prepared.voxel_size, chosen)
            tell(f"report in {report}")
        on_written()
    return chosen


def predict_staged(options: PredictOptions, session: Session, predictor: Predictor, stage: StagedVolume) -> None:
    """Predict every tile still missing from the stage, in this process or on the workers."""
    volume, remote = predictor.volume, None
    decider = partial(decide_tiling, memory=options.memory, compiled=options.compile, method=options.method)
    if session.workers is not None:
        remote = session.remote(predictor.prediction, volume)
        files = {"checkpoint": session.checkpoint, "input": stored_in(options.input)}
        check_shared_storage(session.engine, files, stage.folder)
        decider = partial(decider, workers=session.workers.neighbours, besides=used_bytes())
    decisions = stage.decisions
    if not decisions:
        with waiting("choosing the tiles"):
            decisions = decider(predictor) if remote is None else ask_predictors(session.engine, remote, decider)
    tile = tuple(decisions["tile"])
    how = f"{decisions['method']} on {session.device}, {predictor.prediction.precision}"
    compiled = ", compiled" if decisions["compile"] else ""
    log.info("%s%s, tiles of %s voxels", how, compiled, " x ".join(map(str, tile)))
    voxel_size = volume.voxel_size or predictor.prediction.voxel_size
    if volume.voxel_size is None and voxel_size is not None and options.resample != "auto":  # which logs this itself
        text = "%s has no voxel size: taking the checkpoint's, %s nm; or give voxel_size="
        log.warning(text, options.input, voxel_size)
    metadata = {**predictor.prediction.metadata, "checkpoint": Path(options.checkpoint or "").name}
    dtype = predictor.prediction.dtype
    stage.start(VolumeInfo(options.output, volume.shape, dtype, voxel_size, metadata), tile, decisions)
    if stage.done:
        log.info("continuing: %d of %d tiles are done", len(stage.done), stage.count)
    done, title = sum(part.size for part in stage.done), f"predicting {Path(options.input).name}"
    try:
        with progress(title, volume.box.size, done=done, unit="voxels", show=options.progress) as task:
            if remote is None:
                if decisions["compile"]:
                    log.info("compiling: the first tile takes ten seconds or more")
                    predictor.compile(stage.tile)
                given: dict[str, Any] = {"tile": stage.tile, "done": frozenset(stage.done)}
                predict_volume(predictor, volume, stage, on_tile=lambda part: task.advance(part.size), **given)
                return

            def take(part: Box, _: None) -> None:
                stage.take(part)
                task.advance(part.size)

            make = partial(tile_writer, remote, stage.array.absolute(), stage.tile, decisions["compile"])
            session.engine.map(Prepared(make), (part for part in stage.tiles() if part not in stage.done), take)
        remove_partial(stage.array)
    except BaseException:
        if stage.done:
            log.warning("%d of %d tiles are kept: the same command continues from there", len(stage.done), stage.count)
        raise


def finish(
    prepared: PreparedVolume,
    stage: StagedVolume,
    engine: Engine,
    steps: Postprocess | None,
    labelling: Labelling | None,
    *,
    show: bool,
) -> None:
    """Post-process the tiles into a mask, within tissue only, or, with ``labelling``, into instances."""
    about: dict[str, Any] = {"threshold": prepared.predictor.prediction.threshold, "scale": 1, **stage.found}
    about["kind"] = "mask" if labelling is None else "instances"
    if labelling is not None:
        about["labelling"] = asdict(labelling)
    if steps is not None:
        about["postprocess"] = asdict(steps)

    def write(mask: Volume, writer: VolumeWriter) -> None:
        with ExitStack() as stack:
            if steps is not None:
                image = prepared.image
                cleaning = cleaned(steps, mask, stage.folder, image=image, engine=engine, show=show)
                mask = blanked(stack.enter_context(cleaning), image.padding)
            if labelling is None:
                write_blocks(mask, BLOCK, writer, engine=engine)
                return
            with waiting("numbering mitochondria"):
                instances = label_prediction(mask, decide(mask), labelling, engine=engine)
            with waiting("writing instances"):
                write_instances(instances, writer, engine=engine)
        log.info("%d mitochondria, %d of them cut by the border", len(instances), instances.touches_border.sum())

    stage.finish_as(write, np.dtype(np.uint8 if labelling is None else np.uint32), about)


def decide_tiling(
    predictor: Predictor, *, memory: object, compiled: str | bool, method: str, workers: int = 1, besides: int = 0
) -> dict[str, Any]:
    """Choose tile size and compilation once per volume; they are kept when the command is run again."""
    predictor.operations((1, 1, 1))  # loads torch's compiler, which the memory budget must include
    try:
        tile = predictor.choose_tile(budget_bytes(memory, workers=workers, besides=besides))
    except UserError as error:
        among = "" if workers == 1 else f" for each of {workers} workers, or use fewer of them"
        raise UserError(error.what, error.value, error.remedy + among) from None
    chosen = choose_method(method, predictor.prediction.network)
    compiles = choose_compile(compiled, predictor.device, predictor.operations(tile))
    return {"tile": list(tile), "compile": compiles, "method": chosen}


def open_input(options: PredictOptions) -> Volume:
    """The volume to predict; missing chunks or slices raise an error or a warning."""
    volume = open_volume(options.input, axes=options.axes, voxel_size=options.voxel_size)
    if isinstance(volume, ZarrVolume):
        volume.check_scale()
    missing = options.missing_slices if isinstance(volume, SliceFolder) else options.missing_chunks
    if missing == "error":
        volume.check_complete()
    else:
        warn_of_gaps(volume)
    return with_padding(volume, options.padding)


def identity(options: PredictOptions, session: Session, volume: Volume) -> Mapping[str, Any]:
    """What distinguishes this prediction from others, whatever computes it."""
    return {
        **{key: value for key, value in vars(options).items() if key not in NEUTRAL},
        "input": os.path.abspath(options.input),
        "input_files": [volume.shape, str(volume.dtype), volume.voxel_size, volume.state()],
        "precision": session.precision,
        "device": session.device,
        "checkpoint_sha256": session.sha256,
        "mitoseg": __version__,
        "torch": torch.__version__,
    }


def predict_many(options: PredictOptions, session: Session, given: Sequence[Row], reports: Path, tell: Tell) -> None:
    """Predict each volume; one that fails does not stop the others, and finished ones are skipped."""
    folder = Path(options.output)
    with held(folder / ".lock", "another process is writing into this folder"):
        before = read_rows(folder)
        known = {Path(row.output).name: row for row in given}
        # the folder may have been copied or mounted elsewhere since its table was written
        rows = [replace(before.get(name, row), input=row.input, output=row.output) for name, row in known.items()]
        others = [row for name, row in before.items() if name not in known and (row.command or row.status == DONE)]
        skipped, judged = 0, set(np.linspace(1, len(rows), JUDGED).round())
        for number, row in enumerate(rows, 1):
            own = replace(options, input=row.input, output=row.output, expect=options.expect and number in judged)
            log.info("volume %d of %d: %s", number, len(rows), row.input)
            try:
                source = open_input(own)
                command = plain(identity(own, session, source))
                if _is_done(row, command, overwrite=options.overwrite):
                    row.status, row.error = DONE, ""
                    skipped += 1
                    continue
                rows[number - 1] = row = Row(row.input, row.output, voxels=str(source.box.size))
                write_rows(folder, [*rows, *others])  # an output about to be replaced no longer matches its row
                start = time.monotonic()

                def note(row: Row = row, start: float = start, command: object = command) -> None:
                    row.seconds = f"{time.monotonic() - start:.1f}"
                    row.foreground = _foreground(row.output, session.engine)
                    row.status, row.command = DONE, json.dumps(command, sort_keys=True)
                    write_rows(folder, [*rows, *others])

                report = reports / f"report_{Path(row.output).name}.html"
                predict_one(own, session, source, report, tell, note)
            except EngineError:  # none of the remaining volumes could be predicted
                raise
            except Exception as error:
                line = explain(error)
                if line is None:
                    log.error("this is a bug in mitoseg; please report it with these lines", exc_info=error)
                    line = f"a bug: {type(error).__name__}: {error}"
                row.status, row.error = FAILED, " ".join(line.split())
                log.error("%s", row.error)
            finally:
                write_rows(folder, [*rows, *others])
    remove(folder / ".lock")
    failed = [row.input for row in rows if row.status == FAILED]
    done = sum(row.status == DONE for row in rows)
    again = f", {skipped} of them before" if skipped else ""
    tell(f"{done} of {len(rows)} volumes are done{again}; table in {folder / NAME}")
    if failed:
        names = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        remedy = f"see {folder / NAME} for the reasons; the same command repeats only these"
        raise UserError(f"{len(failed)} of {len(rows)} volumes have failed", names, remedy)


def _is_done(row: Row, command: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a volume's output exists and was made by the same command from the same input."""
    if not row.command or not os.path.lexists(row.output):
        return False
    before = json.loads(row.command)
    if before == command:
        if holds_finished(row.output):
            remove(stage_folder(row.output))  # killed after the row was written
        return True
    if not overwrite:
        remedy = "give overwrite=true, or another output folder"
        raise UserError(f"the output is that of another command ({changes(before, command)})", row.output, remedy)
    return False


def _foreground(output: str, engine: Engine) -> str:
    """Fraction of a result's voxels that are foreground; empty for results without foreground."""
    volume = open_volume(output)
    if volume.info.metadata.get("kind") not in KINDS:
        return ""
    counts: list[int] = []
    count = partial(_count_foreground, volume, decide(volume))
    engine.map(count, tiles(volume.box, COUNTED), lambda _, found: counts.append(found))
    return f"{sum(counts) / volume.box.size:.6f}"


def _count_foreground(volume: Volume, decision: Decision, box: Box) -> int:
    values = volume.read(box)
    with one_at_a_time():
        return int(decision.foreground(values).sum())
