"""The report: one HTML file with slices, surfaces, measurements, scores and errors, to look at and to pass on.

page.py      what goes where                 options.py   what a report is made of
markup.py    escaped HTML, packed data       reducing.py  slices and volumes made small while they are read
slices.py, scene.py, distributions.py, table.py, headline.py, curves.py, gallery.py, origin.py   one section each
commands.py  the report of a command         static/      the page, its style and its scripts
"""

from mitoseg.evaluation.report.commands import report_evaluation, report_measurement, report_prediction
from mitoseg.evaluation.report.options import ReportOptions, foreground_of
from mitoseg.evaluation.report.page import write_report

__all__ = [
    "ReportOptions",
    "foreground_of",
    "report_evaluation",
    "report_measurement",
    "report_prediction",
    "write_report",
]
