"""A small volume with everything that a report can show, made by hand, and a reader of reports like a browser."""

import base64
import json
import zlib
from html.parser import HTMLParser

import numpy as np
import pandas as pd
from skimage.draw import ellipsoid

from mitoseg.evaluation import Bootstrap, evaluate
from mitoseg.evaluation.report import ReportOptions, write_report
from mitoseg.volumes import ArrayVolume
from mitoseg.volumes.base import mask_volume

SHAPE = (16, 60, 80)
SIZE = (10.0, 5.0, 5.0)
BALLS = {1: (8, 15, 15), 2: (8, 15, 45), 3: (8, 42, 30), 4: (8, 45, 60)}
RADII = {1: (4, 8, 9), 2: (4, 7, 8), 3: (4, 8, 8), 4: (4, 9, 10)}
"""Middles (z, y, x) of what is found; 4 is a false object. The truth also has one that is missed."""
MISSED = (8, 15, 68)


def ball(middle, radii):
    mask = np.zeros(SHAPE, bool)
    one = ellipsoid(*radii)
    start = [m - n // 2 for m, n in zip(middle, one.shape, strict=True)]
    mask[tuple(slice(a, a + n) for a, n in zip(start, one.shape, strict=True))] = one
    return mask


def small_volumes():
    """Image, truth, probability, instances and the true objects, numbered, as volumes."""
    instances, true_ids = np.zeros(SHAPE, np.uint32), np.zeros(SHAPE, np.uint32)
    for number, middle in BALLS.items():
        there = ball(middle, RADII[number])
        instances[there] = number * 10
        true_ids[there] = number % 4
    true_ids[ball(MISSED, (3, 5, 6))] = 4
    truth = (true_ids > 0).astype(np.uint8)
    truth[0, :5] = 255
    rng = np.random.default_rng(0)
    image = (150 - 80 * (instances > 0) + rng.normal(0, 12, SHAPE)).clip(0, 255).astype(np.uint8)
    probability = np.where(instances > 0, 0.9, 0.05).astype(np.float32)
    return {
        "image": ArrayVolume(image, SIZE),
        "truth": ArrayVolume(truth, SIZE),
        "prediction": ArrayVolume(probability, SIZE, metadata={"kind": "probability", "threshold": 0.5}),
        "instances": ArrayVolume(instances, SIZE, metadata={"kind": "instances"}),
        "true_ids": ArrayVolume(true_ids),
    }


def small_table():
    """Measurements of the instances, in another order than their ids."""
    return pd.DataFrame(
        {
            "instance": [20, 10, 40, 30],
            "voxels": [900, 1000, 800, 1100],
            "volume_nm3": [2.25e5, 2.5e5, 2.0e5, 2.75e5],
            "sphericity": [0.8, 0.9, np.nan, 0.7],
            "touches_border": [False, False, False, False],
        }
    )


def small_scores(volumes):
    return evaluate(volumes["prediction"], volumes["truth"], bands=[1, 2], slabs=4, bootstrap=Bootstrap(50, 1))


def everything():
    """What `write_report` can be given."""
    volumes = small_volumes()
    return {
        **{name: volumes[name] for name in ("image", "truth", "instances")},
        "mask": mask_volume(volumes["prediction"], lambda values: values >= 0.5),
        "table": small_table(),
        "scores": small_scores(volumes),
        "provenance": {"command": ["evaluate.py", "a b"], "seed": 1, "data": {"licence": "CC0"}},
    }


def write_full(path):
    """A report with everything."""
    return write_report(path, title="a small one", options=ReportOptions(slices=5), **everything())


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
        return "".join(self.texts)

    def all(self, tag):
        """The attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]

    @property
    def places(self):
        """Voxels (z, y, x) that the buttons of errors lead to."""
        return [tuple(int(b[f"data-{axis}"]) for axis in "zyx") for b in self.all("button") if "data-z" in b]

    @property
    def rows(self):
        """Instances of the rows of the table."""
        return [row["data-instance"] for row in self.all("tr") if "data-instance" in row]


def unpack(text, dtype, shape=-1):
    """The array that `mitoseg.evaluation.report.markup.pack` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.dtype(dtype).newbyteorder("<")).reshape(shape)
