"""Dask workers in SLURM jobs, which this process submits and ends."""

from __future__ import annotations

import sys
from typing import Any

from mitoseg.engines.base import LANES
from mitoseg.engines.on_dask import DaskEngine
from mitoseg.extras import import_extra


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
    ) -> None:
        super().__init__(workers, None, timeout)
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
            "job_script_prologue": list(prologue),
        }

    def script(self) -> str:
        """The job as it is submitted."""
        cluster = self._make_cluster(jobs=0)
        try:
            return str(cluster.job_script())
        finally:
            cluster.close()

    def _make_cluster(self, jobs: int | None = None) -> Any:  # noqa: ANN401 (Dask has no types)
        jobqueue = import_extra("dask_jobqueue", "dask-jobqueue", "cluster")
        return jobqueue.SLURMCluster(
            n_workers=self.workers if jobs is None else jobs,
            python=sys.executable,
            scheduler_options={"dashboard_address": ":0"},
            worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
            local_directory=None,
            **self.job,
        )

    def _expected(self) -> int:
        return 1
