"""From ``engine=`` to an engine."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.engines import Engine


def make_engine(cfg: DictConfig) -> Engine:
    """The engine that ``engine=`` names, not started.

    Raises:
        UserError: An option of it is no good.
    """
    engine: Engine = instantiate(cfg.engine, _convert_="all")
    return engine
