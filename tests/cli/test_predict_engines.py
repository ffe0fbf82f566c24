"""``predict`` on worker processes and on Dask: to the byte what one process computes, also when workers are killed.

And what is asked of workers before the work: what they are, and whether they see what we see.
"""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from made_checkpoints import Padded, interrupt_at, predict, prepare, save_checkpoint, tif

from mitoseg.errors import UserError
from mitoseg.volumes import open_volume
from mitoseg.volumes.staging import StagedVolume
from mitoseg.workflows.session import check_shared_storage, compare_workers, find_files, worker_info

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
    assert run("output=one.tif") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
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


class Elsewhere:
    """An engine whose worker sees other files: something is changed while it looks, and changed back."""

    in_process = False

    def __init__(self, change=lambda: None, undo=lambda: None):
        self.change, self.undo = change, undo

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def ask(self, function):
        self.change()
        try:
            return [function(), function()]
        finally:
            self.undo()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "in.tif").write_bytes(b"image")
    return tmp_path


def check(place, engine, patience=0.05):
    check_shared_storage(engine, {"input": place / "in.tif"}, place / "stage", patience)


def test_all_is_seen_and_nothing_is_left(place):
    check(place, Elsewhere())
    assert list((place / "stage").iterdir()) == []


def test_a_worker_does_not_see_the_input_or_another_one(place):
    image = place / "in.tif"
    engine = Elsewhere(lambda: image.rename(place / "x"), lambda: (place / "x").rename(image))
    with pytest.raises(UserError, match=r"a worker on .* does not see the input: .*in\.tif'; put it on storage"):
        check(place, engine)
    engine = Elsewhere(lambda: image.write_bytes(b"another"), lambda: image.write_bytes(b"image"))
    with pytest.raises(UserError, match="sees a different input"):
        check(place, engine)


def moved(place):
    stage = place / "stage"

    def away():
        stage.rename(place / "ours")
        stage.mkdir()

    def back():
        stage.rename(place / "theirs")
        (place / "ours").rename(stage)

    return away, back


def test_a_worker_does_not_see_the_stage(place, monkeypatch):
    monkeypatch.setattr("mitoseg.workflows.session.wait_for", lambda file, patience: None)
    with pytest.raises(UserError, match=r"does not see the output folder: .*stage'; put it on storage"):
        check(place, Elsewhere(*moved(place)))
    assert list((place / "stage").iterdir()) == []


def test_what_a_worker_writes_is_not_seen_here(place):
    stage = place / "stage"

    def take_away():
        for path in stage.glob("token.*.*"):
            path.unlink()

    what = r"a worker on .* writes beside the output do not appear here: .*stage"
    with pytest.raises(UserError, match=what):
        check(place, Elsewhere(undo=take_away))


def test_a_worker_may_not_write(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    text = "abc"
    (place / "stage" / "token").write_text(text)
    monkeypatch.setattr(Path, "write_text", refuse)
    _, answer = find_files({}, place / "stage" / "token", text)
    assert "cannot write (Permission denied)" in str(answer)


@pytest.mark.parametrize(("lacks", "what"), [("a.ckpt", "checkpoint"), ("in.tif", "input")])
def test_predict_on_a_machine_that_does_not_share_the_storage(run, monkeypatch, capsys, lacks, what):
    engine = Elsewhere(lambda: Path(lacks).rename("away"), lambda: Path("away").rename(lacks))
    monkeypatch.setattr("mitoseg.workflows.predict.make_engine", lambda cfg: engine)
    assert run("output=out.zarr") == 1
    told = rf"error: a worker on \S+ does not see the {what}: '.*{lacks}'; put it on storage that all machines share"
    assert re.search(told, capsys.readouterr().err)
    assert sorted(p.name for p in Path().iterdir()) == ["a.ckpt", "in.tif", "run"]


FACTS = replace(worker_info(), machine="a", cores=8, devices=("cpu", "cuda"), bf16=("cuda",))


@pytest.mark.parametrize(
    ("workers", "accelerator", "team"),
    [
        ([FACTS], "auto", ("cuda", True, 8, 1)),
        ([FACTS], "gpu", ("cuda", True, 8, 1)),
        ([FACTS, FACTS], "cpu", ("cpu", False, 4, 2)),
        ([FACTS, replace(FACTS, machine="b", devices=("cpu",), bf16=())], "auto", ("cpu", False, 8, 1)),
        ([FACTS, FACTS, replace(FACTS, machine="b", cores=3)], "auto", ("cuda", True, 3, 2)),
        ([FACTS, replace(FACTS, machine="b", bf16=())], "auto", ("cuda", False, 8, 1)),
        ([replace(FACTS, cores=1)] * 3, "auto", ("cuda", True, 1, 3)),
    ],
)
def test_what_all_have_in_common(workers, accelerator, team):
    found = compare_workers(workers, accelerator)
    assert (found.device, found.bf16, found.threads, found.neighbours) == team


def test_workers_that_do_not_fit():
    with pytest.raises(UserError, match=r"a worker on b has other versions .*'0\.0'.*install the same everywhere"):
        compare_workers([FACTS, replace(FACTS, machine="b", versions=("0.0", "1.0"))], "auto")
    lacks = "1 of 2 workers lack the accelerator cuda, among them one on: 'b'; use accelerator=auto"
    with pytest.raises(UserError, match=lacks):
        compare_workers([FACTS, replace(FACTS, machine="b", devices=("cpu",))], "cuda")
    with pytest.raises(UserError, match="no such accelerator here: 'tpu'"):
        compare_workers([FACTS], "tpu")
