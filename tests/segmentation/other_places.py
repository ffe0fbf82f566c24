"""An engine that does what worker processes do to results, in this process, and a volume that kills its readers."""

import os
import pickle
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np

from mitoseg.engines import Engine
from mitoseg.volumes import Volume, open_volume


class Elsewhere(Engine):
    """Items in any order, some done twice, and nothing but pickles comes and goes."""

    def __init__(self, seed=0):
        self.random, self.largest = random.Random(seed), 0

    def start(self):
        pass

    def close(self):
        pass

    def ask(self, function):
        return [pickle.loads(pickle.dumps(function))()]

    def map(self, function, items, on_done):
        items = list(items)
        self.random.shuffle(items)
        for item in items:
            sent = pickle.dumps((function, item))
            self.largest = max(self.largest, len(sent))
            for _ in range(self.random.choice((1, 2))):
                there, own = pickle.loads(sent)
                found = pickle.dumps(there(own))
            on_done(item, pickle.loads(found))


class Killing(Volume):
    """A stored volume whose reader is killed at the n-th reading, if it is another process than ours; each n once."""

    def __init__(self, path, notes, at):
        self.stored, self.notes, self.at, self.ours = open_volume(str(path)), Path(notes), at, os.getpid()
        super().__init__(replace(self.stored.info, dtype=np.dtype(np.uint8)))

    def read(self, box=None):
        if os.getpid() != self.ours:
            (self.notes / f"read.{os.getpid()}.{len(list(self.notes.iterdir()))}").touch()
            reads, kills = (len(list(self.notes.glob(f"{name}.*"))) for name in ("read", "kill"))
            if kills < len(self.at) and reads >= self.at[kills]:
                (self.notes / f"kill.{kills}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.stored.read(box)
