"""Reads a report as a browser would: its elements, and the data in them."""

import base64
import json
import zlib
from html.parser import HTMLParser

import numpy as np

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """The elements of a page; an end tag that does not fit is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.blocks = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if attributes.get("type") == "application/json":
            self.blocks[attributes["id"]] = json.loads(data)
        elif tag not in {"script", "style"} and data.strip():
            self.texts.append(data)

    @property
    def text(self):
        """All that is to be read."""
        return "".join(self.texts)

    def all(self, tag):
        """The attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        """Names of the sections."""
        return [attributes["id"] for attributes in self.all("section")]


def unpack(text, dtype, shape=-1):
    """The array that `mitoseg.evaluation.report.markup.pack` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.dtype(dtype).newbyteorder("<")).reshape(shape)
