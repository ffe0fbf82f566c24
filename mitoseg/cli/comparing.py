"""``measure compare=``: tables of several conditions against each other."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.errors import UserError
from mitoseg.evaluation.conditions import Comparison, ComparisonOptions, compare_conditions
from mitoseg.provenance import collect
from mitoseg.storage import write_json


def compare_tables(cfg: DictConfig, folder: Path, *, console: Console | None = None) -> Comparison:
    """Compare the tables that a config names, and write ``output``, a folder of tables and a picture.

    Args:
        cfg: The keys of ``conf/measure.yaml``.
        folder: Where ``provenance.json`` goes.
        console: Where to print the notes; None for nowhere.

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
    if console is not None:
        for note in found.notes:
            console.print(f"- {note}", soft_wrap=True, markup=False)
        console.print(f"{Path(cfg.output) / 'comparison.md'} and .png written", soft_wrap=True, markup=False)
    return found


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
