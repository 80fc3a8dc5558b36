"""Findings: what a check, the guard, the monitor or the explainer says about a run, each with a code that stays put."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]
"""An error: the run cannot give what it is for. A warning: it may not. A note: worth knowing, nothing is wrong."""
Source = Literal["preflight", "linter", "guard", "monitor", "explainer"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
FAILURES: Final = "docs/failures"
"""Folder of the pages that explain each code."""
_OVERRIDE: Final = re.compile(r"((?:[a-z][\w.]*=\S+ )*[a-z][\w.]*=\S+?)(?:: |$)")
"""`key=value key=value: advice`, or only the first half."""


@dataclass(frozen=True)
class Finding:
    """A cause, the evidence for it, and what to do."""

    code: str
    """Name in the catalogue of causes, e.g. `stale_optimizer`."""
    severity: Severity
    evidence: str
    """What was measured, with numbers and steps; one sentence or two."""
    explanation: str
    """What that means, in words that a person understands."""
    fix: str
    """What to do; a configuration override (`key=value`) where there is one."""
    source: Source
    step: int | None = None
    """Optimiser step it was seen at first; None: before the first, or of the whole run."""
    support: float = 1.0
    """How well the evidence supports the cause, in [0, 1]: 1 where it cannot be anything else."""
    tell_apart: str = ""
    """What would tell it from the next likely cause."""

    def as_dict(self) -> dict[str, Any]:
        """The finding as `diagnose --json` prints it and as `events.jsonl` holds it."""
        return asdict(self)

    @property
    def page(self) -> str:
        """The page that explains it, in a checkout."""
        return f"{FAILURES}/{self.code}.md"

    @property
    def more(self) -> str:
        """The command that prints this page, wherever the package is installed."""
        return f"sottovoce diagnose --explain {self.code}"

    @property
    def override(self) -> str:
        """The fix as a command line takes it (`key=value`, several with blanks between); empty where words must do.

        >>> Finding("c", "note", "", "", "training.optimizer.lr=0.1: or wait", "monitor").override
        'training.optimizer.lr=0.1'
        """
        stated = _OVERRIDE.match(self.fix)
        return stated[1] if stated else ""

    @property
    def advice(self) -> str:
        """The fix without the override before it."""
        return self.fix.removeprefix(self.override).removeprefix(": ")

    @property
    def told(self) -> str:
        """The cause, the evidence and the fix, a line each; an override stands alone, to be copied."""
        when = "" if self.step is None else f" at step {self.step}"
        rows = {
            "evidence": self.evidence,
            "override": self.override,
            "fix": self.advice,
            "to be sure": self.tell_apart,
            "more": self.more,
        }
        head = f"{self.severity}{when}: {self.code}: {self.explanation}"
        return "\n".join([head, *(f"  {name}: {words}" for name, words in rows.items() if words)])

    def __str__(self) -> str:
        when = "" if self.step is None else f" at step {self.step}"
        head = f"{self.severity}{when}: {self.code}: {self.evidence} {self.explanation}"
        return f"{head} Fix: {self.fix} (more: {self.more})"
