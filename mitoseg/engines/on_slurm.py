"""Dask workers in SLURM jobs, which this process submits and ends.

They and this process talk over the cluster's network, encrypted, with a certificate for this run alone: it lies in a
folder that only its owner may read, and goes with the run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from mitoseg.engines.base import LANES
from mitoseg.engines.on_dask import HERE, DaskEngine
from mitoseg.errors import UserError
from mitoseg.extras import import_extra

ROLES = ("client", "scheduler", "worker")


class SlurmEngine(DaskEngine):
    """One worker in each job; the work begins when the first has come.

    Args:
        workers: Jobs.
        timeout: Seconds to wait for the first of them in the queue, and for another one when all have gone.
        partition: As ``sinfo`` lists them; None: the cluster's default.
        account: Who pays; None: the user's own.
        cpus: Cores of a job.
        memory: Of a job, such as ``32GB``.
        walltime: Of a job; what it has not finished by then others do.
        gpus: Of a job.
        interface: Network interface that jobs reach this process by, such as ``ib0``.
        directives: Further lines for ``#SBATCH``.
        prologue: Lines of shell before the worker starts, such as ``module load cuda``.
        shared_temp_directory: Folder that this process and all jobs see under the same path, for the certificate.
        dashboard: As `DaskEngine`.

    Raises:
        UserError: A value is out of range.
    """

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
        return jobqueue.SLURMCluster(
            n_workers=self.workers if jobs is None else jobs,
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

    def _shared_security(self) -> Any:  # noqa: ANN401
        """A certificate for this run, in files that its jobs may read.

        Raises:
            UserError: The folder for them cannot be written.
        """
        security = self._temporary_security()
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

    def _expected(self) -> int:
        return 1
