"""What is particular to Dask workers: certificates, schedulers, SLURM; test_engines.py has what all engines do."""

import gc
import logging
import os
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pieces
import psutil
import pytest
from test_engines import mapped

from mitoseg.engines import DaskEngine, EngineError, SlurmEngine
from mitoseg.engines import on_dask as module
from mitoseg.errors import UserError

pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


BEFORE = []
"""Addresses at which this process listened before there was an engine, for other tests."""


@pytest.fixture(scope="module")
def engine():
    BEFORE.extend(listening())
    with DaskEngine(2) as running:
        yield running


def listening():
    """Addresses at which this process and those it has started listen."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def test_only_this_machine_can_connect_and_only_with_the_certificate(engine):
    """Else any user of the machine, or of its network, could run code as its owner."""
    distributed = pytest.importorskip("distributed")
    addresses = [address for address in listening() if address not in BEFORE]
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    nannies = [nanny.address for nanny in engine._cluster.workers.values()]
    dask = [engine._cluster.scheduler_address, *engine._client.nthreads(), *nannies]
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    for address in dask:
        where = "127.0.0.1", int(address.removeprefix("tls://127.0.0.1:"))
        with socket.create_connection(where, timeout=9) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
            anybody.wrap_socket(connection).recv(1)
        addresses.remove(where)
    for security in (None, distributed.Security.temporary()):
        with pytest.raises((OSError, RuntimeError, TypeError)):
            distributed.Client(dask[0], timeout=2, security=security)
        gc.collect()  # closes the client that failed, which hangs if it happens while another starts
    assert len(addresses) == 3
    for _, port in addresses:  # of pages about the work
        for page in ("status", "info/main/workers.html", "metrics", "json/counts.json", "sysmon"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=9)


def test_a_scheduler_with_certificates(engine, tmp_path):
    files = {name: str(tmp_path / name) for name in ("ca_file", "cert", "key")}
    for name, path in files.items():
        Path(path).write_text(engine._cluster.security.get_tls_config_for_role("client")[name])
    words = {f"tls_{name}": path for name, path in files.items()}
    address = engine._cluster.scheduler_address
    with DaskEngine(scheduler=address, **words) as connected:
        assert mapped(connected, pieces.square, range(5)) == {n: n * n for n in range(5)}
    assert mapped(engine, pieces.square, range(5)) == {n: n * n for n in range(5)}
    with pytest.raises(UserError, match="this scheduler requires a certificate"):
        DaskEngine(scheduler=address, timeout=2).start()
    with pytest.raises(UserError, match=r"no such certificate or key: 'a.pem'"):
        DaskEngine(scheduler=address, **(words | {"tls_key": "a.pem"}))
    with pytest.raises(UserError, match="go together"):
        DaskEngine(scheduler=address, **(words | {"tls_ca_file": ""}))
    with pytest.raises(UserError, match=r"engine.scheduler, engine.tls_ca_file and engine.tls_cert go together"):
        DaskEngine(**words)


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
        "mitoseg.errors.importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    told = r"this needs a library: '{}'; run pip install \"mitoseg\[cluster\]\""
    with pytest.raises(UserError, match=told.format("distributed")):
        DaskEngine().start()
    with pytest.raises(UserError, match=told.format("dask-jobqueue")):
        SlurmEngine()._make_cluster()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(("timeout", value, "timeout is not a number of seconds") for value in (0, -1, "long", True)),
        *(("dashboard", value, r"engine.dashboard is not a port") for value in (-1, 1 << 16, "8787", True)),
    ],
)
def test_values_that_are_refused(key, value, words):
    with pytest.raises(UserError, match=words):
        DaskEngine(**{key: value})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_worker_killed_while_it_starts_is_replaced():
    def kill():
        while not (workers := [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]):
            time.sleep(0.01)
        time.sleep(0.5)
        workers[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with DaskEngine(2) as engine:
        thread.join()
        assert sorted(index for _, index in engine.ask(pieces.where)) == [0, 1]


def test_the_certificate_of_slurm_jobs_is_for_its_owner_and_goes_with_the_run(tmp_path):
    engine = SlurmEngine(shared_temp_directory=str(tmp_path))
    security = engine._shared_security()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert Path(security.tls_worker_key).parent == folder
    assert security.require_encryption
    engine.close()
    assert not folder.exists()
    with pytest.raises(UserError, match="cannot write the run's certificate"):
        SlurmEngine(shared_temp_directory=str(tmp_path / "none"))._shared_security()


def test_the_job_that_slurm_gets(tmp_path):
    pytest.importorskip("dask_jobqueue")
    words = {"prologue": ["module load cuda"], "shared_temp_directory": str(tmp_path)}
    engine = SlurmEngine(3, partition="gpu", cpus=8, memory="20GB", gpus=1, **words)
    lines = engine.script().splitlines()
    assert "#SBATCH -p gpu" in lines
    assert "#SBATCH --cpus-per-task=8" in lines
    assert "#SBATCH --gres=gpu:1" in lines
    assert "#SBATCH -t 04:00:00" in lines
    assert "module load cuda" in lines
    assert any(line.startswith("#SBATCH --mem=") for line in lines)
    assert "--nthreads 2" in lines[-1]
    assert "--memory-limit 0" in lines[-1]
    assert "--protocol tls:// --tls-ca-file" in lines[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="its sbatch is a shell script")
@pytest.mark.parametrize(
    ("script", "said"), [("echo Invalid account >&2; exit 1", "Invalid account"), (None, "sbatch")]
)
def test_what_slurm_says_against_a_job_is_said_at_once(tmp_path, monkeypatch, script, said):
    pytest.importorskip("dask_jobqueue")
    if script is not None:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = SlurmEngine(2, timeout=20, interface="lo", shared_temp_directory=str(tmp_path))
    with pytest.raises(UserError, match=f"SLURM rejected the job: .*{said}"), engine:
        pass
    assert not list(tmp_path.glob(".mitoseg*"))


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
    with SlurmEngine(1, timeout=90, memory="1GB", interface="lo", shared_temp_directory=str(tmp_path)) as engine:
        assert mapped(engine, pieces.square, range(20)) == {n: n * n for n in range(20)}
        ((pid, _),) = engine.ask(pieces.where)
        assert pid != os.getpid()
    job, *rest = log.read_text().splitlines()
    assert rest[-1] == f"scancel {job}"


@pytest.mark.slow
def test_a_part_that_kills_every_worker_is_given_up():
    with DaskEngine(2) as engine, pytest.raises(EngineError, match="3 Dask workers died over the same part"):
        engine.map(pieces.die, [7], lambda *_: None)


def test_nothing_is_left_of_its_logging():
    assert not [h for h in logging.getLogger().handlers if "distributed" in type(h).__module__]
