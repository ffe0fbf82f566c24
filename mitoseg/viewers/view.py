"""``view``: a run's volumes in a browser."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from threading import Event
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.errors import UserError, import_extra
from mitoseg.viewers.shown import KINDS, open_shown


def run(cfg: DictConfig) -> None:
    """Serve what the config names, print the link, and go on until Ctrl+C; nothing is written."""
    for key in ("open", "surfaces"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    if type(cfg.port) is not int or not 0 <= cfg.port <= 65535:
        raise UserError("port is not a port number", cfg.port, "give a number from 0 (any free one) to 65535")
    if not isinstance(cfg.bind, str) or not cfg.bind:
        raise UserError("bind is not an address", cfg.bind, "give bind=127.0.0.1 (this machine) or bind=0.0.0.0 (all)")
    import_extra("neuroglancer", "neuroglancer", "viewers")
    from mitoseg.viewers.neuroglancer.scene import make_scene, serving

    size: Any = cfg.voxel_size
    size = OmegaConf.to_container(size) if OmegaConf.is_config(size) else size
    shown = open_shown(cfg.run, {kind: cfg[kind] for kind in KINDS}, axes=cfg.axes, voxel_size=size)
    console = Console()
    width = max(map(len, shown.volumes))
    lines = [f"{kind:{width}}  {volume.path}" for kind, volume in shown.volumes.items()]
    voxels, nm = (" x ".join(f"{n:g}" for n in three) for three in (shown.shape, shown.voxel_size))
    for line in [*lines, f"{voxels} voxels of {nm} nm (z, y, x)"]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    state = make_scene(shown, surfaces=cfg.surfaces)
    with serving(state, bind=cfg.bind, port=cfg.port) as viewer, suppress(KeyboardInterrupt):
        link = viewer.get_viewer_url()
        print(link, flush=True)
        console.print("Ctrl+C ends it", highlight=False)
        if cfg.open:
            webbrowser.open(link)
        while not Event().wait(1.0):  # without a limit Windows would not heed Ctrl+C
            pass
