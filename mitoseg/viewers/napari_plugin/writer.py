"""What napari calls to save a layer; see `mitoseg.viewers.napari_plugin.saving`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.asking import may_replace
from mitoseg.viewers.napari_plugin.layer_data import KEY
from mitoseg.viewers.napari_plugin.layers import finest, size_of
from mitoseg.viewers.napari_plugin.lazy import LayerVolume
from mitoseg.viewers.napari_plugin.messages import show_mistake
from mitoseg.viewers.napari_plugin.saving import save_volume


def write_labels(path: str, data: Any, meta: Mapping[str, Any]) -> list[str]:  # noqa: ANN401 (any array)
    """Save labels; a layer that does not say what it is holds instances."""
    return _write(path, data, meta, "instances")


def write_image(path: str, data: Any, meta: Mapping[str, Any]) -> list[str]:  # noqa: ANN401 (any array)
    """Save an image."""
    return _write(path, data, meta, None)


def _write(path: str, data: Any, meta: Mapping[str, Any], kind: str | None) -> list[str]:  # noqa: ANN401
    try:
        array = finest(data, bool(meta.get("multiscale")))
        if meta.get("rgb") or len(array.shape) != 3:
            raise UserError("not a volume of grey values or labels", meta.get("name"), "it takes three axes: z, y, x")
        about = dict(meta.get("metadata", {}).get(KEY, {}))
        if kind is not None:
            about.setdefault("kind", kind)
        volume = LayerVolume(array, size_of(meta.get("scale"), meta.get("units")), str(meta.get("name")))
        save_volume(path, volume, about, overwrite=may_replace(path))
    except UserError as error:
        show_mistake(error)
        return []
    return [path]
