"""Edit distance, error rates as counts, confusions and bootstrap intervals."""

from sottovoce.metrics.bootstrap import bootstrap_difference, bootstrap_interval
from sottovoce.metrics.error_rates import ErrorCounts, Rate, aligned, confusion_counts, error_counts, percent

__all__ = [
    "ErrorCounts",
    "Rate",
    "aligned",
    "bootstrap_difference",
    "bootstrap_interval",
    "confusion_counts",
    "error_counts",
    "percent",
]
