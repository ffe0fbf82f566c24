"""What the tests share: real data where there is some, and few threads."""

import importlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from browsers import browser  # noqa: F401 (a fixture)
from hypothesis import HealthCheck, settings

os.environ.setdefault("MPLBACKEND", "Agg")
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # a machine that does other work is slow now and then


def keep_few_threads():
    """Keep torch to two threads, one where tests run side by side: its threads spin while they wait for a core."""
    import torch

    torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(autouse=True)
def few_threads():
    """See `keep_few_threads`."""
    keep_few_threads()


@pytest.fixture(autouse=True)
def own_log_handlers():
    """Take away the log handlers of a command that ran in this process: what they write to is gone."""
    before = list(logging.root.handlers)
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in before]:
        logging.root.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real volumes that MITOSEG_DATA names; the test is skipped without it."""
    folder = os.environ.get("MITOSEG_DATA")
    if not folder:
        pytest.skip("MITOSEG_DATA does not name a folder of real volumes")
    if not Path(folder).is_dir():
        pytest.fail(f"MITOSEG_DATA names no folder: {folder}")
    return Path(folder)


@pytest.fixture
def interruptible():
    """Heed SIGINT, which whatever runs in the background ignores, and its children with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def project(tmp_path):
    """A project of its own with a small command, in a folder whose name Hydra's grammar does not like."""
    from small_project import Project  # in tests/cli

    return Project(tmp_path / "my [1] = ü#, a")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the phantom and one finished run of training in ``run``; to be copied."""
    from tiny_training import TINY, command  # in tests/cli

    folder = tmp_path_factory.mktemp("trained")
    keep_few_threads()  # which is set up before it is for the test: the bits depend on their number
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, "train", *TINY, "hydra.run.dir=run") == 0
    return folder


@pytest.fixture(scope="module")
def workplace(trained, tmp_path_factory):
    """A copy of it for the tests of one file."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("work") / "copy"))


@pytest.fixture
def work(workplace, monkeypatch):
    """That folder, as the current one."""
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture
def scripts(monkeypatch):
    """Imports a file of the benchmarks as it is when one of them is run."""
    folder, before = Path(__file__).parents[1] / "benchmarks", set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == folder:
            del sys.modules[name]


@pytest.fixture
def computed(monkeypatch):
    """The boxes that were predicted so far."""
    from mitoseg.inference import Predictor

    compute, boxes = Predictor.compute, []

    def count(self, greys, write):
        boxes.append(write)
        return compute(self, greys, write)

    monkeypatch.setattr(Predictor, "compute", count)
    return boxes
