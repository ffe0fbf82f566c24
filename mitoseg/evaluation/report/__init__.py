"""The report: one HTML file with slices, surfaces, measurements, scores and errors, to look at and to pass on.

``templates/`` holds the page and its sections (Jinja2), where all text is escaped, ``static/`` its style and scripts.
"""

from mitoseg.evaluation.report.markup import ReportOptions
from mitoseg.evaluation.report.page import report_prediction, write_report

__all__ = ["ReportOptions", "report_prediction", "write_report"]
