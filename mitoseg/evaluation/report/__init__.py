"""The report: one HTML file with slices, surfaces, measurements, scores and errors, to look at and to pass on.

page.py      what goes where                 options.py   what a report is made of
markup.py    escaped HTML, packed data       reducing.py  slices and volumes made small while they are read
errors.py    where the result is wrong       objects.py    what is known of instances without measuring
charts.py    small charts as SVG             static/      the page, its style and its scripts
commands.py  the report of a command
headline.py slices.py scene.py distributions.py table.py scoring.py curves.py gallery.py origin.py   one section each
"""

from mitoseg.evaluation.report.markup import ReportOptions, foreground_of
from mitoseg.evaluation.report.page import report_evaluation, report_measurement, report_prediction, write_report

__all__ = [
    "ReportOptions",
    "foreground_of",
    "report_evaluation",
    "report_measurement",
    "report_prediction",
    "write_report",
]
