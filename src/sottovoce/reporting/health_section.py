"""Is the run well? What was looked at, or what was found and why; above it the picture that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sottovoce.core.findings import Finding
from sottovoce.metrics import percent
from sottovoce.reporting.health_figure import health_figure
from sottovoce.reporting.html import card, chip, section, text
from sottovoce.reporting.run_files import RunFiles
from sottovoce.runs.names import Event, Metric

_KINDS = {"error": "bad", "warning": "warn", "note": ""}
Pages = Mapping[str, Mapping[str, str]]
"""What is known of each code: texts by heading."""


def health_section(run: RunFiles, findings: Sequence[Finding], pages: Pages) -> str:
    """The section with `findings` in the order given: the cause first, then what is worth less."""
    figure = health_figure(run, findings)
    picture = card(f'<div class="wide">{figure}</div>') if figure else ""
    if not findings:
        words = f'<p class="verdict">{chip("healthy", "good")} Nothing was found. {text(looked_at(run))}</p>'
        return section("health", "Health", card(words), f'<div class="under">{picture}</div>' if picture else "")
    cards = [_finding(number, finding, pages) for number, finding in enumerate(findings, 1)]
    count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}, the most likely cause first"
    looked = f'<p class="facts under">{text(looked_at(run))}</p>'
    return section("health", "Health", picture, looked, f'<div class="stack">{"".join(cards)}</div>', extra=count)


def looked_at(run: RunFiles) -> str:
    """What there was to look at, in one line."""
    bad = sum(event["event"] in (Event.STEP_SKIPPED, Event.ROLLED_BACK) for event in run.events)
    parts = [f"Looked at {run.last_step:,} steps, {bad or 'none'} of them skipped"]
    norms = run.curves.get(Metric.GRADIENT_NORM, ([], []))[1]
    if norms:
        parts.append(f"gradient norm {statistics.median(norms):.3g} in the median, {max(norms):.3g} at most")
        if limit := run.setting("training.max_grad_norm"):
            above = sum(norm > limit for norm in norms) / len(norms)
            parts.append(f"{percent(above)} of its records above the clip limit of {limit:g}")
    return "; ".join(parts) + "."


def _finding(number: int, finding: Finding, pages: Pages) -> str:
    kind = _KINDS[finding.severity]
    when = "" if finding.step is None else f"<span>from step <b>{finding.step:,}</b></span>"
    head = (
        f'<div class="facts"><span class="number {kind}">{number}</span>{chip(finding.severity, kind)}'
        f"<code>{text(finding.code)}</code>{when}<span>support <b>{percent(finding.support)}</b></span>"
        f"<span>found by the <b>{text(finding.source)}</b></span></div>"
    )
    rows = {"Evidence": finding.evidence, "Fix": finding.fix, "What would tell": finding.tell_apart}
    body = "".join(f"<dt>{name}</dt><dd>{text(words)}</dd>" for name, words in rows.items() if words)
    parts = pages.get(finding.code, {})
    page = "".join(f"<h4>{text(heading)}</h4><p>{text(words)}</p>" for heading, words in parts.items())
    where = f'<p class="muted">The same page: <code>{text(finding.page)}</code></p>'
    more = f"<details><summary>About {text(finding.code)}</summary>{page}{where}</details>"
    title = f'<h3 class="cause">{text(finding.explanation)}</h3>'
    return card(head, title, f'<dl class="finding">{body}</dl>', more, kind=f"edge {kind}")
