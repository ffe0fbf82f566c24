"""Dask workers: processes of this machine, those of a scheduler that runs already, or SLURM jobs.

Whoever may talk to a Dask worker may run code as its owner. A cluster that is started here listens to this machine
alone, or talks to SLURM jobs over their network; either way nobody can join without the certificate of this run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mitoseg.engines.local import (
    DEATHS,
    LANES,
    MEMORY,
    Engine,
    EngineError,
    Item,
    Result,
    check_workers,
    interrupts_blocked,
    portable,
    set_worker_rank,
)
from mitoseg.errors import UserError, import_extra

log = logging.getLogger(__name__)
HERE = "127.0.0.1"
ROLES = ("client", "scheduler", "worker")
_LOOK = 1.0  # seconds after which it is looked whether there are workers
_AHEAD = 2  # items on their way for each lane, so that no worker waits for the scheduler


class DaskEngine(Engine):
    """Dask workers on this machine, or of a scheduler that runs already; see ``conf/engine/dask.yaml``."""

    def __init__(
        self,
        workers: int = 1,
        scheduler: str | None = None,
        timeout: float = 60.0,
        dashboard: int | None = None,
        tls_ca_file: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise UserError("the engine's timeout is not a number of seconds", timeout, "give a number above 0")
        if dashboard is not None and (type(dashboard) is not int or not 0 <= dashboard < 2**16):
            raise UserError("engine.dashboard is not a port", dashboard, "give a number such as 8787, or null")
        self.workers, self.scheduler = check_workers(workers), scheduler
        self.timeout, self.dashboard = timeout, dashboard
        self._expected = self.workers if scheduler is None else 1  # workers to wait for before the work begins
        if (tls_ca_file or tls_cert or tls_key) and not (tls_ca_file and tls_cert and scheduler):
            what = "engine.scheduler, engine.tls_ca_file and engine.tls_cert go together"
            raise UserError(what, None, "give all three, or none of the certificates")
        files = {"tls_ca_file": tls_ca_file, "tls_client_cert": tls_cert, "tls_client_key": tls_key or tls_cert}
        for path in filter(None, files.values()):
            if not os.path.isfile(path):
                raise UserError("no such certificate or key", path, "check the path")
        self.credentials = {name: os.path.abspath(path) for name, path in files.items() if path}
        self._cluster: Any = None
        self._client: Any = None
        self._ends_on_sigterm = False  # whether SIGTERM ends this process as an exception does
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """See `Engine.start`."""
        distributed = _distributed()
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it we say ourselves, in one line
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # jobs and files shall go as well
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            self._ends_on_sigterm = True
        if self.scheduler is None:
            self._cluster = self._start_cluster()
        security = distributed.Security(require_encryption=True, **self.credentials) if self.credentials else None
        encrypted = (security or distributed.Security()).get_connection_args("client").get("ssl_context")
        if str(self.scheduler).startswith("tls:") and encrypted is None:
            what = "this scheduler requires a certificate"
            raise UserError(what, self.scheduler, "give engine.tls_ca_file=, engine.tls_cert= and engine.tls_key=")
        try:
            self._client = distributed.Client(
                self.scheduler or self._cluster, timeout=self.timeout, set_as_default=False, security=security
            )
        except (OSError, TimeoutError, ValueError) as error:
            remedy = "check the address, and that dask scheduler runs there"
            if self.credentials:
                remedy += ", with certificates signed as engine.tls_cert is"
            raise UserError(f"no Dask scheduler answers within {self.timeout:g} s", self.scheduler, remedy) from error
        self._wait_for_workers()
        self._check_installed()

    def close(self) -> None:
        """See `Engine.close`."""
        if self._ends_on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._ends_on_sigterm = False
        client, cluster, folder = self._client, self._cluster, self._folder
        self._client = self._cluster = self._folder = None
        if client is not None:
            client.close()
        try:
            if cluster is not None:
                cluster.close()
        except AssertionError as error:  # distributed joins a worker that has no process id yet
            log.debug("closing the cluster: %s", error)
        finally:
            if folder is not None:
                folder.cleanup()

    def ask(self, function: Callable[[], Result]) -> list[Result]:
        """See `Engine.ask`."""
        return self._ask_each(self._result, _call, function)

    def _ask_each(self, get: Callable[[Any, str], Any], *call: Any) -> list[Any]:  # noqa: ANN401
        """Call a function once in each worker; what ``get`` makes of the futures and the workers' addresses."""
        answers: dict[str, Any] = {}  # by address, which one that takes a worker's place does not inherit
        deaths = 0
        while True:
            self._wait_for_workers()
            missing = [address for address in self._alive() if address not in answers]
            if not missing:
                return list(answers.values())
            submit = partial(self._client.submit, *call, pure=False)
            for address, future in [(address, submit(workers=[address])) for address in missing]:
                try:
                    answers[address] = get(future, address)
                except _WorkerGoneError:
                    deaths += 1
                    if deaths == DEATHS:
                        raise EngineError(f"{DEATHS} Dask workers died before the work began", None, MEMORY) from None
                    log.warning("a Dask worker died; another one takes its place")

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], on_done: Callable[[Item, Result], None]
    ) -> None:
        """See `Engine.map`."""
        coming = iter(items)
        done: SimpleQueue[Any] = SimpleQueue()
        pending: dict[Any, Item] = {}
        failure: Exception | None = None
        while True:
            room = _AHEAD * sum(self._alive().values()) - len(pending)  # workers may come and go
            for item in islice(coming, max(room, 0 if pending else 1)) if failure is None else ():
                future = self._client.submit(_call, function, item, pure=False)
                pending[future] = item
                future.add_done_callback(done.put)
            if not pending:
                break
            try:
                future = self._wait(lambda seconds: done.get(timeout=seconds))
                on_done(pending.pop(future), self._result(future))
            except EngineError:
                raise
            except Exception as error:  # what was begun shall end
                failure = failure or error
        if failure is not None:
            raise failure

    def _start_cluster(self) -> Any:  # noqa: ANN401 (Dask has no types)
        """Workers of our own, spared Ctrl-C, without Dask's web pages unless they are wanted."""
        dask = import_extra("dask", "distributed", "cluster")
        if self.dashboard is not None and importlib.util.find_spec("bokeh") is None:
            raise UserError("engine.dashboard needs a library", "bokeh", "run pip install bokeh, or leave it out")
        routes = ["distributed.scheduler.http.routes", "distributed.worker.http.routes"]  # of pages
        shown: dict[str, list[str]] = {key: [] for key in routes} if self.dashboard is None else {}
        with interrupts_blocked(), dask.config.set({"distributed.scheduler.allowed-failures": DEATHS - 1, **shown}):
            cluster = self._make_cluster()
        if self.dashboard is not None:
            log.info("Dask's dashboard is at %s", cluster.dashboard_link)
        return cluster

    def _make_cluster(self) -> Any:  # noqa: ANN401
        self._folder = tempfile.TemporaryDirectory(prefix="mitoseg-dask-", ignore_cleanup_errors=True)
        for _ in range(DEATHS):
            try:
                return _distributed().LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=LANES,
                    processes=True,
                    host=HERE,
                    security=_temporary_security(),
                    memory_limit=0,  # tiles are chosen by the memory there is; Dask counts in another way
                    dashboard_address=f"{HERE}:{self.dashboard or 0}",
                    scheduler_kwargs={"dashboard": self.dashboard is not None},
                    silence_logs=logging.CRITICAL,
                    local_directory=self._folder.name,
                )
            except RuntimeError as error:
                cause = error
        raise EngineError(f"the Dask workers do not start ({cause})", None, MEMORY) from cause

    def _wait_for_workers(self) -> None:
        end = time.monotonic() + self.timeout
        while (there := len(self._alive())) < self._expected:
            if time.monotonic() > end:
                what = f"{there} of {self._expected} Dask workers have connected within {self.timeout:g} s to"
                remedy = "start workers there, or give a longer engine.timeout="
                raise UserError(what, self.scheduler or "the scheduler", remedy)
            time.sleep(0.1)

    def _check_installed(self) -> None:
        """Have each worker import mitoseg: one that cannot would die of the first message that needs it."""

        def check(future: Any, address: str) -> None:  # noqa: ANN401
            error = self._wait(lambda seconds: future.exception(timeout=seconds), address)
            if error is not None:
                what = f"the Dask worker at {address} has no such mitoseg ({error})"
                raise UserError(what, None, 'install the same "mitoseg[cluster]" there')

        self._ask_each(check, importlib.import_module, __name__)

    def _alive(self) -> dict[str, int]:
        try:
            if self._client.status == "running":
                return dict(self._client.nthreads())
        except (OSError, TimeoutError, ValueError):
            pass
        raise EngineError("the Dask scheduler has gone", self.scheduler, "run the same command again")

    def _wait(self, get: Callable[[float], Any], address: str | None = None) -> Any:  # noqa: ANN401
        """What a function returns that waits for some seconds; it is called again as long as there is hope."""
        empty_since: float | None = None
        while True:
            try:
                return get(min(_LOOK, self.timeout))
            except (Empty, TimeoutError):
                alive = self._alive()
                if address is not None and address not in alive:
                    raise _WorkerGoneError from None
                now = time.monotonic()
                empty_since = None if alive else empty_since or now
                if empty_since is not None and now - empty_since >= self.timeout:
                    remedy = "start workers, and run the same command again"
                    raise EngineError("all Dask workers have gone from", self.scheduler or "here", remedy) from None

    def _result(self, future: Any, address: str | None = None) -> Any:  # noqa: ANN401
        """What a worker answered; an exception of the function is raised."""
        distributed = _distributed()
        try:
            fine, value = self._wait(lambda seconds: future.result(timeout=seconds), address)
        except distributed.KilledWorker as error:
            raise EngineError(f"{DEATHS} Dask workers died over the same part", str(error.task), MEMORY) from None
        except (distributed.CancelledError, OSError) as error:
            raise EngineError("the Dask scheduler or a worker has gone", self.scheduler, "run it again") from error
        if not fine:
            raise value
        return value


def _distributed() -> Any:  # noqa: ANN401
    return import_extra("distributed", "distributed", "cluster")


def _temporary_security() -> Any:  # noqa: ANN401
    """A certificate for one cluster alone, and its key."""
    import_extra("cryptography", "cryptography", "cluster")
    return _distributed().Security.temporary()


async def _submitted(cluster: Any) -> None:  # noqa: ANN401
    await cluster


class _WorkerGoneError(Exception):
    """The worker that alone was asked has gone."""


def _call(function: Callable[..., Result], *item: object) -> tuple[bool, Result | Exception]:
    """Whether a function succeeds, and its result or exception, which Dask would print with its own traceback."""
    from distributed import get_worker

    number = re.search(r"\d+$", str(get_worker().name))  # 0, 1, ... in a cluster that Dask has started
    set_worker_rank(int(number[0]) if number and len(number[0]) < 5 else 0)
    try:
        return True, function(*item)
    except BaseException as error:
        return False, portable(error)


class SlurmEngine(DaskEngine):
    """One worker in each job; the work begins when the first has come. See ``conf/engine/slurm.yaml``."""

    def __init__(
        self,
        workers: int = 1,
        timeout: float = 3600.0,
        partition: str | None = None,
        account: str | None = None,
        cpus: int = 4,
        memory: str = "32GB",
        walltime: str = "04:00:00",
        gpus: int = 0,
        interface: str | None = None,
        directives: tuple[str, ...] = (),
        prologue: tuple[str, ...] = (),
        shared_temp_directory: str = "~",
        dashboard: int | None = None,
    ) -> None:
        super().__init__(workers, None, timeout, dashboard)
        self._expected = 1
        self.shared = Path(shared_temp_directory).expanduser()
        quiet = ["export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'"]  # no pages about the work on the machines
        gpu = [f"--gres=gpu:{gpus}"] if gpus else []
        self.job: dict[str, Any] = {
            "queue": partition,
            "account": account,
            "cores": LANES,  # threads of the worker, not of what it computes
            "processes": 1,
            "job_cpu": cpus,
            "memory": memory,
            "walltime": walltime,
            "interface": interface,
            "job_extra_directives": [*gpu, *directives],
            "job_script_prologue": [*quiet, *prologue],
        }

    def script(self) -> str:
        """The job as it is submitted."""
        try:
            self._cluster = self._make_cluster(jobs=0)
            return str(self._cluster.job_script())
        finally:
            self.close()

    def _make_cluster(self, jobs: int | None = None) -> Any:  # noqa: ANN401 (Dask has no types)
        jobqueue = import_extra("dask_jobqueue", "dask-jobqueue", "cluster")
        cluster = jobqueue.SLURMCluster(
            python=sys.executable,
            security=self._shared_security(),
            scheduler_options={
                "dashboard": self.dashboard is not None,
                "dashboard_address": f"{HERE}:{self.dashboard or 0}",
            },
            worker_extra_args=["--memory-limit", "0", "--no-dashboard", "--dashboard-address", f"{HERE}:0"],
            local_directory=None,
            **self.job,
        )
        for _ in range(self.workers if jobs is None else jobs):
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            cluster.sync(_submitted, cluster)  # `scale` would leave what SLURM says to a log
        except (RuntimeError, OSError) as error:
            for job in cluster.workers.values():
                if job.job_id is None:  # else Dask waits for it to end
                    job.status = _distributed().Status.failed
            cluster.close()
            said = " ".join((str(error).partition("stderr:\n")[2] or str(error)).split())
            raise UserError("SLURM rejected the job", said, "check the options of engine=slurm, and sbatch") from error
        return cluster

    def _shared_security(self) -> Any:  # noqa: ANN401
        """A certificate for this run, in files that its jobs may read."""
        security = _temporary_security()
        try:
            self._folder = tempfile.TemporaryDirectory(prefix=".mitoseg-", dir=self.shared, ignore_cleanup_errors=True)
            files = {}
            for name, text in security.get_tls_config_for_role("worker").items():
                if text is not None:
                    files[name] = Path(self._folder.name, f"{name}.pem")
                    files[name].touch(0o600)
                    files[name].write_text(text, encoding="ascii")
        except OSError as error:
            what = f"cannot write the run's certificate ({error.strerror or error}) to"
            raise UserError(what, str(self.shared), "give a folder as engine.shared_temp_directory=") from error
        own = {f"tls_{role}_{name}": str(files[name]) for role in ROLES for name in ("cert", "key")}
        return type(security)(require_encryption=True, tls_ca_file=str(files["ca_file"]), **own)
