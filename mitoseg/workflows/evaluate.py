"""``evaluate``: score a stored result against labels; needs no model.

Scores of instances, for ``evaluate``.

``report=true``: what a command hands to the report.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mitoseg.datasets.download import fingerprint
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation import Bootstrap, evaluate
from mitoseg.evaluation.figures import save_curves, save_overlays
from mitoseg.evaluation.instances import (
    SMALL,
    evaluate_instances,
    find_overlaps,
    instance_table,
    prediction_instances,
    truth_instances,
)
from mitoseg.evaluation.report import report_evaluation, report_prediction
from mitoseg.evaluation.score import check_shapes
from mitoseg.evaluation.table import score_table
from mitoseg.geometry import Box
from mitoseg.networks.checkpoint import DEFAULT
from mitoseg.progress import Tell, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Labelling
from mitoseg.storage import plain, read_json, write_json
from mitoseg.volumes import LabelVolume, Volume, VoxelSize, map_labels, open_volume
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.labels import holds_classes, map_mask
from mitoseg.volumes.opening import warn_of_gaps, warn_of_sizes
from mitoseg.volumes.predicted import decide
from mitoseg.workflows.options import chosen_labelling, chosen_steps, cleaned, limit_memory, make_engine

log = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path, tell: Tell) -> None:
    """As `score_files`."""
    score_files(cfg, folder, tell)


def score_files(cfg: DictConfig, folder: Path, tell: Tell = lambda _: None) -> dict[str, object]:
    """Score the volumes that a config names; write numbers, provenance, figures and report.

    Args:
        cfg: The keys of ``conf/evaluate.yaml``.
        folder: Where ``metrics.json``, ``provenance.json``, ``figures/`` and ``report.html`` go.
        tell: Takes the tables, and where figures and report are.

    Returns:
        What ``metrics.json`` holds: the keys of `mitoseg.evaluation.evaluate`, and ``label_rule``.

    Raises:
        UserError: A volume or an option is no good.
    """
    voxel_size, threshold, reference = _check_options(cfg)
    volumes = open_volumes({"prediction": cfg.prediction, "truth": cfg.truth, "image": cfg.image}, cfg.axes)
    check_shapes(**volumes)
    if voxel_size is None:
        warn_of_sizes(*volumes.values())
    if cfg.prediction == cfg.truth:
        log.warning("the prediction is compared with itself: %s is the truth as well", cfg.truth)
    crop = None if cfg.crop is None else Box.parse(cfg.crop, volumes["prediction"].shape)
    named = plain(cfg.foreground), plain(cfg.prediction_foreground)
    predicted_values, true_values = chosen_values(*named, cfg.kind, volumes)
    volumes["prediction"] = map_mask(volumes["prediction"], predicted_values, cfg.kind)
    truth = _read_truth(volumes["truth"], cfg, true_values)
    meant = {"threshold": threshold, "kind": cfg.kind, "voxel_size": voxel_size}
    with make_engine(cfg) as engine, ExitStack() as stack:
        limit_memory(engine, cfg.memory)
        steps = chosen_steps(cfg)
        if steps is not None:
            given = {**meant, "voxel_size": voxel_size or truth.voxel_size, "engine": engine, "show": cfg.progress}
            cleaning = cleaned(steps, volumes["prediction"], folder, image=volumes.get("image"), **given)
            volumes["prediction"] = stack.enter_context(cleaning)
            meant |= {"threshold": None, "kind": None}
        scored = {**volumes, "truth": truth}
        result, numbered = _count(cfg, volumes["prediction"], truth, engine, crop=crop, **meant)
        engine.close()  # figures and report are made here
        result["postprocess"] = None if steps is None else asdict(steps)
        write_json(folder / "metrics.json", result)
        paths = {name: volume.path for name, volume in volumes.items()}
        write_json(folder / "provenance.json", collect(**paths, label_rule=truth.rule))
        tell(score_table(result, title=Path(cfg.prediction).name))
        if "instances" in result:
            tell(instance_table(result["instances"]))
        if cfg.figures:
            save_curves(folder / "figures", result, title=Path(cfg.prediction).name, reference=reference)
        if cfg.save_overlays:
            shown = [scored[name] for name in ("image", "truth", "prediction")]
            options = {"count": cfg.save_overlays, "crop": crop, **meant}
            overlays = save_overlays(folder / "figures", *shown, **options)
            tell(f"{len(overlays)} slices in {folder / 'figures'}")
        if cfg.report:
            tell(f"report in {report_scores(cfg, folder, result, scored, instances=numbered, crop=crop, **meant)}")
    return result


def _count(
    cfg: DictConfig,
    prediction: Volume,
    truth: LabelVolume,
    engine: Engine,
    *,
    voxel_size: Sequence[float] | None,
    **meant: Any,  # noqa: ANN401
) -> tuple[dict[str, Any], Volume | None]:
    """The scores of voxels and, if they are asked for, of instances, with these."""
    draws = Bootstrap(cfg.bootstrap, cfg.seed)
    options = {"slabs": cfg.slabs, "progress": cfg.progress, "bootstrap": draws, "voxel_size": voxel_size, **meant}
    bands = _numbers(cfg.bands, "bands") or ()
    result = dict(evaluate(prediction, truth, bands=bands, engine=engine, **options))
    result["label_rule"] = truth.rule
    told = {"threshold": meant["threshold"], "kind": meant["kind"]}
    with waiting("numbering and matching mitochondria"):
        numbered = number_instances(cfg, prediction, truth, voxel_size=voxel_size, engine=engine, **told)
        if numbered is not None and _wanted(cfg, prediction, **told):
            labelling = None if decide(prediction, **told).kind == "instances" else chosen_labelling(cfg)
            chosen: dict[str, Any] = {"small": cfg.small_objects, "crop": meant["crop"], "engine": engine}
            result["instances"] = score_instances(numbered, truth, labelling, bootstrap=draws, **chosen)
    return result, numbered


def _check_options(cfg: DictConfig) -> tuple[Sequence[float] | None, float | None, float | None]:
    """Voxel size, threshold and reference, as numbers.

    Raises:
        UserError: An option cannot be meant.
    """
    if not isinstance(cfg.save_overlays, int) or cfg.save_overlays < 0:
        raise UserError("save_overlays is not a number of figures", cfg.save_overlays, "write save_overlays=5")
    if cfg.save_overlays and cfg.image is None:
        raise UserError("figures need the image", f"save_overlays={cfg.save_overlays}", "add image=VOLUME")
    voxel_size = _numbers(cfg.voxel_size, "voxel_size")
    if voxel_size is not None and (len(voxel_size) != 3 or min(voxel_size) <= 0):
        raise UserError("cannot read voxel_size", voxel_size, "give three lengths above zero, [z,y,x] in nm")
    threshold = None if cfg.threshold is None else _number(cfg.threshold, "threshold")
    reference = None if cfg.reference is None else _number(cfg.reference, "reference")
    if reference is not None and not 0 <= reference <= 1:
        raise UserError("the reference is no Jaccard index", reference, "give a number from 0 to 1, such as 0.964")
    check_instance_options(cfg)
    check_report(cfg)
    return voxel_size, threshold, reference


def chosen_values(
    given: object, predicted: object, kind: str | None, volumes: Mapping[str, Volume]
) -> tuple[object, object]:
    """The values that are mitochondria in the prediction and in the truth.

    Args:
        given: ``foreground=``, which is about the one of the two that holds classes.
        predicted: ``prediction_foreground=``.
        kind: What the user says the prediction is.
        volumes: ``prediction`` and ``truth``.

    Raises:
        UserError: Both hold classes, and it is not said which values of the prediction are meant.
    """
    if given is None or predicted is not None or kind not in (None, "mask"):
        return predicted, given
    if not holds_classes(volumes["prediction"]):
        return None, given
    if holds_classes(volumes["truth"]):
        what = "the prediction and the truth both hold several values, so it is not clear which of them is meant by"
        remedy = "give prediction_foreground= for the prediction and foreground= for the truth, or kind=instances"
        raise UserError(what, f"foreground={given}", remedy)
    return given, None


def _read_truth(labels: Volume, cfg: DictConfig, foreground: object) -> LabelVolume:
    """The labels as 0, 1 and ignored.

    Raises:
        UserError: They cannot be read so, or a switch is neither true nor false.
    """
    if not isinstance(cfg.ignore_empty_slices, bool):
        remedy = "give ignore_empty_slices=true or ignore_empty_slices=false"
        raise UserError("ignore_empty_slices is neither true nor false", cfg.ignore_empty_slices, remedy)
    return map_labels(
        labels,
        rule=cfg.label_rule_of_values,
        foreground=foreground,
        ignore_label=cfg.ignore_label,
        ignore_empty_slices=cfg.ignore_empty_slices,
    )


def open_volumes(paths: dict[str, str | None], axes: str | None) -> dict[str, Volume]:
    """Open the files, and tell of parts that are missing; ``axes`` is for those that it fits, the others are clear."""
    volumes = _open_volumes(paths, axes)
    for volume in volumes.values():
        warn_of_gaps(volume)
    return volumes


def _open_volumes(paths: dict[str, str | None], axes: str | None) -> dict[str, Volume]:
    given = {name: path for name, path in paths.items() if path is not None}
    if axes is None:
        return {name: open_volume(path) for name, path in given.items()}
    volumes: dict[str, Volume] = {}
    misfits: list[UserError] = []
    for name, path in given.items():
        try:
            volumes[name] = open_volume(path, axes=axes)
        except UserError as error:
            volumes[name] = open_volume(path)
            misfits.append(error)
    if len(misfits) == len(given):
        raise misfits[0]
    return volumes


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} is not a number", value, f"write {key}=NUMBER")
    return value


def _numbers(value: object, key: str) -> Sequence[float] | None:
    if value is None:
        return None
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not isinstance(plain, list | tuple):
        raise UserError(f"{key} is not a list of numbers", plain, f"write {key}=[a,b,c]")
    return [_number(v, key) for v in plain]


def check_instance_options(cfg: DictConfig) -> None:
    """Refuse values that cannot be meant.

    Raises:
        UserError: ``instances`` is no switch, or ``small_objects`` no number of voxels.
    """
    if cfg.instances is not None and not isinstance(cfg.instances, bool):
        remedy = "give instances=true, instances=false, or null for predictions that are instances"
        raise UserError("instances is neither true nor false", cfg.instances, remedy)
    if isinstance(cfg.small_objects, bool) or not isinstance(cfg.small_objects, int) or cfg.small_objects < 0:
        raise UserError("small_objects is not a number of voxels", cfg.small_objects, "give 0 or more")
    chosen_labelling(cfg)


def number_instances(
    cfg: DictConfig,
    prediction: Volume,
    truth: LabelVolume,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    engine: Engine | None = None,
) -> Volume | None:
    """The ids of a prediction, once for scores and report; None where neither asks for them.

    Args:
        cfg: The keys ``instances``, ``labelling`` and ``report``.
        prediction: Instances, or what is to be labelled first.
        truth: Mapped labels, for the voxel size.
        threshold: Of the prediction.
        kind: Of the prediction.
        voxel_size: (z, y, x) in nm.
        engine: Started, numbers; None: this process.

    Raises:
        UserError: Ids or options are no good.
    """
    if not (cfg.report or _wanted(cfg, prediction, threshold, kind)):
        return None
    size = voxel_size or prediction.voxel_size or truth.voxel_size
    return prediction_instances(
        prediction, chosen_labelling(cfg), threshold=threshold, kind=kind, voxel_size=size, engine=engine
    )


def _wanted(cfg: DictConfig, prediction: Volume, threshold: float | None, kind: str | None) -> bool:
    """Whether instances are to be scored."""
    wanted = decide(prediction, threshold, kind).kind == "instances" if cfg.instances is None else cfg.instances
    return bool(wanted)


def score_instances(
    result: Volume,
    truth: LabelVolume,
    labelling: Labelling | None,
    *,
    small: int = SMALL,
    bootstrap: Bootstrap | None = None,
    crop: Box | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Scores of the instances; whole volumes are numbered, and then cropped.

    Args:
        result: The ids of the prediction.
        truth: Mapped labels.
        labelling: How the ids were made; None where they were stored.
        small: Objects of fewer voxels are left out.
        bootstrap: How the intervals are made.
        crop: The part that is scored.
        engine: Started, counts; None: this process.

    Returns:
        The keys of `evaluate_instances`, ``labelling`` (None where ids were stored), ``truth_labelled``.

    Raises:
        UserError: Ids or options are no good.
    """
    numbered = truth_instances(truth, (labelling or Labelling()).connectivity, engine=engine)
    overlaps = find_overlaps(result, numbered, labels=truth, crop=crop, engine=engine)
    scores = evaluate_instances([overlaps], small=small, bootstrap=bootstrap)
    made = None if labelling is None else asdict(labelling)
    return {**scores, "labelling": made, "truth_labelled": not truth.numbered}


def check_report(cfg: DictConfig) -> None:
    """Refuse a ``report`` that is no switch.

    Raises:
        UserError: It is neither true nor false.
    """
    if not isinstance(cfg.report, bool):
        raise UserError("report is neither true nor false", cfg.report, "give report=true or report=false")


def report_scores(
    cfg: DictConfig,
    folder: Path,
    scores: Mapping[str, object],
    volumes: Mapping[str, Volume],
    *,
    threshold: float | None,
    crop: Box | None,
    kind: str | None,
    voxel_size: Sequence[float] | None,
    instances: Volume | None = None,
) -> Path:
    """Write ``report.html`` of an evaluation beside its ``provenance.json``.

    Args:
        cfg: The keys of ``conf/evaluate.yaml``.
        folder: Of the run.
        scores: What ``metrics.json`` holds.
        volumes: ``prediction``, ``truth`` (mapped) and, if given, ``image``, as they were scored.
        threshold: Of the evaluation, as the next three; see `mitoseg.evaluation.evaluate`.
        crop: The part that was scored.
        kind: Of the prediction.
        voxel_size: (z, y, x) in nm.
        instances: The ids of the prediction, where they are numbered already.

    Raises:
        UserError: The file cannot be written.
    """
    provenance = {**read_json(folder / "provenance.json"), "seed": cfg.seed, "files": checksums(volumes)}
    return report_evaluation(
        folder,
        scores,
        title=f"Evaluation of {Path(cfg.prediction).name}",
        prediction=volumes["prediction"],
        truth=volumes["truth"],
        image=volumes.get("image"),
        provenance=provenance,
        threshold=threshold,
        crop=crop,
        kind=kind,
        voxel_size=None if voxel_size is None else check_voxel_size(voxel_size),
        labelling=chosen_labelling(cfg),
        small=cfg.small_objects,
        instances=instances,
    )


def report_prediction_of(
    cfg: DictConfig, path: Path, image: Volume, *, voxel_size: VoxelSize | None, chosen: Mapping[str, object]
) -> None:
    """Write the report of a volume that was just predicted.

    Args:
        cfg: The keys of ``conf/predict.yaml``.
        path: The report.
        image: The input.
        voxel_size: (z, y, x) in nm, where it is known.
        chosen: What was decided for this volume; for the record.

    Raises:
        UserError: The file cannot be written.
    """
    log.info("making the report")
    prediction = open_volume(cfg.output)
    origin = collect(input=cfg.input, checkpoint=cfg.checkpoint or DEFAULT, output=cfg.output, chosen=chosen)
    origin["files"] = checksums({"input": image, "prediction": prediction})
    report_prediction(
        path,
        title=f"Prediction of {Path(cfg.input).name}",
        prediction=prediction,
        image=image,
        voxel_size=voxel_size,
        provenance=origin,
        labelling=chosen_labelling(cfg),
    )


def checksums(volumes: Mapping[str, Volume]) -> list[dict[str, object]]:
    """Role, path, size and checksum of what lies behind volumes; nothing of what is no file."""
    found: list[dict[str, object]] = []
    for role, volume in volumes.items():
        with suppress(OSError):
            found.append({"role": role, **asdict(fingerprint(volume.path))})
    return found
