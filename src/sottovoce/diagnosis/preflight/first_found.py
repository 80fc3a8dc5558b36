"""Checks in an order: the later ones rest on what the earlier ones ask about."""

from __future__ import annotations

from collections.abc import Iterator

from sottovoce.core.findings import Finding


def first_found(*checks: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of the first check that has any."""
    for check in checks:
        some = False
        for finding in check:
            some = True
            yield finding
        if some:
            return
