"""Where independent pieces of work are done: in this process, in several, or by Dask on several machines.

What is mapped must be picklable, and the result must not depend on where or in which order items are done.
"""

from mitoseg.engines.local import LANES, Engine, EngineError, LocalEngine, Prepared, one_at_a_time, worker_rank
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
