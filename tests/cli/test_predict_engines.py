"""``predict`` on worker processes and on Dask: to the byte what one process computes, also when workers are killed."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from made_checkpoints import Padded, predict, prepare, save_checkpoint, tif

from mitoseg.inference.predictor import Predictor
from mitoseg.volumes import open_volume
from mitoseg.volumes.staging import StagedVolume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)
GREY[:, :, :5] = GREY[2] = GREY[4, 30:] = 0  # padding
COUNT = 3 * 3 * 3
FIXED = ("checkpoint=a.ckpt", "trust=true", "hydra.run.dir=run", "precision=fp32", "compile=false")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with a checkpoint and a volume; its exit code."""
    prepare(tmp_path, monkeypatch, GREY)
    return lambda *words: predict(monkeypatch, *FIXED, "input=in.tif", "tile=[2,16,16]", *words)


@pytest.fixture
def killing(monkeypatch):
    """Have one worker killed when some tiles are done."""
    take, seen = StagedVolume.take, []

    def kill(self, box, *rest):
        take(self, box, *rest)
        seen.append(box)
        if len(seen) == 4:
            children = psutil.Process().children(recursive=True)
            workers = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
            assert len(workers) == 2
            os.kill(workers[0].pid, signal.SIGKILL)

    monkeypatch.setattr(StagedVolume, "take", kill)
    return seen


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def check_same(name="out.zarr", other="one.zarr", count=COUNT):
    assert files(name) == files(other)
    assert len(files(name)) == count + 1
    assert not Path(f".{name}.unfinished").exists()


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(run, killing, capsys):
    assert run("output=one.zarr") == 0
    assert run("output=out.zarr", "devices=2") == 0
    check_same()
    assert len(killing) == len(set(killing)) == COUNT
    assert "a worker process was killed" in capsys.readouterr().err
    assert json.loads(Path("run/provenance.json").read_text())["chosen"]["tile"] == [2, 16, 16]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_two_dask_workers_of_which_one_is_killed(run, killing):
    pytest.importorskip("distributed")
    assert run("output=one.zarr") == 0
    assert run("output=out.zarr", "engine=dask", "workers=2") == 0
    check_same()
    assert len(killing) == len(set(killing)) == COUNT


@pytest.mark.slow
def test_dask_finishes_what_one_process_began(run, monkeypatch, capsys):
    """And a volume of another format is written by the process that was started."""
    pytest.importorskip("distributed")
    compute, seen = Predictor.compute, []

    def stop(*args):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return compute(*args)

    assert run("output=one.tif") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "compute", stop)
        assert run("output=out.tif") == 130
    assert run("output=out.tif", "engine=dask", "workers=2") == 0
    assert f"continuing: 5 of {COUNT} tiles are done" in capsys.readouterr().err
    assert Path("out.tif").read_bytes() == Path("one.tif").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["tta=flips"], ["method=strided"], ["normalize=volume", "save=mask"], ["blend"]])
def test_whatever_is_predicted(run, words):
    if words == ["blend"]:
        save_checkpoint("a.ckpt", Padded(1, 3), arguments={"in_channels": 1, "ndim": 3})
        words = ["memory=4GB"]  # its tile= is the network's; here one holds it all
    assert run("output=one.zarr", *words) == 0
    assert run("output=out.zarr", "devices=2", *words) == 0
    check_same(count=1 if words == ["memory=4GB"] else COUNT)


@pytest.mark.slow
def test_tiles_chosen_by_the_workers_memory_and_a_second_volume(run, monkeypatch):
    tif("b.tif", GREY[:5, ::-1])
    words = ["input=[in.tif,b.tif]", "output=out", "tile=null", "memory=4GB"]
    assert run(*words, "devices=2") == 0
    assert run(*words, "output=one") == 0
    for name in ("in", "b"):
        np.testing.assert_array_equal(open_volume(f"out/{name}.zarr").read(), open_volume(f"one/{name}.zarr").read())


@pytest.mark.slow
def test_a_bad_volume_on_workers_is_one_line(run, capsys):
    image = GREY.astype(np.float32)
    image[5, 30, 30] = np.nan
    tif("in.tif", image)
    assert run("output=out.zarr", "devices=2") == 1
    assert "error: the image holds NaN" in capsys.readouterr().err
    assert not Path("out.zarr").exists()


def test_no_scheduler(run, capsys):
    pytest.importorskip("distributed")
    words = ["engine=dask", "engine.timeout=1", "engine.scheduler=tcp://127.0.0.1:9"]
    assert run("output=out.zarr", *words) == 1
    told = capsys.readouterr().err
    assert "error: no Dask scheduler answers within 1 s: 'tcp://127.0.0.1:9'" in told
    assert "Traceback" not in told
    assert sorted(p.name for p in Path().iterdir()) == ["a.ckpt", "in.tif", "run"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("devices=0", "not a number of workers: 0"),
        ("workers=many", "the option takes other values: workers=many; give whole numbers"),
        ("devices=null", "the option takes other values: devices=null; give a value"),
        ("engine=cloud", "engine has no 'cloud'"),
    ],
)
def test_options(run, capsys, word, told):
    assert run("output=out.zarr", word) == 1
    assert told in capsys.readouterr().err
