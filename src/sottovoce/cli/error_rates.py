"""The error rates of an evaluation, as a terminal shows them."""

from __future__ import annotations

from sottovoce.evaluation.scoring import METRICS, Evaluation
from sottovoce.metrics import percent


def summary(evaluation: Evaluation) -> str:
    """One line: each rate with its interval."""
    overall, parts = evaluation.overall, []
    for metric in METRICS:
        if metric in overall.rates:
            low, high = overall.ci95.get(metric, (None, None))
            interval = f" [{percent(low)}, {percent(high)}]" if low is not None else ""
            parts.append(f"{metric.upper()} {overall.rates[metric].percent()}{interval}")
    return f"{evaluation.split} ({overall.num_trials} trials, {evaluation.decoder}): " + "  ".join(parts)


def table(evaluation: Evaluation) -> str:
    """The summary, then a line a group, then the notes."""
    lines = [summary(evaluation), ""]
    for kind, groups in evaluation.by_group.items():
        lines.append(f"{kind:<20}{'trials':>8}" + "".join(f"{metric.upper():>10}" for metric in METRICS))
        for name, metrics in groups.items():
            cells = (metrics.rates[m].percent() if m in metrics.rates else "–" for m in METRICS)
            lines.append(f"{name:<20}{metrics.num_trials:>8}" + "".join(f"{cell:>10}" for cell in cells))
        lines.append("")
    blank, empty = evaluation.overall.blank.percent(), evaluation.overall.empty.percent()
    lines.append(f"blank frames {blank}, empty hypotheses {empty}")
    return "\n".join([*lines, *(f"note: {note}" for note in evaluation.notes)])
