"""The HTML report of a run."""

from sottovoce.reporting.report import write_report

__all__ = ["write_report"]
