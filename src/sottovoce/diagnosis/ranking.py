"""The order of findings: the cause before what follows from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from sottovoce.core.findings import SEVERITIES, Finding
from sottovoce.diagnosis.causes import cause

PLAIN_SYMPTOMS: Final = frozenset(
    {"nonfinite_loss", "nonfinite_gradient", "gradient_spike", "not_learnt", "record_damaged"}
)
"""What was seen; any cause that explains it comes first."""
NOTICED_STEPS: Final = 50
"""A cause may be noticed this much later than its effect: some looks are taken once in so many steps."""


def ranked(findings: Sequence[Finding], alternatives: Collection[frozenset[str]] = ()) -> list[Finding]:
    """Roots first; what follows from another finding behind, saying so. Then severity, support, earliest step.

    `alternatives` are pairs of codes of which one is right: neither follows from the other here. Nor does anything
    follow from what was seen later.
    """
    codes = {finding.code for finding in findings}
    roots: dict[str, list[str]] = {code: [] for code in codes}
    for effect in findings:
        for root in findings:
            if frozenset((root.code, effect.code)) not in alternatives and _leads_to(root, effect):
                roots[effect.code] = sorted({*roots[effect.code], root.code})
    marked = [
        replace(f, evidence=f"{f.evidence} Follows from {' or '.join(roots[f.code])}.") if roots[f.code] else f
        for f in findings
    ]
    plain = PLAIN_SYMPTOMS if codes - PLAIN_SYMPTOMS else frozenset()

    def place(finding: Finding) -> tuple[bool, int, bool, float, float, str]:
        step = -1 if finding.step is None else finding.step
        severity = SEVERITIES.index(finding.severity)
        return bool(roots[finding.code]), severity, finding.code in plain, -finding.support, step, finding.code

    return sorted(marked, key=place)


def _leads_to(root: Finding, effect: Finding) -> bool:
    later = root.step is not None and effect.step is not None and root.step > effect.step + NOTICED_STEPS
    one_way = effect.code in follows_from(root.code) and root.code not in follows_from(effect.code)
    return one_way and not later


def follows_from(code: str) -> frozenset[str]:
    """Everything that may follow from `code`, over any number of steps."""
    reached: set[str] = set()
    ahead = [code]
    while ahead:
        new = set(cause(ahead.pop()).consequences) - reached
        reached |= new
        ahead += new
    return frozenset(reached)
