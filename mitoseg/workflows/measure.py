"""``measure``: a volume in, a table of its mitochondria out; or tables of several conditions, and what differs.

What ``measure`` measures: the volumes that a config names, and instances of what has none yet.

What ``measure`` writes besides tables: instances, meshes, skeletons, a picture, a report.

``measure compare=``: tables of several conditions against each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.conditions import ComparisonOptions, compare_conditions
from mitoseg.evaluation.instances import label_prediction
from mitoseg.evaluation.report import write_report
from mitoseg.evaluation.scene import save_scene
from mitoseg.evaluation.score import check_shapes
from mitoseg.extras import import_extra
from mitoseg.progress import Tell, progress, waiting
from mitoseg.provenance import collect
from mitoseg.segmentation import Labelling, Sources, export_meshes, export_skeletons, measure_instances, summarise
from mitoseg.segmentation.blockwise import store, write_blocks
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.storage import check_output, make_folders, plain, read_json, scratch_folder, write_json
from mitoseg.tables import check_suffix, write_table
from mitoseg.volumes import Volume, VoxelSize, create_volume
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import integer_volume
from mitoseg.volumes.labels import map_mask
from mitoseg.volumes.opening import check_volume_output, stored_in, warn_of_sizes
from mitoseg.volumes.padding import Padding, as_stored, with_padding
from mitoseg.volumes.predicted import Decision, decide
from mitoseg.workflows.evaluate import open_volumes
from mitoseg.workflows.options import chosen_labelling, limit_memory, make_engine

DIGITS = 9
"""Of floats in tables as text: more than anything here is exact to."""


def run(cfg: DictConfig, folder: Path, tell: Tell) -> None:
    """Measure the volume that a config names; with ``compare=``, compare tables.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Where ``provenance.json`` and ``report.html`` go.
        tell: Takes what was found, and what was written.

    Raises:
        UserError: A volume, an option or the output is no good.
    """
    if cfg.compare is not None:
        compare_tables(cfg, folder, tell)
        return
    output = check_options(cfg)
    names = ("input", "image", "probability", "uncertainty")
    volumes = open_volumes({name: cfg[name] for name in names}, cfg.axes)
    volumes["input"] = map_mask(volumes["input"], plain(cfg.foreground), cfg.kind)
    check_shapes(**volumes)
    if "image" in volumes:
        volumes["image"] = with_padding(volumes["image"], cfg.padding)
    size = find_voxel_size(cfg, volumes)
    make_folders(output.parent)
    engine, title = make_engine(cfg), f"measuring {Path(cfg.input).name}"
    decision = decide(volumes["input"], cfg.threshold, cfg.kind)
    with engine, ExitStack() as stack:
        limit_memory(engine, cfg.memory)
        sources, scratch = stack.enter_context(find_sources(cfg, volumes, size, decision, engine))
        with progress(title, 1.0, show=cfg.progress) as task:
            options = {"min_volume": cfg.min_volume, "reach": cfg.reach, "on_part": task.reach, "scratch": scratch}
            table = measure_instances(sources, engine=engine, **options)
        padding = count_padding(volumes) if cfg.padding == "auto" else 0
        summary = {"volume": cfg.input, **summarise(table, sources.labels.shape, size, padding)}
        write_table(output, table, overwrite=cfg.overwrite, digits=DIGITS)
        write_table(summary_path(output), pd.DataFrame([summary]), overwrite=cfg.overwrite, digits=DIGITS)
        chosen = {"kind": decision.kind, "threshold": decision.threshold, "voxel_size": size, "padding": padding}
        paths = {name: volume.path for name, volume in volumes.items()}
        given = OmegaConf.to_container(cfg)
        write_json(folder / "provenance.json", collect(**paths, output=str(output), chosen=chosen, options=given))
        written = write_shapes(cfg, folder, sources, table, engine)
    tell(what_was_found(table, summary))
    for path in (output, summary_path(output), *written):
        tell(f"{path} written")


def count_padding(volumes: Mapping[str, Volume]) -> int:
    """Voxels that are no tissue: in the image if it is given, else as `predict` has noted beside what is measured."""
    image = volumes.get("image")
    if image is not None and isinstance(image.padding, Padding):
        return image.padding.count()
    given = volumes["input"]
    noted = given.info.metadata.get("padding", 0)
    return noted if isinstance(noted, int) and 0 <= noted <= given.box.size else 0


def summary_path(output: Path) -> Path:
    """Where the row of the whole volume goes: CSV, whatever the table is.

    >>> summary_path(Path("a/cells.parquet")).name
    'cells_summary.csv'
    """
    return output.with_name(f"{output.stem}_summary.csv")


def what_was_found(table: pd.DataFrame, summary: dict[str, float]) -> str:
    """One line for the console."""
    if not len(table):
        return "no mitochondria to measure: the table is empty"
    whole, padded = int(summary["count_whole"]), 100 * summary["padding_fraction"]
    tissue = f"tissue ({padded:.1f} % of the volume is padding)" if padded else "volume"
    return (
        f"{len(table)} mitochondria, {whole} of them whole; {summary['density_per_um3']:.3g} per um3, "
        f"{100 * summary['volume_fraction']:.2f} % of the {tissue}"
    )


def check_options(cfg: DictConfig) -> Path:
    """The output, if it can be written and no switch or number is of the wrong kind.

    Raises:
        UserError: It cannot, or one is.
    """
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    for key in ("overwrite", "progress", "report"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    for key in ("threshold", "min_volume", "reach"):
        if cfg[key] is not None and (isinstance(cfg[key], bool) or not isinstance(cfg[key], int | float)):
            raise UserError(f"{key} is not a number", cfg[key], f"write {key}=NUMBER")
    chosen_labelling(cfg)
    output = Path(cfg.output)
    check_suffix(output)
    for path in (output, summary_path(output)):
        if os.path.realpath(path) == os.path.realpath(stored_in(cfg.input)):
            raise UserError("the output is the input itself", cfg.output, "choose another name")
        check_output(path, cfg.overwrite)
    check_shape_options(cfg)
    return output


def find_voxel_size(cfg: DictConfig, volumes: dict[str, Volume]) -> VoxelSize:
    """The voxel size that is given, else the first that a file knows.

    Raises:
        UserError: There is none.
    """
    if cfg.voxel_size is not None:
        given = OmegaConf.to_container(cfg.voxel_size) if OmegaConf.is_config(cfg.voxel_size) else cfg.voxel_size
        return check_voxel_size(given)  # type: ignore[arg-type]
    warn_of_sizes(*volumes.values())
    for volume in volumes.values():
        if volume.voxel_size is not None:
            return volume.voxel_size
    raise UserError("measuring needs the voxel size, and no file has one", cfg.input, "give voxel_size=[z,y,x] in nm")


@contextmanager
def find_sources(
    cfg: DictConfig,
    volumes: dict[str, Volume],
    size: VoxelSize,
    decision: Decision,
    engine: Engine,
) -> Iterator[tuple[Sources, Path]]:
    """The volumes to measure, and a folder beside the output; a mask and probabilities are numbered first, into it.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        volumes: ``input``, and those of ``image``, ``probability`` and ``uncertainty`` that are given.
        size: (z, y, x) in nm.
        decision: What the input is.
        engine: Started; numbers.

    Raises:
        UserError: Kinds or options are no good, or instances are no whole numbers.
    """
    given = volumes["input"]
    probability, scale = volumes.get("probability"), 1.0
    if probability is None and decision.kind == "probability":
        probability, scale = given, decision.scale
    elif probability is not None:
        scale = decide(probability, None, "probability").scale
    with scratch_folder(Path(cfg.output)) as scratch:
        if decision.kind != "instances":
            with waiting("numbering mitochondria"):
                found = label_prediction(given, decision, sized_labelling(cfg), voxel_size=size, engine=engine)
                labels = store(found, found.block, scratch / "instances.zarr", engine=engine)
        else:
            labels = integer_volume(given) if given.dtype.kind == "f" else given
        sources = Sources(labels, size, volumes.get("image"), probability, volumes.get("uncertainty"), scale)
        yield sources, scratch


def sized_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for, without objects that ``min_volume`` would leave out: they are no neighbours."""
    labelling = chosen_labelling(cfg)
    least = max(labelling.min_volume or 0.0, cfg.min_volume or 0.0)
    return replace(labelling, min_volume=least or None)


def check_shape_options(cfg: DictConfig) -> None:
    """Refuse outputs that cannot be written before anything is measured.

    Raises:
        UserError: One exists, has a wrong suffix, or needs a library that is missing.
    """
    if cfg.save_instances is not None:
        check_volume_output(cfg.save_instances, cfg.overwrite)
    for key in ("meshes", "skeletons", "scene"):
        if cfg[key] is not None:
            check_output(cfg[key], cfg.overwrite)
    if cfg.scene is not None and Path(cfg.scene).suffix.lower() != ".png":
        raise UserError("the scene is drawn as .png", cfg.scene, "write scene=NAME.png")
    if cfg.meshes is not None:
        import_extra("trimesh", "trimesh", "mesh")
    if cfg.skeletons is not None:
        import_extra("kimimaro", "kimimaro", "mesh")


def write_shapes(cfg: DictConfig, folder: Path, sources: Sources, table: pd.DataFrame, engine: Engine) -> list[Path]:
    """Write what the config asks for.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Of the run, for ``report.html``.
        sources: What was measured.
        table: What that gave; instances without a row are left out.
        engine: Started; writes the instances, and is closed then.

    Returns:
        What was written.

    Raises:
        UserError: Something cannot be written.
    """
    labels, size = as_instances(sources.labels), sources.voxel_size
    ids = [int(i) for i in table["instance"]]
    common = {"voxel_size": size, "ids": ids, "overwrite": cfg.overwrite}
    written = []
    if cfg.save_instances is not None:
        write_labels(labels, cfg.save_instances, size, overwrite=cfg.overwrite, engine=engine)
        written.append(Path(cfg.save_instances))
    engine.close()  # what follows is made here
    if cfg.meshes is not None and ids:
        formats = list(cfg.mesh_formats) if OmegaConf.is_list(cfg.mesh_formats) else cfg.mesh_formats
        export_meshes(labels, cfg.meshes, formats=formats, reduction=cfg.mesh_reduction, **common)
        written.append(Path(cfg.meshes))
    if cfg.skeletons is not None and ids:
        export_skeletons(labels, cfg.skeletons, **common)
        written.append(Path(cfg.skeletons))
    if cfg.scene is not None and ids:
        save_scene(cfg.scene, labels, **common)
        written.append(Path(cfg.scene))
    if cfg.report:
        written.append(
            write_report(
                folder / "report.html",
                table=table,
                title=Path(cfg.input).name,
                instances=labels,
                image=None if sources.image is None else as_stored(sources.image),
                voxel_size=size,
                provenance=read_json(folder / "provenance.json"),
            )
        )
    return written


def as_instances(labels: Volume) -> Volume:
    """The same voxels, said to be instances: a file whose kind was given may say that it is something else."""
    if labels.info.metadata.get("kind", "instances") == "instances":
        return labels
    said = copy(labels)
    said.info = replace(labels.info, metadata={"kind": "instances"})
    return said


def write_labels(
    labels: Volume, path: str, voxel_size: tuple[float, float, float], *, overwrite: bool, engine: Engine
) -> None:
    """Write instances as a volume, block by block.

    Raises:
        UserError: The output cannot be written.
    """
    options = {"voxel_size": voxel_size, "metadata": {**labels.info.metadata, "kind": "instances"}}
    stored = labels.dtype if labels.dtype.kind == "u" else np.dtype(np.uint32)
    with create_volume(path, labels.shape, stored, overwrite=overwrite, **options) as writer:  # type: ignore[arg-type]
        write_blocks(labels, BLOCK, writer, engine=engine, dtype=stored)


def compare_tables(cfg: DictConfig, folder: Path, tell: Tell) -> None:
    """Compare the tables that a config names, and write ``output``, a folder of tables and a picture.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Where ``provenance.json`` goes.
        tell: Takes the notes.

    Raises:
        UserError: Conditions, a table, an option or the output is no good.
    """
    if not cfg.output:
        raise UserError("output has no value", None, "add output=FOLDER to the command")
    groups = read_conditions(cfg.compare)
    columns = OmegaConf.to_container(cfg.columns) if OmegaConf.is_config(cfg.columns) else cfg.columns
    if columns is not None and not isinstance(columns, list):
        raise UserError("columns is no list", columns, "write columns=[volume_nm3,length_nm]")
    options = ComparisonOptions(columns, cut_objects=cfg.cut_objects, correction=cfg.correction, seed=cfg.seed)
    found = compare_conditions(groups, options)
    found.save(cfg.output, overwrite=cfg.overwrite)
    paths = {f"{name}_{i}": path for name, files in groups.items() for i, path in enumerate(files)}
    write_json(folder / "provenance.json", collect(seed=cfg.seed, output=str(cfg.output), **paths))
    for note in found.notes:
        tell(f"- {note}")
    tell(f"{Path(cfg.output) / 'comparison.md'} and .png written")


def read_conditions(value: object) -> dict[str, list[str]]:
    """Files by condition.

    Raises:
        UserError: ``compare`` is no mapping from names to files, or has fewer than two of them.
    """
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    remedy = "write compare={control:[a.csv,b.csv],disease:[c.csv]}"
    if not isinstance(plain, dict) or len(plain) < 2:
        raise UserError("compare does not name two conditions", plain, remedy)
    groups = {str(name): [files] if isinstance(files, str) else files for name, files in plain.items()}
    for name, files in groups.items():
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            raise UserError(f"compare names no files for {name}", files, remedy)
    return groups
