"""Where the result came from: command, commit, versions, data, licence."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from mitoseg.evaluation.report.markup import Html, element, join
from mitoseg.storage import plain

_FIRST = ("command", "commit", "mitoseg", "time", "seed", "data.title", "data.licence", "data.citation")


def origin_section(provenance: Mapping[str, object]) -> Html | None:
    """Every entry of the provenance, the most important first; None without any."""
    rows = dict(flatten(plain(provenance)))
    if not rows:
        return None
    first = [key for key in _FIRST if key in rows]
    rest = [key for key in rows if key not in first]
    parts = [_list({key: rows[key] for key in first})] if first else []
    if rest:
        parts.append(element("details", element("summary", "All of it"), _list({key: rows[key] for key in rest})))
    return join(*parts)


def flatten(data: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries as lines, their names joined by dots; a command is one line.

    >>> dict(flatten({"seed": 1, "data": {"files": [{"path": "a.tif"}]}, "command": ["a", "b c"]}))
    {'seed': '1', 'data.files.1.path': 'a.tif', 'command': "a 'b c'"}
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        if name in {"command", "arguments"}:
            yield name, shlex.join(str(word) for word in data)
        elif all(not isinstance(value, Mapping | list) for value in data):
            yield name, ", ".join(str(value) for value in data)
        else:
            for i, value in enumerate(data, 1):
                yield from flatten(value, f"{name}.{i}")
    elif data is not None:
        yield name, {True: "yes", False: "no"}.get(data, str(data)) if isinstance(data, bool) else str(data)


def _list(rows: Mapping[str, str]) -> Html:
    parts = []
    for key, value in rows.items():
        shown = element("code", value) if key in {"command", "arguments", "commit"} else value
        parts.append(element("div", element("dt", key), element("dd", shown)))
    return element("dl", *parts, class_="origin")
