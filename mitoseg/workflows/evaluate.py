"""``evaluate``: score a stored result against ground truth; needs no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from mitoseg.datasets.download import fingerprint
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation import Bootstrap, evaluate
from mitoseg.evaluation.figures import save_curves, save_overlays
from mitoseg.evaluation.instances import (
    SMALL,
    evaluate_instances,
    find_overlaps,
    prediction_instances,
    truth_instances,
)
from mitoseg.evaluation.report import report_prediction
from mitoseg.evaluation.score import check_shapes
from mitoseg.evaluation.table import instance_table, score_table
from mitoseg.geometry import Box
from mitoseg.progress import Tell, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Labelling
from mitoseg.storage import read_json, write_json
from mitoseg.volumes import LabelVolume, Volume, VoxelSize, map_labels, open_volume
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.labels import holds_classes, map_mask
from mitoseg.volumes.opening import warn_of_gaps, warn_of_sizes
from mitoseg.volumes.predicted import decide
from mitoseg.workflows.options import EvaluateOptions, PredictOptions
from mitoseg.workflows.session import chosen_steps, cleaned, limit_memory, make_engine

log = logging.getLogger(__name__)


def run(options: EvaluateOptions, folder: Path, tell: Tell) -> None:
    """Score volumes; write scores, provenance, figures and report to ``folder``.

    Raises:
        UserError: A volume or an option is invalid.
    """
    labelling = instantiate(options.labelling)
    voxel_size = None if options.voxel_size is None else check_voxel_size(options.voxel_size)
    paths = {"prediction": options.prediction, "truth": options.truth, "image": options.image}
    volumes = open_volumes(paths, options.axes)
    check_shapes(**volumes)
    if voxel_size is None:
        warn_of_sizes(*volumes.values())
    if options.prediction == options.truth:
        log.warning("the prediction is compared with itself: %s is also the truth", options.truth)
    crop = None if options.crop is None else Box.parse(options.crop, volumes["prediction"].shape)
    given = options.foreground, options.prediction_foreground
    predicted_values, true_values = chosen_values(*given, options.kind, volumes)
    volumes["prediction"] = map_mask(volumes["prediction"], predicted_values, options.kind)
    truth = map_labels(
        volumes["truth"],
        rule=options.label_rule_of_values,
        foreground=true_values,
        ignore_label=options.ignore_label,
        ignore_empty_slices=options.ignore_empty_slices,
    )
    meant: dict[str, Any] = {"threshold": options.threshold, "kind": options.kind, "voxel_size": voxel_size}
    with make_engine(options) as engine, ExitStack() as stack:
        limit_memory(engine, options.memory)
        steps = chosen_steps(options.postprocess)
        if steps is not None:
            cleaning = cleaned(
                steps,
                volumes["prediction"],
                folder,
                image=volumes.get("image"),
                engine=engine,
                show=options.progress,
                **{**meant, "voxel_size": voxel_size or truth.voxel_size},
            )
            volumes["prediction"] = stack.enter_context(cleaning)
            meant |= {"threshold": None, "kind": None}
        scored = {**volumes, "truth": truth}
        result, numbered = score_volumes(
            volumes["prediction"],
            truth,
            labelling,
            Bootstrap(options.bootstrap, options.seed),
            instances=options.instances,
            number=options.report,
            small=options.small_objects,
            crop=crop,
            engine=engine,
            bands=options.bands or (),
            slabs=options.slabs,
            progress=options.progress,
            **meant,
        )
        engine.close()  # figures and report are made in this process
        result["postprocess"] = None if steps is None else asdict(steps)
        write_json(folder / "metrics.json", result)
        sources = {name: volume.path for name, volume in volumes.items()}
        write_json(folder / "provenance.json", collect(**sources, label_rule=truth.rule))
        show_scores(options, folder, result, scored, tell, crop=crop, instances=numbered, **meant)


def show_scores(
    options: EvaluateOptions,
    folder: Path,
    result: Mapping[str, Any],
    volumes: Mapping[str, Volume],
    tell: Tell,
    *,
    crop: Box | None,
    instances: Volume | None,
    **meant: Any,  # noqa: ANN401
) -> None:
    """Print the scores; write figures and report of the volumes as scored, with the prediction's instance ids."""
    title = Path(options.prediction).name
    tell(score_table(result, title=title))
    if "instances" in result:
        tell(instance_table(result["instances"]))
    if options.figures:
        save_curves(folder / "figures", result, title=title, reference=options.reference)
    if options.save_overlays:
        shown = [volumes[name] for name in ("image", "truth", "prediction")]
        overlays = save_overlays(folder / "figures", *shown, count=options.save_overlays, crop=crop, **meant)
        tell(f"{len(overlays)} slices in {folder / 'figures'}")
    if options.report:
        files = {"seed": options.seed, "files": checksums(volumes)}
        report = report_prediction(
            folder / "report.html",
            scores=result,
            title=f"Evaluation of {title}",
            **volumes,  # type: ignore[arg-type]
            provenance={**read_json(folder / "provenance.json"), **files},
            crop=crop,
            labelling=instantiate(options.labelling),
            small=options.small_objects,
            instances=instances,
            **meant,
        )
        tell(f"report in {report}")


def score_volumes(
    prediction: Volume,
    truth: LabelVolume,
    labelling: Labelling,
    bootstrap: Bootstrap,
    *,
    instances: bool | None,
    number: bool = False,
    small: int = SMALL,
    crop: Box | None = None,
    voxel_size: VoxelSize | None = None,
    engine: Engine | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    **counting: Any,  # noqa: ANN401 (of `mitoseg.evaluation.evaluate`)
) -> tuple[dict[str, Any], Volume | None]:
    """Voxel scores and, if wanted, instance scores; also the prediction's ids if these or ``number`` ask for them.

    ``instances`` None: if the prediction holds instances; others are labelled by ``labelling``.
    """
    meant: dict[str, Any] = {"threshold": threshold, "kind": kind}
    more: dict[str, Any] = {"voxel_size": voxel_size, "crop": crop, "engine": engine}
    result = dict(evaluate(prediction, truth, bootstrap=bootstrap, **more, **meant, **counting))
    result["label_rule"] = truth.rule
    stored = decide(prediction, **meant).kind == "instances"
    wanted = stored if instances is None else instances
    if not (wanted or number):
        return result, None
    with waiting("labelling and matching mitochondria"):
        size = voxel_size or prediction.voxel_size or truth.voxel_size
        numbered = prediction_instances(prediction, labelling, voxel_size=size, engine=engine, **meant)
        if wanted:
            connectivity = (Labelling() if stored else labelling).connectivity
            others = truth_instances(truth, connectivity, engine=engine)
            overlaps = find_overlaps(numbered, others, labels=truth, crop=crop, engine=engine)
            scores = evaluate_instances([overlaps], small=small, bootstrap=bootstrap)
            made = None if stored else asdict(labelling)
            result["instances"] = {**scores, "labelling": made, "truth_labelled": not truth.numbered}
    return result, numbered


def chosen_values(
    given: object, predicted: object, kind: str | None, volumes: Mapping[str, Volume]
) -> tuple[object, object]:
    """The values that are mitochondria in the prediction and in the truth.

    ``given`` is ``foreground=``, which applies to whichever of the two contains classes; ``predicted`` is
    ``prediction_foreground=``.
    """
    if given is None or predicted is not None or kind not in (None, "mask"):
        return predicted, given
    if not holds_classes(volumes["prediction"]):
        return None, given
    if holds_classes(volumes["truth"]):
        what = "the prediction and the truth both contain several values, so it is unclear which of them is meant by"
        remedy = "give prediction_foreground= for the prediction and foreground= for the truth, or kind=instances"
        raise UserError(what, f"foreground={given}", remedy)
    return given, None


def open_volumes(paths: Mapping[str, str | None], axes: str | None) -> dict[str, Volume]:
    """Open the files, warning of missing parts; ``axes`` is applied to those files that it fits."""
    given = {name: path for name, path in paths.items() if path is not None}
    volumes: dict[str, Volume] = {}
    misfits: list[UserError] = []
    for name, path in given.items():
        try:
            volumes[name] = open_volume(path, axes=axes)
        except UserError as error:
            misfits.append(error)
            if axes is None or len(misfits) == len(given):
                raise misfits[0] from None
            volumes[name] = open_volume(path)
    for volume in volumes.values():
        warn_of_gaps(volume)
    return volumes


def report_predicted(
    options: PredictOptions, path: Path, image: Volume, voxel_size: VoxelSize | None, chosen: Mapping[str, object]
) -> None:
    """Write the report of a volume that was just predicted, with the settings ``chosen`` for it."""
    log.info("making the report")
    prediction = open_volume(options.output)
    about = {"input": options.input, "checkpoint": options.checkpoint, "output": options.output}
    origin = collect(**about, chosen=chosen)
    origin["files"] = checksums({"input": image, "prediction": prediction})
    report_prediction(
        path,
        title=f"Prediction of {Path(options.input).name}",
        prediction=prediction,
        image=image,
        voxel_size=voxel_size,
        provenance=origin,
        labelling=instantiate(options.labelling),
    )


def checksums(volumes: Mapping[str, Volume]) -> list[dict[str, object]]:
    """Role, path, size and checksum of the volumes' files; volumes without a file are left out."""
    found: list[dict[str, object]] = []
    for role, volume in volumes.items():
        with suppress(OSError):
            found.append({"role": role, **fingerprint(volume.path)})
    return found
