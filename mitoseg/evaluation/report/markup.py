"""HTML in small pieces: text that is always escaped, and arrays and pictures inlined as text."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoseg.storage import plain

Part = str
"""What a tag may hold: text, which is escaped, or `Html`, which is not."""


class Html(str):
    """Markup that is taken as it is; any other text is escaped."""

    __slots__ = ()


def markup(part: Part) -> Html:
    """Text as markup.

    >>> str(markup("a < b")), str(markup(Html("<b>a</b>")))
    ('a &lt; b', '<b>a</b>')
    """
    return part if isinstance(part, Html) else Html(html.escape(part, quote=True))


def join(*parts: Part) -> Html:
    """Parts one after the other."""
    return Html("".join(markup(part) for part in parts))


def element(tag: str, *parts: Part, **attributes: object) -> Html:
    """An element; ``class_`` and ``for_`` lose their underscore, other underscores become hyphens.

    Attributes that are None or False are left out, those that are True have no value.

    >>> print(element("a", "1 < 2", class_="x", data_z=3, hidden=False))
    <a class="x" data-z="3">1 &lt; 2</a>
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value), quote=True)}"')
    start = " ".join(words)
    if tag in {"img", "input", "br"}:
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(*parts)}</{tag}>")


def data_block(name: str, data: object) -> Html:
    """Data for the page's scripts, as JSON in an element of its own; nothing in it can end that element."""
    text = json.dumps(plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def pack(array: npt.NDArray[Any]) -> str:
    """The bytes of an array, little-endian and in C order, deflated (zlib) and in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode("ascii")


def picture(array: npt.NDArray[np.uint8], quality: int) -> bytes:
    """A grey or RGB picture as WebP, which every browser of the last years can show."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def number(value: object, digits: int = 4) -> str:
    """A number to read; a dash where there is none.

    >>> number(1234567), number(0.84336, 3), number(12345.678), number(2.5e-7, 3)
    ('1,234,567', '0.843', '12,346', '2.5e-07')
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return "\N{EN DASH}"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    real = float(value)
    if not math.isfinite(real):
        return "\N{EN DASH}"
    return f"{real:,.0f}" if abs(real) >= 1000 else f"{real:.{digits}g}"
