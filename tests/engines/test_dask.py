"""Dask workers as an engine, real processes; some of them are killed."""

import logging
import os
import socket
import sys
from pathlib import Path

import pieces
import pytest
from test_local import mapped

from mitoseg.engines import DaskEngine, EngineError, Prepared, SlurmEngine
from mitoseg.engines import on_dask as module
from mitoseg.errors import UserError

pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def engine():
    with DaskEngine(2) as running:
        yield running


def test_every_item_is_done_once_by_workers_that_are_other_processes(engine):
    assert mapped(engine, pieces.square, range(40)) == {n: n * n for n in range(40)}
    places = engine.ask(pieces.where)
    assert sorted(index for _, index in places) == [0, 1]
    assert len({pid for pid, _ in places} - {os.getpid()}) == 2
    assert mapped(engine, pieces.square, []) == {}


def test_an_error_of_the_function_ends_the_run_and_the_engine_goes_on(engine):
    done = []
    with pytest.raises(UserError, match="no such number: 3; choose another"):
        engine.map(pieces.refuse_three, range(3000), lambda number, _: done.append(number))
    assert len(done) < 1500
    assert mapped(engine, pieces.square, range(5)) == {n: n * n for n in range(5)}


def test_a_prepared_function_is_made_once_in_each_worker(engine, tmp_path):
    assert mapped(engine, Prepared(pieces.Making(tmp_path)), range(20)) == {n: n * n for n in range(20)}
    made = [path.name.split(".")[0] for path in tmp_path.iterdir()]
    assert len(made) == len(set(made)) <= 2


def test_what_a_killed_worker_had_is_done_by_another(engine, tmp_path):
    found = mapped(engine, pieces.KillOnce(tmp_path, 5), range(20))
    assert sorted(found) == list(range(20))
    assert (tmp_path / "killed").exists()


def test_a_worker_without_mitoseg(engine, monkeypatch):
    monkeypatch.setattr(module, "__name__", "mitoseg.engines_of_another_version")
    with pytest.raises(UserError, match=r"has no such mitoseg \(No module named .*; install the same"):
        engine._check_installed()


def test_nobody_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Dask scheduler answers within 1 s: '{address}'; check the address"):
            DaskEngine(scheduler=address, timeout=1).start()


def test_an_address_that_is_none():
    with pytest.raises(UserError, match="no Dask scheduler answers"):
        DaskEngine(scheduler="nowhere", timeout=1).start()


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(
        "mitoseg.extras.importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    told = r"this needs a library: '{}'; run pip install \"mitoseg\[cluster\]\""
    with pytest.raises(UserError, match=told.format("distributed")):
        DaskEngine().start()
    with pytest.raises(UserError, match=told.format("dask-jobqueue")):
        SlurmEngine()._make_cluster()


@pytest.mark.parametrize("timeout", [0, -1, "long", True])
def test_a_timeout(timeout):
    with pytest.raises(UserError, match="timeout is not a number of seconds"):
        DaskEngine(timeout=timeout)


def test_the_job_that_slurm_gets():
    pytest.importorskip("dask_jobqueue")
    engine = SlurmEngine(3, partition="gpu", cpus=8, memory="20GB", gpus=1, prologue=["module load cuda"])
    lines = engine.script().splitlines()
    assert "#SBATCH -p gpu" in lines
    assert "#SBATCH --cpus-per-task=8" in lines
    assert "#SBATCH --gres=gpu:1" in lines
    assert "#SBATCH -t 04:00:00" in lines
    assert "module load cuda" in lines
    assert any(line.startswith("#SBATCH --mem=") for line in lines)
    assert "--nthreads 2" in lines[-1]
    assert "--memory-limit 0" in lines[-1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its sbatch is a shell script")
def test_jobs_of_a_slurm_that_runs_them_at_once(tmp_path, monkeypatch):
    """All but the queue: the script is submitted, its worker joins, works, and is cancelled."""
    pytest.importorskip("dask_jobqueue")
    log = tmp_path / "log"
    start = f'cp "$1" "{log}.sh"; setsid bash "{log}.sh" > "{log}.out" 2>&1 &'
    scripts = {
        "sbatch": f'{start}\necho "Submitted batch job $!"; echo $! >> "{log}"',
        "scancel": f'echo "scancel $*" >> "{log}"; kill -- "-$1"',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    folder = Path(pieces.__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, folder.parents[1]))))
    monkeypatch.chdir(tmp_path)
    with SlurmEngine(1, timeout=90, memory="1GB", interface="lo") as engine:
        assert mapped(engine, pieces.square, range(20)) == {n: n * n for n in range(20)}
        ((pid, _),) = engine.ask(pieces.where)
        assert pid != os.getpid()
    job, *rest = log.read_text().splitlines()
    assert rest[-1] == f"scancel {job}"


@pytest.mark.slow
def test_a_part_that_kills_every_worker_is_given_up():
    with DaskEngine(2) as engine, pytest.raises(EngineError, match="several Dask workers died over the same part"):
        engine.map(pieces.die, [7], lambda *_: None)


def test_nothing_is_left_of_its_logging():
    assert not [h for h in logging.getLogger().handlers if "distributed" in type(h).__module__]
