"""Several volumes in one run of ``predict``: which they are, where results go, and what happens when some fail."""

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from filelock import FileLock
from made_checkpoints import interrupt_at, predict, prepare, write_volume
from made_checkpoints import tif as write_tif

from mitoseg.networks import checkpoint
from mitoseg.volumes import open_volume
from mitoseg.workflows import predict as module
from mitoseg.workflows.many import plan_rows, volumes_in

GREY = np.random.default_rng(0).integers(0, 255, (5, 24, 32), np.uint8)


def tif(path, image=GREY):
    return write_tif(path, image)


@pytest.fixture
def work(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def run(work, monkeypatch):
    return lambda *words: predict(monkeypatch, "checkpoint=a.ckpt", "trust=true", "hydra.run.dir=run", *words)


def table(folder="out"):
    with open(f"{folder}/summary.csv", encoding="utf-8", newline="") as file:
        return {row["input"]: row for row in csv.DictReader(file)}


def outputs(folder="out"):
    return sorted(p.name for p in Path(folder).iterdir())


def check(path, image):
    """A result is what one run over this volume alone gives."""
    result = open_volume(path)
    assert result.shape == image.shape
    np.testing.assert_array_equal(result.read(), open_volume(f"alone/{Path(path).stem}.zarr").read())


ODD = ["a, b.tif", "c [1]=#~.tif", "ä ß (2).tif"]


@pytest.mark.parametrize("how", ["list", "glob", "folder"])
def test_a_list_a_pattern_and_a_folder(run, how):
    for i, name in enumerate(ODD):
        tif(f"in/{name}", np.roll(GREY, i))
        assert run(f"input=in/{name}", f"output=alone/{Path(name).stem}.zarr") == 0
    listed = ",".join(f'"in/{name}"' if "," in name else f"in/{name}" for name in ODD)
    word = {"list": f"[{listed}]", "glob": "in/*.tif", "folder": "in"}[how]
    assert run(f"input={word}", "output=out") == 0
    assert outputs() == sorted([*(f"{Path(name).stem}.zarr" for name in ODD), "summary.csv"])
    rows = table()
    assert set(rows) == {f"in/{name}" for name in ODD}
    for i, name in enumerate(ODD):
        image = np.roll(GREY, i)
        check(f"out/{Path(name).stem}.zarr", image)
        row = rows[f"in/{name}"]
        assert (row["status"], row["voxels"], row["error"]) == ("done", str(image.size), "")
        mask = open_volume(row["output"]).read() >= 0.5
        assert float(row["foreground"]) == pytest.approx(mask.mean(), abs=1e-6)
        assert float(row["seconds"]) >= 0


def test_a_few_of_many_are_judged(run, monkeypatch, capsys):
    monkeypatch.setattr(module, "JUDGED", 2)
    for name in "abcd":
        tif(f"in/{name}.tif")
    assert run("input=in", "output=out", "expect=true") == 0
    lines = capsys.readouterr().out.splitlines()
    written = [i for i, line in enumerate(lines) if "voxels written to" in line]
    expected = [i for i, line in enumerate(lines) if "expected foreground JAC" in line]
    assert len(written) == 4
    assert [i in range(*pair) for i, pair in zip(expected, (written[:2], (written[3], len(lines))), strict=True)] == [
        True
    ] * 2


def test_one_failure_does_not_stop_the_rest_and_finished_ones_are_left_alone(run, computed, capsys):
    for name in "abc":
        tif(f"in/{name}.tif", GREY)
    tif("in/b.tif", np.where(np.indices(GREY.shape).sum(0) == 20, np.nan, GREY).astype(np.float32))
    Path("in/d.h5").write_text("no volume")
    assert run("input=in", "output=out", "suffix=.tif", "save=mask") == 1
    told = capsys.readouterr().err
    line = "error: 2 of 4 volumes have failed: 'in/b.tif, in/d.h5'; see out/summary.csv for the reasons"
    assert line in told
    assert "Traceback" not in told
    assert outputs() == ["a.tif", "c.tif", "summary.csv"]
    rows = table()
    assert [rows[f"in/{n}"]["status"] for n in ("a.tif", "b.tif", "c.tif", "d.h5")] == ["done", "failed"] * 2
    assert rows["in/b.tif"]["error"].startswith("the image holds NaN")
    assert "cannot be read" in rows["in/d.h5"]["error"]
    before = {name: Path(f"out/{name}").stat().st_mtime_ns for name in ("a.tif", "c.tif")}
    tif("in/b.tif", GREY[::-1])
    Path("in/d.h5").unlink()
    computed.clear()
    assert run("input=in", "output=out", "suffix=.tif", "save=mask") == 0
    assert len(computed) == 1
    assert {name: Path(f"out/{name}").stat().st_mtime_ns for name in before} == before
    assert {row["status"] for row in table().values()} == {"done"}
    assert table()["in/a.tif"] == rows["in/a.tif"]


@pytest.mark.parametrize("word", ["postprocess=clean", "labelling.connectivity=26", "tta=flips"])
def test_a_changed_option_is_told_and_nothing_is_forgotten(run, computed, capsys, word):
    for name in "ab":
        tif(f"in/{name}.tif")
    words = ["input=in", "output=out", "save=instances"]
    assert run(*words) == 0
    assert run(*words, word) == 1
    told = capsys.readouterr().err
    assert "2 of 2 volumes have failed" in told
    errors = [row["error"] for row in table().values()]
    assert all(f"the output is that of another command ({word.split('=')[0]}" in error for error in errors)
    assert all("is now" in error for error in errors)
    computed.clear()
    assert run(*words) == 0  # the first command again
    assert computed == []
    assert {row["status"] for row in table().values()} == {"done"}
    assert run(*words, word, "overwrite=true") == 0
    assert len(computed) >= 2


def test_a_changed_input_is_not_taken_for_finished(run, capsys):
    tif("in/a.tif")
    tif("in/b.tif")
    assert run("input=in", "output=out") == 0
    tif("in/a.tif", GREY[::-1])
    os.utime("in/a.tif", (1, 1))
    before = open_volume("out/b.zarr").read()
    assert run("input=in", "output=out") == 1
    assert [row["status"] for row in table().values()] == ["failed", "done"]
    assert "input_files was" in table()["in/a.tif"]["error"]
    assert run("input=in", "output=out", "overwrite=true") == 0
    np.testing.assert_array_equal(open_volume("out/b.zarr").read(), before)
    np.testing.assert_array_equal(open_volume("out/a.zarr").read(), before[::-1])


@pytest.mark.parametrize(("function", "call"), [("_foreground", 1), ("write_rows", 2)])
def test_stopped_when_a_volume_has_just_been_written(run, computed, monkeypatch, function, call):
    for name in "ab":
        tif(f"in/{name}.tif")
    original, calls = getattr(module, function), []

    def interrupted(*args):
        calls.append(original(*args))
        if len(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, interrupted)
        assert run("input=in", "output=out") == 130
    assert len(calls) >= call
    computed.clear()
    assert run("input=in", "output=out") == 0
    assert len(computed) == 1
    assert outputs() == ["a.zarr", "b.zarr", "summary.csv"]
    assert all(row["foreground"] for row in table().values())


def test_interrupted_it_goes_on(run, computed, monkeypatch):
    for name in "abc":
        tif(f"in/{name}.tif")
    words = ["input=in", "output=out", "tile=[1,24,32]"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        assert run(*words) == 130
    assert [row["status"] for row in table().values()] == ["done", "waiting", "waiting"]
    computed.clear()
    assert run(*words) == 0
    assert len(computed) == 4 + 5  # one tile of b is there


def test_a_run_over_some_keeps_the_rows_of_the_others(run, computed):
    for name in "ab":
        tif(f"in/{name}.tif")
    assert run("input=in", "output=out") == 0
    before = table()
    assert run("input=[in/a.tif]", "output=out") == 0
    assert table() == before


def test_a_copied_folder_of_results_speaks_of_itself(run, work, computed):
    """Its table was written where it was copied from."""
    tif("in/a.tif"), tif("in/b.tif")
    assert run("input=in", "output=out") == 0
    shutil.copytree("out", "copy/out")
    shutil.rmtree("copy/out/a.zarr")
    computed.clear()
    assert run("input=in", "output=copy/out") == 0
    assert computed
    assert outputs("copy/out") == ["a.zarr", "b.zarr", "summary.csv"]
    assert {row["output"] for row in table("copy/out").values()} == {"copy/out/a.zarr", "copy/out/b.zarr"}


def test_what_was_refused_once_is_still_known(run, computed):
    tif("in/a.tif"), tif("in/b.tif")
    assert run("input=in", "output=out") == 0
    assert run("input=in", "output=out", "threshold=0.9") == 1
    assert run("input=in", "output=out", "suffix=.tif") == 0
    computed.clear()
    assert run("input=in", "output=out") == 0
    assert not computed


def test_a_table_that_is_no_table_is_written_anew(run):
    tif("in/a.tif")
    Path("out").mkdir()
    heads = "input,output,status,voxels,seconds,foreground,error,command"
    Path("out/summary.csv").write_text(f"{heads}\n{'x' * 200_000}\n")
    assert run("input=in/[a].tif", "output=out") == 0
    assert table()["in/a.tif"]["status"] == "done"
    written = Path("out/summary.csv").read_text(encoding="utf-8")
    Path("out/summary.csv").write_text(written.replace('}"', ']"'), encoding="utf-8")
    assert run("input=in/[a].tif", "output=out", "overwrite=true") == 0


def test_brackets_in_a_name_are_no_markup(run):
    tif("in/a.tif")
    assert run("input=in/[a].tif", "output=out[/b]") == 0
    assert run("input=in/a.tif", "output=out[/c].tif") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_names_that_are_no_utf_8(run, computed):
    odd = os.fsdecode(b"in/\xe9.tif")
    shutil.move(tif("in/b.tif"), odd)
    tif("in/a.tif")
    for _ in range(2):
        assert run("input=in", "output=out") == 0
        assert outputs() == sorted(["a.zarr", os.fsdecode(b"\xe9.zarr"), "summary.csv"])
        tiles = len(computed)
    assert len(computed) == tiles
    assert run(f"input={odd}", f"output={odd}", "overwrite=true", "hydra.run.dir=other") == 1
    assert run(f"input={odd}", "output=alone.tif") == 0


def test_the_model_is_loaded_once(run, monkeypatch):
    for name in "abc":
        tif(f"in/{name}.tif")
    read, seen = checkpoint.read_checkpoint, []
    monkeypatch.setattr(checkpoint, "read_checkpoint", lambda path: (seen.append(path), read(path))[1])
    assert run("input=in", "output=out") == 0
    assert len(seen) == 1


REFUSED = {
    "two of one name": (["input=[x/a.tif,y/A.tif]", "output=out"], "two volumes would be written to out/A.zarr"),
    "twice the same": (["input=[x/a.tif,x/a.tif]", "output=out"], "two volumes would be written to"),
    "a file": (["input=x", "output=out.tif"], "several volumes need a folder for their results: 'out.tif'"),
    "a dataset": (["input=x", "output=out.h5:/a"], "several volumes need a folder"),
    "no folder": (["input=x", "output=note"], "the output of several volumes is not a folder: 'note'"),
    "nothing matches": (["input=x/*.h5", "output=out"], "no file or folder matches: 'x/*.h5'"),
    "among the inputs": (["input=x", "output=x"], "the output folder is in, or is, the folder of inputs"),
    "below the inputs": (["input=x", "output=x/out"], "the output folder is in, or is, the folder of inputs"),
    "matches": (["input=x/*", "output=x/out"], "matches the pattern of the inputs: 'x/*'"),
    "suffix": (["input=x", "output=out", "suffix=.png"], "unknown kind of output: 'x.png'"),
    "path": (["input=[x/a.tif,x/b.tif]", "output=out", "suffix=../../c.tif"], "begins with a dot and is not a path"),
    "no dot": (["input=x", "output=out", "suffix=tif"], "unknown kind of output: 'tif'"),
    "onto itself": (["input=[x/a.tif]", "output=x", "suffix=.tif"], "the output is the input itself: 'x/a.tif'"),
    "nothing": (["input=[]", "output=out"], "input has no value"),
    "numbers": (["input=[1,{a:2}]", "output=out"], "no such file"),
    "both": (["input=both", "output=out"], "the folder holds 1 single slices beside 1 volumes, such as: 'b.tif'"),
    "empty": (["input=empty", "output=out"], "the folder holds no volume: 'empty'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(run, work, computed, capsys, case):
    for path in ("x/a.tif", "y/A.tif", "both/b.tif"):
        tif(path)
    tif("both/1.tif", GREY[0])
    Path("empty").mkdir()
    Path("note").touch()
    before = sorted(work.rglob("*"))
    words, told = REFUSED[case]
    assert run(*words) == 1
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert computed == []
    if case != "numbers":
        assert sorted(p for p in work.rglob("*") if "run" not in p.parts) == before


def test_two_runs_into_one_folder(run, capsys):
    tif("in/a.tif")
    Path("out").mkdir()
    with FileLock("out/.lock"):
        assert run("input=in", "output=out") == 1
    assert "another process is writing into this folder: 'out'; wait for it" in capsys.readouterr().err


class TestFolders:
    def test_slices_are_one_volume(self, tmp_path):
        for z, image in enumerate(GREY):
            tif(tmp_path / f"{z}.tif", image)
        (tmp_path / "thumbs").mkdir()
        tif(tmp_path / "thumbs" / "0.tif", GREY[0])
        assert volumes_in(tmp_path) is None
        assert plan_rows(str(tmp_path), "out.tif", ".zarr") is None

    def test_whatever_else_is_in_it_is_a_volume(self, tmp_path):
        tif(tmp_path / "a10.tif")
        tif(tmp_path / "a9.tif")
        tif(tmp_path / "slices" / "0.tif", GREY[0])
        for name in ("b.h5", "c.mrc"):
            write_volume(tmp_path / name, GREY)
        zarr.create_array(store=tmp_path / "d.zarr", shape=GREY.shape, dtype="u1")
        (tmp_path / "notes.txt").touch()
        (tmp_path / ".hidden.tif").touch()
        (tmp_path / "nothing").mkdir()
        names = [Path(path).name for path in volumes_in(tmp_path)]
        assert names == ["a9.tif", "a10.tif", "b.h5", "c.mrc", "d.zarr", "slices"]

    def test_a_zarr_is_one(self, tmp_path):
        zarr.create_array(store=tmp_path / "d.zarr", shape=GREY.shape, dtype="u1")
        assert plan_rows(str(tmp_path / "d.zarr"), "out.tif", ".zarr") is None

    def test_an_imagej_stack_of_one_page_is_a_stack(self, tmp_path):
        write_volume(tmp_path / "a.tif", GREY)
        assert volumes_in(tmp_path) == [str(tmp_path / "a.tif")]

    def test_a_file_whose_name_looks_like_a_pattern(self, tmp_path):
        assert plan_rows(tif(tmp_path / "a[1]*.tif"), "out.tif", ".zarr") is None

    def test_a_pattern_that_is_a_name_with_brackets(self, tmp_path):
        assert plan_rows(str(tmp_path / "a[1].tif"), "out.tif", ".zarr") is None  # and no such file, later
        tif(tmp_path / "a1.tif")
        assert [job.input for job in plan_rows(str(tmp_path / "a[1].tif"), "out", ".tif")] == [
            str(tmp_path / "a1.tif")
        ]


def test_a_path_that_omegaconf_would_resolve(run):
    tif("in/${x}.tif")
    assert run("input=in", "output=out") == 0
    assert Path("out/${x}.zarr").is_dir()
