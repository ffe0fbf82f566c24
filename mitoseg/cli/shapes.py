"""What ``measure`` writes besides tables: instances, meshes, skeletons, a picture, a report."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.report import report_measurement
from mitoseg.evaluation.scene import save_scene
from mitoseg.extras import import_extra
from mitoseg.segmentation import Sources, export_meshes, export_skeletons
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.storage import check_output, read_json
from mitoseg.volumes import Volume, create_volume
from mitoseg.volumes.padding import as_stored
from mitoseg.volumes.writing import check_volume_output


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
            report_measurement(
                folder / "report.html",
                table,
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
