"""Where independent pieces of work are done: in this process, in several, or on several machines.

    in this process      function(item), function(item), ...
    worker processes     items are dealt out as workers get free; a worker that dies is replaced, its items done again
    Dask workers         the same, on any machine that has joined the cluster

What is mapped must be picklable, and the result must not depend on where or in which order items are done.
"""

from mitoseg.engines.base import LANES, Engine, EngineError, Prepared, one_at_a_time, worker_rank
from mitoseg.engines.local import LocalEngine
from mitoseg.engines.on_dask import DaskEngine, SlurmEngine

__all__ = [
    "LANES",
    "DaskEngine",
    "Engine",
    "EngineError",
    "LocalEngine",
    "Prepared",
    "SlurmEngine",
    "one_at_a_time",
    "worker_rank",
]
