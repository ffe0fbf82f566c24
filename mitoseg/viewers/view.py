"""``view``: a run's volumes in a browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from contextlib import suppress

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.viewers.shown import KINDS, Shown, open_shown

LARGEST_PORT = 65535


def run(cfg: DictConfig) -> None:
    """Serve what the config names, print the link, and go on until Ctrl+C; nothing is written.

    Raises:
        UserError: The library is missing, there is nothing to look at, an option, a volume or the port is no good.
    """
    check_options(cfg)
    import_extra("neuroglancer", "neuroglancer", "viewers")
    from mitoseg.viewers.neuroglancer.scene import make_scene, serving, wait_for_interrupt

    shown = open_shown(cfg.run, {kind: cfg[kind] for kind in KINDS}, axes=cfg.axes, voxel_size=_size(cfg))
    console = Console()
    for line in what_is_shown(shown):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    state = make_scene(shown, surfaces=cfg.surfaces)
    with serving(state, bind=cfg.bind, port=cfg.port) as viewer, suppress(KeyboardInterrupt):
        link = viewer.get_viewer_url()
        print(link, flush=True)
        console.print("Ctrl+C ends it", highlight=False)
        if cfg.open:
            webbrowser.open(link)
        wait_for_interrupt()


def what_is_shown(shown: Shown) -> list[str]:
    """A line for each volume, and one for the voxels."""
    width = max(map(len, shown.volumes))
    lines = [f"{kind:{width}}  {volume.path}" for kind, volume in shown.volumes.items()]
    shape, size = (" x ".join(f"{n:g}" for n in three) for three in (shown.shape, shown.voxel_size))
    return [*lines, f"{shape} voxels of {size} nm (z, y, x)"]


def check_options(cfg: DictConfig) -> None:
    """Refuse what is of the wrong kind.

    Raises:
        UserError: With the option and a remedy.
    """
    for key in ("open", "surfaces"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    if type(cfg.port) is not int or not 0 <= cfg.port <= LARGEST_PORT:
        raise UserError("port is no port", cfg.port, f"give a number from 0 (any free one) to {LARGEST_PORT}")
    if not isinstance(cfg.bind, str) or not cfg.bind:
        raise UserError("bind is no address", cfg.bind, "give bind=127.0.0.1 (this machine) or bind=0.0.0.0 (all)")


def _size(cfg: DictConfig) -> Sequence[float] | None:
    size = cfg.voxel_size
    return OmegaConf.to_container(size) if OmegaConf.is_config(size) else size  # type: ignore[return-value]
