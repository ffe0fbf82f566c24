"""Damaged volumes of every format, each made from a seed; and the process that reads them, one after the other.

As a script: ``malformed_files.py FOLDER FIRST STOP`` prints a JSON line a file: what was done to it, what reading it
ended in, and how much processor time that took. The process has little memory, and a file has 10 seconds.
"""

import json
import logging
import os
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import tifffile
from made_files import KINDS, save, walk_image

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import open_volume

COUNT, SECONDS = 200, 10
_ROOM = 2**31
_LARGEST = 2**26
JUNK = [None, -1, 0, 3.7, "", "x", [], {}, [0], [-5, 4, 4], [10**12] * 3, [10**6] * 3, [1500] * 3, 10**30, True]
JUNK += ["uint99", [[]]]


def malform(folder, number):
    """Make damaged file ``number``; its path and what was done to it."""
    rng = np.random.default_rng(number)
    name = list(KINDS)[number % len(KINDS)]
    path = folder / f"{number}_{name}"
    KINDS[name](path, walk_image())
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    texts = [f for f in files if f.suffix == ".json" or f.name.startswith(".z")]
    file = files[rng.integers(len(files))] if rng.random() < 0.4 or not texts else texts[rng.integers(len(texts))]
    often, seldom = [truncated, flipped, flipped, many_flipped], [wrong_magic, emptied, filled, removed]
    if file in texts:
        often, seldom = [junk_value, junk_value, missing_key, flipped], [truncated, emptied, removed]
    elif file.suffix in (".tif", ".mrc", ".png"):
        often += [absurd_shape, absurd_shape]
    damages = often if rng.random() < 0.8 else seldom
    damage = damages[rng.integers(len(damages))]
    return path, f"{name}: {file.name} {damage(file, rng)}"


def truncated(file, rng):
    data = file.read_bytes()
    kept = int(rng.integers(len(data)))
    file.write_bytes(data[:kept])
    return f"cut to {kept} of {len(data)} bytes"


def flipped(file, rng):
    data = bytearray(file.read_bytes())
    place = int(rng.integers(min(len(data), 512) if rng.random() < 0.7 else len(data)))
    data[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    return f"has a bit flipped at {place}"


def many_flipped(file, rng):
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    places = rng.integers(0, len(data), 1 + len(data) // 50)
    data[places] ^= rng.integers(1, 256, len(places), np.uint8)
    file.write_bytes(data.tobytes())
    return f"has {len(places)} bytes changed"


def wrong_magic(file, rng):
    data = file.read_bytes()
    magic = [b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b"\x89HDF\r\n\x1a\n"]
    magic += [b"PK\3\4xxxx", bytes(8)]
    chosen = magic[rng.integers(len(magic))]
    file.write_bytes(chosen + data[8:])
    return f"starts with {chosen!r}"


def emptied(file, rng):
    file.write_bytes(b"")
    return "is empty"


def filled(file, rng):
    file.write_bytes(rng.integers(0, 256, 3000, np.uint8).tobytes())
    return "is noise"


def removed(file, rng):
    file.unlink()
    return "is gone"


def absurd_shape(file, rng):
    value = [0, 1, 65_535, 2**31 - 1, 2**32 - 1, 10**6][rng.integers(6)]
    if file.suffix == ".png":
        data = file.read_bytes()
        head = b"IHDR" + struct.pack(">II", value, 65_535) + data[24:29]
        file.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])
        return f"states a width of {value}"
    if file.suffix == ".mrc":
        place = int(rng.choice([0, 4, 8, 12, 28, 92]))
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(struct.pack("<I", value))
        return f"states {value} at {place}"
    with tifffile.TiffFile(file) as tif:
        page = tif.pages[int(rng.integers(len(tif.pages)))]
        known = ("ImageWidth", "ImageLength", "StripByteCounts", "BitsPerSample")
        tags = [page.tags[n] for n in known if n in page.tags]
        tag = tags[rng.integers(len(tags))]
        place, kind = tag.valueoffset, {1: "B", 3: "H", 4: "I", 16: "Q"}[tag.dtype]
    limit = 2 ** (8 * struct.calcsize(kind)) - 1
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(struct.pack(f"<{kind}", min(value, limit)))
    return f"states a {tag.name} of {value}"


def places_in(data, prefix=()):
    """Every key and index of nested plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from places_in(value, (*prefix, key))


def change_json(file, rng, change):
    data = json.loads(file.read_text())
    places = list(places_in(data))
    if not places:  # an empty mapping has nothing to damage
        data["key"] = None
        places = [("key",)]
    *above, last = places[rng.integers(len(places))]
    inner = data
    for key in above:
        inner = inner[key]
    said = change(inner, last)
    file.write_text(json.dumps(data))
    return f"{'/'.join(map(str, (*above, last)))} {said}"


def junk_value(file, rng):
    def change(inner, key):
        inner[key] = JUNK[rng.integers(len(JUNK))]
        return f"is {inner[key]!r}"

    return change_json(file, rng, change)


def missing_key(file, rng):
    def change(inner, key):
        del inner[key]
        return "is missing"

    return change_json(file, rng, change)


def read(path, output):
    """Copy a volume, or read its corners where it says that it is large; what came of it."""
    try:
        volume = open_volume(path)
        volume.check_complete()
        if volume.box.size * volume.dtype.itemsize <= _LARGEST:
            save(output, volume.read())
            return "read", f"{volume.shape} {volume.dtype}"
        volume.read(Box((0, 0, 0), tuple(min(n, 64) for n in volume.shape)))
        volume.read(Box(tuple(max(0, n - 64) for n in volume.shape), volume.shape))
    except UserError as error:
        return "refused", str(error)
    return "read in part", f"{volume.shape} {volume.dtype}"


def main(folder, first, stop):
    import resource

    logging.getLogger("mitoseg").setLevel(logging.ERROR)  # what is odd is told, and is not a failure
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    for number in range(first, stop):
        path, what = malform(folder, number)
        print(json.dumps({"number": number, "what": what}), flush=True)
        begin = time.process_time()
        try:
            kind, text = read(path, folder / "out.h5")
        except BaseException as error:
            kind, text = "failed", f"{type(error).__name__}: {error}"
        seconds = time.process_time() - begin
        left = sorted(p.name for p in folder.iterdir() if p != path)
        print(json.dumps({"kind": kind, "text": text, "seconds": seconds, "left": left}), flush=True)
        for name in (path.name, *left):
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
