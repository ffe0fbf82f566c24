"""``measure``: a volume in, a table of its mitochondria out; or tables of several conditions, and what differs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.cli.comparing import compare_tables
from mitoseg.cli.engine import limit_memory, make_engine
from mitoseg.cli.evaluate import open_volumes
from mitoseg.cli.labelling import chosen_labelling
from mitoseg.cli.measured import find_sources, find_voxel_size
from mitoseg.cli.shapes import check_shape_options, write_shapes
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.score import check_shapes
from mitoseg.progress import progress
from mitoseg.provenance import collect
from mitoseg.segmentation import measure_instances, summarise
from mitoseg.storage import check_output, make_folders, plain, write_json
from mitoseg.tables import check_suffix, write_table
from mitoseg.volumes import Volume
from mitoseg.volumes.labels import map_mask
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.padding import Padding, with_padding

DIGITS = 9
"""Of floats in tables as text: more than anything here is exact to."""


def run(cfg: DictConfig) -> None:
    """Measure, write the table and its summary, and print how many there are; with ``compare=``, compare tables.

    Raises:
        UserError: A volume, a table, an option or the output is no good.
    """
    from mitoseg.cli.launch import run_dir

    if cfg.compare is not None:
        compare_tables(cfg, run_dir(), console=Console())
        return
    measure_files(cfg, run_dir(), console=Console())


def measure_files(cfg: DictConfig, folder: Path, *, console: Console | None = None) -> pd.DataFrame:
    """Measure the volume that a config names.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Where ``provenance.json`` and ``report.html`` go.
        console: Where to say what was found; None for nowhere.

    Returns:
        The table that was written.

    Raises:
        UserError: A volume, an option or the output is no good.
    """
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
    if console is not None:
        console.print(what_was_found(table, summary), soft_wrap=True, markup=False)
        for path in (output, summary_path(output), *written):
            console.print(f"{path} written", soft_wrap=True, markup=False)
    return table


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
