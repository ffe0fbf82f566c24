"""The report: one HTML file with slices, surfaces, measurements, scores and errors, to look at and to pass on.

page.py      what goes where, and the report of a prediction
markup.py    what a report is made of; packed data and small charts
pictures.py  slices and surfaces, made small while they are read
errors.py    where the result is wrong
tables.py    the sections of numbers
templates/   the page and its sections (Jinja2), where all text is escaped
static/      its style and its scripts
"""

from mitoseg.evaluation.report.markup import ReportOptions
from mitoseg.evaluation.report.page import foreground_of, report_prediction, write_report

__all__ = ["ReportOptions", "foreground_of", "report_prediction", "write_report"]
