"""``measure``: measure the mitochondria of a volume, or compare the tables of several conditions."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate

from mitoseg.engines import Engine
from mitoseg.errors import UserError, import_extra
from mitoseg.evaluation.conditions import MARKER, ComparisonOptions, compare_conditions
from mitoseg.evaluation.instances import label_prediction
from mitoseg.evaluation.report import write_report
from mitoseg.evaluation.scene import save_scene
from mitoseg.evaluation.score import check_shapes
from mitoseg.progress import Tell, progress, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Sources, export_meshes, export_skeletons, measure_instances, summarise
from mitoseg.segmentation.blockwise import store, write_blocks
from mitoseg.segmentation.exporting import MESH_LIST, SKELETON_LIST, check_meshes
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.storage import check_folder, check_output, make_folders, read_json, scratch_folder, write_json
from mitoseg.tables import check_suffix, write_table
from mitoseg.volumes import Volume, VoxelSize, create_volume
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import integer_volume
from mitoseg.volumes.labels import map_mask
from mitoseg.volumes.opening import check_volume_output, check_voxel_type, stored_in, warn_of_sizes
from mitoseg.volumes.padding import Padding, as_stored, with_padding
from mitoseg.volumes.predicted import Decision, decide
from mitoseg.workflows.evaluate import open_volumes
from mitoseg.workflows.options import MeasureOptions
from mitoseg.workflows.session import limit_memory, make_engine

log = logging.getLogger(__name__)
DIGITS = 9
"""Format of floats in text tables: more digits than any measurement is accurate to."""


def run(options: MeasureOptions, folder: Path, tell: Tell) -> None:
    """Measure a volume; with ``compare=``, compare tables. ``provenance.json`` and ``report.html`` go to ``folder``.

    Raises:
        UserError: A volume, an option or the output is invalid.
    """
    cut, correction = options.cut_objects, options.correction
    comparison = ComparisonOptions(options.columns, cut_objects=cut, correction=correction, seed=options.seed)
    if options.compare is not None:
        compare_tables(options, comparison, folder, tell)
        return
    output = check_outputs(options)
    names = ("input", "image", "probability", "uncertainty")
    volumes = open_volumes({name: getattr(options, name) for name in names}, options.axes)
    volumes["input"] = map_mask(volumes["input"], options.foreground, options.kind)
    check_shapes(**volumes)
    if "image" in volumes:
        volumes["image"] = with_padding(volumes["image"], options.padding)
    size = None if options.voxel_size is None else check_voxel_size(options.voxel_size)
    if size is None:
        warn_of_sizes(*volumes.values())
        size = next((volume.voxel_size for volume in volumes.values() if volume.voxel_size is not None), None)
    if size is None:
        what = "measuring needs the voxel size, and no file has one"
        raise UserError(what, options.input, "give voxel_size=[z,y,x] in nm")
    make_folders(output.parent)
    engine = make_engine(options)
    decision = decide(volumes["input"], options.threshold, options.kind)
    if decision.source == "default" and decision.kind == "probability":
        text = "%s states no threshold: taking %g; give threshold= (predict printed it)"
        log.warning(text, options.input, decision.threshold)
    if options.save_instances is not None and decision.kind != "instances":
        check_voxel_type(options.save_instances, np.uint32)
    with engine, scratch_folder(output) as scratch:
        limit_memory(engine, options.memory)
        sources = find_sources(options, volumes, size, decision, engine, scratch)
        with progress(f"measuring {Path(options.input).name}", 1.0, show=options.progress) as task:
            table = measure_instances(
                sources,
                engine=engine,
                min_volume=options.min_volume,
                reach=options.reach,
                on_part=task.reach,
                scratch=scratch,
            )
        padding = 0
        if options.padding == "auto" and "image" in volumes and isinstance(volumes["image"].padding, Padding):
            padding = volumes["image"].padding.count()
        elif options.padding == "auto":  # as `predict` recorded it
            noted = volumes["input"].info.metadata.get("padding", 0)
            padding = noted if isinstance(noted, int) and 0 <= noted <= volumes["input"].box.size else 0
        summary = {"volume": options.input, **summarise(table, sources.labels.shape, size, padding)}
        write_table(output, table, overwrite=options.overwrite, digits=DIGITS)
        write_table(summary_path(output), pd.DataFrame([summary]), overwrite=options.overwrite, digits=DIGITS)
        chosen = {"kind": decision.kind, "threshold": decision.threshold, "voxel_size": size, "padding": padding}
        paths = {name: volume.path for name, volume in volumes.items()}
        about = collect(**paths, output=str(output), chosen=chosen, options=vars(options))
        write_json(folder / "provenance.json", about)
        written = write_shapes(options, folder, sources, table, engine)
    tell(what_was_found(table, summary))
    for path in (output, summary_path(output), *written):
        tell(f"{path} written")


def summary_path(output: Path) -> Path:
    """The file for the row of the whole volume: always CSV."""
    return output.with_name(f"{output.stem}_summary.csv")


def what_was_found(table: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """Summarise the result in one line for the console."""
    if not len(table):
        return "no mitochondria to measure: the table is empty"
    padded, share = 100 * summary["padding_fraction"], 100 * summary["volume_fraction"]
    tissue = f"tissue ({padded:.1f} % of the volume is padding)" if padded else "volume"
    density = f"{summary['density_per_um3']:.3g} per um3, {share:.2f} % of the {tissue}"
    return f"{len(table)} mitochondria, {summary['count_whole']:.0f} of them whole; {density}"


def check_outputs(options: MeasureOptions) -> Path:
    """The table's path; outputs that cannot be written are refused before anything is measured."""
    instantiate(options.labelling)
    output = Path(options.output)
    check_suffix(output)
    sources = (options.input, options.image, options.probability, options.uncertainty)
    taken = {os.path.realpath(stored_in(path)): "the output is the input itself" for path in sources if path}
    instances = options.save_instances and stored_in(options.save_instances)
    for path in (output, summary_path(output), instances, options.meshes, options.skeletons, options.scene):
        if path is not None:
            place = os.path.realpath(path)
            if place in taken:
                raise UserError(taken[place], str(path), "choose another name")
            check_output(path, options.overwrite)
            taken[place] = "two outputs have the same name"
    if options.save_instances is not None:
        check_volume_output(options.save_instances, options.overwrite)
    if options.scene is not None and Path(options.scene).suffix.lower() != ".png":
        raise UserError("the scene is drawn as .png", options.scene, "write scene=NAME.png")
    if options.meshes is not None:
        check_meshes(options.mesh_formats, options.mesh_reduction)
        check_folder(options.meshes, MESH_LIST, options.overwrite)
    if options.skeletons is not None:
        import_extra("kimimaro", "kimimaro", "mesh")
        check_folder(options.skeletons, SKELETON_LIST, options.overwrite)
    return output


def find_sources(
    options: MeasureOptions,
    volumes: dict[str, Volume],
    size: VoxelSize,
    decision: Decision,
    engine: Engine,
    scratch: Path,
) -> Sources:
    """The volumes to measure; masks and probabilities are labelled first, into ``scratch``.

    In these, objects below ``min_volume`` are not labelled, so they do not count as neighbours either.
    """
    given = volumes["input"]
    probability, scale = volumes.get("probability"), 1.0
    if probability is None and decision.kind == "probability":
        probability, scale = given, decision.scale
    elif probability is not None:
        scale = decide(probability, None, "probability").scale
    if decision.kind == "instances":
        labels = integer_volume(given) if given.dtype.kind == "f" else given
    else:
        labelling = instantiate(options.labelling)
        least = max(labelling.min_volume or 0.0, options.min_volume or 0.0)
        labelling = replace(labelling, min_volume=least or None)
        with waiting("numbering mitochondria"):
            found = label_prediction(given, decision, labelling, voxel_size=size, engine=engine)
            labels = store(found, found.block, scratch / "instances.zarr", engine=engine)
            labels.info = replace(labels.info, path=given.path)  # the list of meshes names it
    return Sources(labels, size, volumes.get("image"), probability, volumes.get("uncertainty"), scale)


def write_shapes(
    options: MeasureOptions, folder: Path, sources: Sources, table: pd.DataFrame, engine: Engine
) -> list[Path]:
    """Write the requested instances, meshes, skeletons, picture and report; instances without a row are left out.

    The engine writes the instances and is then closed.
    """
    labels, size, overwrite = sources.labels, sources.voxel_size, options.overwrite
    if labels.info.metadata.get("kind", "instances") != "instances":  # kind= overrides the file's
        labels = copy(labels)
        labels.info = replace(labels.info, metadata={"kind": "instances"})
    ids = [int(i) for i in table["instance"]]
    common = {"voxel_size": size, "ids": ids, "overwrite": overwrite}
    written = []
    if options.save_instances is not None:
        metadata = {**labels.info.metadata, "kind": "instances"}
        dtype = labels.dtype if labels.dtype.kind == "u" else np.dtype(np.uint32)
        path = options.save_instances
        with create_volume(
            path, labels.shape, dtype, voxel_size=size, metadata=metadata, overwrite=overwrite
        ) as writer:
            write_blocks(labels, BLOCK, writer, engine=engine, dtype=dtype)
        written.append(Path(path))
    engine.close()  # the rest is done in this process
    if options.meshes is not None and ids:
        formats, reduction = options.mesh_formats, options.mesh_reduction
        export_meshes(labels, options.meshes, formats=formats, reduction=reduction, **common)  # type: ignore[arg-type]
        written.append(Path(options.meshes))
    if options.skeletons is not None and ids:
        export_skeletons(labels, options.skeletons, **common)  # type: ignore[arg-type]
        written.append(Path(options.skeletons))
    if options.scene is not None and ids:
        save_scene(options.scene, labels, **common)  # type: ignore[arg-type]
        written.append(Path(options.scene))
    if options.report:
        report = write_report(
            folder / "report.html",
            table=table,
            title=Path(options.input).name,
            instances=labels,
            image=None if sources.image is None else as_stored(sources.image),
            voxel_size=size,
            provenance=read_json(folder / "provenance.json"),
        )
        written.append(report)
    return written


def compare_tables(options: MeasureOptions, comparison: ComparisonOptions, folder: Path, tell: Tell) -> None:
    """Compare the tables of ``compare=``, files by condition; write ``output``, a folder of tables and a figure."""
    given, output = options.compare, options.output
    remedy = "write compare={control:[a.csv,b.csv],disease:[c.csv]}"
    if not isinstance(given, dict) or len(given) < 2:
        raise UserError("compare does not name two conditions", given, remedy)
    groups = {str(name): [files] if isinstance(files, str) else files for name, files in given.items()}
    for name, files in groups.items():
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            raise UserError(f"compare names no files for {name}", files, remedy)
    check_folder(output, MARKER, options.overwrite)
    found = compare_conditions(groups, comparison)
    found.save(output, overwrite=options.overwrite)
    paths = {f"{name}_{i}": path for name, files in groups.items() for i, path in enumerate(files)}
    write_json(folder / "provenance.json", collect(seed=options.seed, output=output, **paths))
    for note in found.notes:
        tell(f"- {note}")
    tell(f"{Path(output) / 'comparison.md'} and .png written")
