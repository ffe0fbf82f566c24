"""Score two volumes: numbers, a table, figures."""

from mitoseg.evaluation.comparison import comparison_figure
from mitoseg.evaluation.condition_figure import comparison_plot
from mitoseg.evaluation.conditions import Comparison, ComparisonOptions, compare_conditions
from mitoseg.evaluation.curves import save_curves
from mitoseg.evaluation.decision import Decision, decide
from mitoseg.evaluation.figures import overlay_figure, save_overlays
from mitoseg.evaluation.scene import save_scene
from mitoseg.evaluation.score import BANDS, SLABS, evaluate, pool_evaluations
from mitoseg.evaluation.table import boundary_table, score_table
from mitoseg.evaluation.tally import Bootstrap, Evaluation

__all__ = [
    "BANDS",
    "SLABS",
    "Bootstrap",
    "Comparison",
    "ComparisonOptions",
    "Decision",
    "Evaluation",
    "boundary_table",
    "compare_conditions",
    "comparison_figure",
    "comparison_plot",
    "decide",
    "evaluate",
    "overlay_figure",
    "pool_evaluations",
    "save_curves",
    "save_overlays",
    "save_scene",
    "score_table",
]
