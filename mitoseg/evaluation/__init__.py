"""Score two volumes: numbers, a table, figures."""

from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.figures import overlay_figure, save_overlays
from mitoseg.evaluation.score import BANDS, evaluate, pool_evaluations
from mitoseg.evaluation.table import boundary_table, score_table

__all__ = [
    "BANDS",
    "Decision",
    "boundary_table",
    "decide",
    "evaluate",
    "overlay_figure",
    "pool_evaluations",
    "save_overlays",
    "score_table",
]
