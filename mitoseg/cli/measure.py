"""``measure``: a volume in, a table of its mitochondria out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mitoseg.cli.evaluate import open_volumes
from mitoseg.cli.tables import check_suffix, write_table
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.score import check_shapes
from mitoseg.provenance import collect
from mitoseg.segmentation import Sources, measure_instances, summarise
from mitoseg.segmentation.instances import label_components
from mitoseg.storage import check_output, write_json
from mitoseg.volumes import ArrayVolume, Volume, VoxelSize
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.units import check_voxel_size


def run(cfg: DictConfig) -> None:
    """Measure, write the table and its summary, and print how many there are.

    Raises:
        UserError: A volume, an option or the output is no good.
    """
    from mitoseg.cli.launch import run_dir

    measure_files(cfg, run_dir(), console=Console())


def measure_files(cfg: DictConfig, folder: Path, *, console: Console | None = None) -> pd.DataFrame:
    """Measure the volume that a config names.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Where ``provenance.json`` goes.
        console: Where to say what was found; None for nowhere.

    Returns:
        The table that was written.

    Raises:
        UserError: A volume, an option or the output is no good.
    """
    output = check_options(cfg)
    names = ("input", "image", "probability", "uncertainty")
    volumes = open_volumes({name: cfg[name] for name in names}, cfg.axes)
    check_shapes(**volumes)
    size = find_voxel_size(cfg, volumes)
    decision = decide(volumes["input"], cfg.threshold, cfg.kind)
    sources = make_sources(volumes, decision, size)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not cfg.progress) as bar:
        task = bar.add_task(f"measuring {Path(cfg.input).name}", total=1.0)
        table = measure_instances(
            sources,
            min_volume=cfg.min_volume,
            reach=cfg.reach,
            workers=cfg.workers,
            on_part=lambda share: bar.update(task, completed=share),
        )
    summary = {"volume": cfg.input, **summarise(table, sources.labels.shape, size)}
    write_table(output, table, overwrite=cfg.overwrite)
    write_table(summary_path(output), pd.DataFrame([summary]), overwrite=cfg.overwrite)
    chosen = {"kind": decision.kind, "threshold": decision.threshold, "voxel_size": size}
    paths = {name: volume.path for name, volume in volumes.items()}
    write_json(
        folder / "provenance.json",
        collect(**paths, output=str(output), chosen=chosen, options=OmegaConf.to_container(cfg)),
    )
    if console is not None:
        console.print(what_was_found(table, summary), soft_wrap=True, markup=False)
        console.print(f"{output} and {summary_path(output).name} written", soft_wrap=True, markup=False)
    return table


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
    whole = int(summary["count_whole"])
    return (
        f"{len(table)} mitochondria, {whole} of them whole; {summary['density_per_um3']:.3g} per um3, "
        f"{100 * summary['volume_fraction']:.2f} % of the volume"
    )


def check_options(cfg: DictConfig) -> Path:
    """The output, if it can be written and no switch or number is of the wrong kind.

    Raises:
        UserError: It cannot, or one is.
    """
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    for key in ("overwrite", "progress"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    for key in ("threshold", "min_volume", "reach"):
        if cfg[key] is not None and (isinstance(cfg[key], bool) or not isinstance(cfg[key], int | float)):
            raise UserError(f"{key} is not a number", cfg[key], f"write {key}=NUMBER")
    output = Path(cfg.output)
    check_suffix(output)
    for path in (output, summary_path(output)):
        if os.path.realpath(path) == os.path.realpath(stored_in(cfg.input)):
            raise UserError("the output is the input itself", cfg.output, "choose another name")
        check_output(path, cfg.overwrite)
    return output


def find_voxel_size(cfg: DictConfig, volumes: dict[str, Volume]) -> VoxelSize:
    """The voxel size that is given, else the first that a file knows.

    Raises:
        UserError: There is none.
    """
    if cfg.voxel_size is not None:
        given = OmegaConf.to_container(cfg.voxel_size) if OmegaConf.is_config(cfg.voxel_size) else cfg.voxel_size
        return check_voxel_size(given)  # type: ignore[arg-type]
    for volume in volumes.values():
        if volume.voxel_size is not None:
            return volume.voxel_size
    raise UserError("measuring needs the voxel size, and no file has one", cfg.input, "give voxel_size=[z,y,x] in nm")


def make_sources(volumes: dict[str, Volume], decision: Decision, size: VoxelSize) -> Sources:
    """The volumes to measure; a mask and probabilities are labelled first, in memory."""
    given, labels = volumes["input"], volumes["input"]
    probability, scale = volumes.get("probability"), 1.0
    if probability is None and decision.kind == "probability":
        probability, scale = given, decision.scale
    elif probability is not None:
        scale = decide(probability, None, "probability").scale
    if decision.kind != "instances":
        labels = ArrayVolume(label_components(decision.foreground(given.read())), size, given.path)
    elif labels.dtype.kind == "f":
        labels = ArrayVolume(_whole_numbers(given), size, given.path)
    return Sources(labels, size, volumes.get("image"), probability, volumes.get("uncertainty"), scale)


def _whole_numbers(labels: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """Instances that some programs store as floats.

    Raises:
        UserError: They are no whole numbers from 0 on.
    """
    values = labels.read()
    if not (np.isfinite(values).all() and values.min() >= 0 and (values == np.floor(values)).all()):
        raise UserError("instances are whole numbers from 0 on", labels.path, "say kind=probability or kind=mask")
    return values.astype(np.uint64)
