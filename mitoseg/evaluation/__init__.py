"""Score two volumes: the numbers. Tables and figures, whose libraries are slow to load, are modules of their own."""

from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.score import BANDS, SLABS, evaluate, pool_evaluations
from mitoseg.evaluation.tally import Bootstrap, Evaluation

__all__ = ["BANDS", "SLABS", "Bootstrap", "Decision", "Evaluation", "decide", "evaluate", "pool_evaluations"]
