"""Score two volumes: the numbers. Tables and figures, whose libraries are slow to load, are modules of their own."""

from mitoseg.evaluation.score import BANDS, SLABS, Bootstrap, Evaluation, evaluate, pool_evaluations
from mitoseg.volumes.predicted import Decision, decide

__all__ = ["BANDS", "SLABS", "Bootstrap", "Decision", "Evaluation", "decide", "evaluate", "pool_evaluations"]
