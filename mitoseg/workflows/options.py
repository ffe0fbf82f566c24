"""The options of each command: Hydra checks their types when composing them; ranges are checked here.

Their meanings and defaults are in ``conf/COMMAND.yaml``, whose defaults list begins with the schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import mitoseg
from mitoseg.errors import UserError, is_number

METHODS = ("auto", "dense", "strided", "window", "blend")
"""How a network may predict a volume."""

Group = dict[str, Any]
"""The composed config of an option group, for `hydra.utils.instantiate`."""


@dataclass
class Options:
    """Options of a command; the constructor checks their ranges."""

    def need(self, *keys: str) -> None:
        """Refuse keys without a value."""
        for key in keys:
            if not getattr(self, key):
                raise UserError(f"{key} has no value", None, f"add {key}=... to the command")

    def at_least(self, least: float, *keys: str) -> None:
        """Refuse smaller values."""
        for key in keys:
            value = getattr(self, key)
            if value is not None and not (is_number(value) and value >= least):
                raise UserError(f"{key} is too small", value, f"give {key}=NUMBER, {least:g} or more")

    def one_of(self, key: str, *choices: str) -> None:
        """Refuse any other value."""
        if getattr(self, key) not in choices:
            what = f"no such choice of {key.replace('_', ' ')}"
            raise UserError(what, getattr(self, key), f"choose {key}={' or '.join(choices)}")


@dataclass
class VolumeOptions(Options):
    """Options shared by predict, evaluate and measure."""

    engine: Group
    labelling: Group
    workers: int
    memory: Any
    axes: str | None
    voxel_size: list[float] | None
    threshold: float | None
    report: bool
    progress: bool

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("the threshold is not a probability", self.threshold, "give a number from 0 to 1")


@dataclass
class PredictOptions(VolumeOptions):
    """Options of ``predict``."""

    checkpoint: str | None
    input: Any
    output: str
    suffix: str
    save: str
    dtype: str | None
    method: str
    tta: str
    consensus: str
    tile: list[int] | None
    overlap: float | None
    window_stride: int
    devices: int
    accelerator: str
    precision: str
    compile: bool | str
    normalize: str
    padding: str
    resample: Any
    missing_chunks: str
    missing_slices: str
    expect: bool
    overwrite: bool
    trust: bool
    postprocess: Group

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("input", "output")
        self.one_of("missing_chunks", "error", "fill")
        self.one_of("missing_slices", "error", "ignore")
        if self.report and self.save == "uncertainty":
            raise UserError("the report shows mitochondria", "save=uncertainty", "leave out report= or save=")


@dataclass
class EvaluateOptions(VolumeOptions):
    """Options of ``evaluate``."""

    prediction: str
    truth: str
    image: str | None
    crop: Any
    kind: str | None
    bands: list[int | float] | None
    slabs: int
    bootstrap: int
    seed: int
    instances: bool | None
    small_objects: int
    figures: bool
    reference: float | None
    save_overlays: int
    label_rule_of_values: str
    foreground: Any
    prediction_foreground: Any
    ignore_label: int | None
    ignore_empty_slices: bool
    postprocess: Group

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("prediction", "truth")
        self.at_least(0, "save_overlays", "small_objects")
        if self.save_overlays and self.image is None:
            raise UserError("figures need the image", f"save_overlays={self.save_overlays}", "add image=VOLUME")
        if self.reference is not None and not 0 <= self.reference <= 1:
            remedy = "give a number from 0 to 1, such as 0.964"
            raise UserError("the reference is not a Jaccard index", self.reference, remedy)


@dataclass
class MeasureOptions(VolumeOptions):
    """Options of ``measure``."""

    input: Any
    output: str
    padding: str
    image: str | None
    probability: str | None
    uncertainty: str | None
    kind: str | None
    foreground: Any
    min_volume: float | None
    reach: float
    save_instances: str | None
    meshes: str | None
    mesh_formats: Any
    mesh_reduction: float
    skeletons: str | None
    scene: str | None
    compare: Any  # a group that is None takes no override
    columns: list[str] | None
    cut_objects: str
    correction: str
    seed: int
    overwrite: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("output", *(["input"] if self.compare is None else []), *(["mesh_formats"] if self.meshes else []))
        if self.input is not None and not isinstance(self.input, str):
            raise UserError("a table is for one volume", self.input, "run the command once for each")
        self.one_of("padding", "auto", "none")


@dataclass
class EnsembleOptions(Options):
    """Options of ``ensemble``."""

    checkpoints: list[str] | None
    predictions: list[str] | None
    output: str
    method: str
    accelerator: str
    test: bool
    figures: bool
    save_overlays: int
    overwrite: bool
    trust: bool
    data: Group
    postprocess: Group

    def __post_init__(self) -> None:
        if self.checkpoints is not None and self.predictions is not None:
            what = "both checkpoints= and predictions= are given"
            raise UserError(what, self.checkpoints, "give one of the two")
        if not self.checkpoints and not self.predictions:
            raise UserError("an ensemble needs two checkpoints or more", None, "give checkpoints=[A,B,C]")
        self.need("output")
        self.at_least(0, "save_overlays")
        self.one_of("method", *METHODS)


@dataclass
class BenchmarkOptions(Options):
    """Options of ``benchmark``."""

    size: str
    part: str
    seed: int
    resume: str | None
    overwrite: bool
    accelerator: str
    prediction: str
    band: int
    crop: Any
    published: bool
    figure: bool
    figure_size: Any
    figure_box: Any
    trust: bool
    progress: bool
    job: str | None
    small: Group
    data: Group
    methods: Any = None

    def __post_init__(self) -> None:
        self.at_least(0, "seed")
        self.one_of("accelerator", "auto", "cpu", "cuda", "mps")
        self.one_of("prediction", *METHODS)


@dataclass
class ExportOptions(Options):
    """Options of ``export``."""

    checkpoint: str
    output: str
    format: str
    form: str
    tile: list[int] | None
    name: str | None
    overwrite: bool
    trust: bool

    def __post_init__(self) -> None:
        self.need("checkpoint", "output")


@dataclass
class FinetuneOptions(Options):
    """Options of ``finetune``."""

    image: Any = None
    labels: Any = None
    output: str | None = None
    reviewed: Any = None
    model: str | None = None
    foreground: Any = None
    background: Any = None
    unknown: Any = None
    axes: str | None = None
    voxel_size: list[float] | None = None
    pixel_size: float | None = None
    steps: int | None = None
    rate: float = 1e-3
    freeze: list[str] = field(default_factory=list)
    accelerator: str = "auto"
    precision: str = "auto"
    seed: int = 1
    trust: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        self.at_least(0, "seed")
        self.at_least(1, "steps")
        self.one_of("precision", "auto", "fp32", "bf16")
        if not isinstance(self.trust, bool):  # from Python, where Hydra does not check it
            raise UserError("trust is neither true nor false", self.trust, "give true for files of people you trust")
        for key in ("rate", "pixel_size"):
            value = getattr(self, key)
            if value is not None and not (is_number(value) and 0 < value < float("inf")):
                raise UserError(f"{key} is not a number above 0", value, f"give {key}=NUMBER")


@dataclass
class TrainOptions:
    """Options of ``train``, which takes the composed config itself because its groups refer to each other."""

    name: str
    seed: int
    seeds: int
    epochs: int
    head_weights: list[float] | None
    method: str
    validation_method: str
    resume: str | None
    extend: int | None
    init_from: str | None
    freeze: Any
    ema: float | None
    patience: int | None
    checkpoint_minutes: float
    compile: bool | str
    channels_last: bool
    tune_lr: bool
    tune_batch_size: bool
    trust: bool
    test: bool
    figures: bool
    save_overlays: int
    data: Any
    network: Any
    augmentation: Any
    optimizer: Any
    scheduler: Any
    loss: Any
    postprocess: Any
    trainer: Any
    logger: Any = None
    callbacks: Any = None


def default_config_dir() -> Path:
    """The folder of the Hydra configs: inside the package in a wheel, beside it in a clone."""
    package = Path(mitoseg.__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


_SCHEMAS = (PredictOptions, EvaluateOptions, MeasureOptions, EnsembleOptions, BenchmarkOptions, ExportOptions)
for _schema in (*_SCHEMAS, FinetuneOptions, TrainOptions):
    ConfigStore.instance().store(f"{_schema.__name__.removesuffix('Options').lower()}_schema", _schema)


def typed(cfg: DictConfig) -> Any:  # noqa: ANN401 (of the command's class)
    """The options of a composed config; a config without a schema is returned unchanged."""
    schema: Any = OmegaConf.get_type(cfg) or dict
    if not (isinstance(schema, type) and is_dataclass(schema)):
        return cfg
    known = {field.name: field.type for field in fields(schema)}
    for word in HydraConfig.get().overrides.task if HydraConfig.initialized() else ():
        key, _, value = word.partition("=")
        switch = known.get(key) in ("bool", "bool | None")
        if switch and value.isdigit() and int(value) > 1:  # OmegaConf takes any number but 0 for true
            raise UserError(f"{key} is neither true nor false", value, f"give {key}=true or {key}=false")
    made = issubclass(schema, Options)
    if (added := {*map(str, cfg)} - {*known}) and (made or cfg.get("resume") is None):  # older runs may have such
        raise UserError("no such option", min(added), "--help lists the options")
    return OmegaConf.to_object(cfg) if made else cfg
