"""Findings: what a check, the guard, the monitor or the explainer says about a run, each with a code that stays put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]
"""An error: the run cannot give what it is for. A warning: it may not. A note: worth knowing, nothing is wrong."""
Source = Literal["preflight", "linter", "guard", "monitor", "explainer"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
FAILURES: Final = "docs/failures"
"""Folder of the pages that explain each code."""


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
    advice: str
    """What to do, in words; empty where the override says it all."""
    source: Source
    step: int | None = None
    """Optimiser step it was seen at first; None: before the first, or of the whole run."""
    support: float = 1.0
    """How well the evidence supports the cause, in [0, 1]: 1 where it cannot be anything else."""
    tell_apart: str = ""
    """What would tell it from the next likely cause."""

    override: str = ""
    """What to do as a command line takes it (`key=value`, several with blanks between); empty where words must do."""
    own_fix: bool = False
    """`override` and `advice` are of this finding; otherwise they are what the catalogue says of its code."""
    trials: tuple[str, ...] = ()
    """Ids of the trials that it is about, where it is about some."""

    def as_dict(self) -> dict[str, Any]:
        """The finding as `diagnose --json` prints it."""
        return {
            "code": self.code,
            "severity": self.severity,
            "step": self.step,
            "evidence": self.evidence,
            "explanation": self.explanation,
            "fix": self.fix,
            "override": self.override,
            "tell_apart": self.tell_apart,
            "source": self.source,
            "support": self.support,
            "trials": list(self.trials),
            "page": self.page,
        }

    def as_event(self) -> dict[str, Any]:
        """What `events.jsonl` holds of it beside step and code: nothing that the catalogue says anyway."""
        own = {"override": self.override, "advice": self.advice} if self.own_fix else {}
        stated = {"severity": self.severity, "evidence": self.evidence, "source": self.source, "support": self.support}
        return stated | own | ({"trials": list(self.trials)} if self.trials else {})

    @property
    def fix(self) -> str:
        """What to do, in one line.

        >>> Finding("c", "note", "", "", "or wait", "monitor", override="training.optimizer.lr=0.1").fix
        'training.optimizer.lr=0.1: or wait'
        """
        return ": ".join(part for part in (self.override, self.advice) if part)

    @property
    def page(self) -> str:
        """The page that explains it, in a checkout."""
        return f"{FAILURES}/{self.code}.md"

    @property
    def more(self) -> str:
        """The command that prints this page, wherever the package is installed."""
        return f"sottovoce diagnose --explain {self.code}"

    @property
    def as_text(self) -> str:
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
