"""When a condition that comes and goes becomes a finding, and when the finding is over.

A slow condition (a blank plateau, a share of clipped steps) flickers. It is raised when it was true on four fifths of
the last steps and cleared when it was true on two fifths of them, so that one episode is reported once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

RAISE_SHARE: Final = 0.8
"""A slow condition is raised at this share of the window (policy of the catalogue of failures, 0.3)."""
CLEAR_SHARE: Final = 0.4
"""And cleared at this one."""
Change = Literal["raised", "cleared"]


@dataclass
class Hysteresis:
    """One condition over the last `window` steps.

    >>> plateau = Hysteresis(window=4)
    >>> [plateau.update(true) for true in (True, True, True, True, False, False, False)]
    [None, None, None, 'raised', None, None, 'cleared']
    """

    window: int
    raise_share: float = RAISE_SHARE
    clear_share: float = CLEAR_SHARE
    recent: list[bool] = field(default_factory=list)
    raised: bool = False

    def __post_init__(self) -> None:
        assert self.window >= 1 and 0 <= self.clear_share < self.raise_share <= 1

    @property
    def share(self) -> float:
        """Of the steps seen in the window, those in which the condition was true; 0 before the first."""
        return sum(self.recent) / len(self.recent) if self.recent else 0.0

    def update(self, true: bool) -> Change | None:
        """Take one step's condition; tell when an episode begins (never before the window is full) or ends."""
        self.recent = [*self.recent[1 - self.window :], true] if self.window > 1 else [true]
        if not self.raised and len(self.recent) == self.window and self.share >= self.raise_share:
            self.raised = True
            return "raised"
        if self.raised and self.share <= self.clear_share:
            self.raised = False
            return "cleared"
        return None

    def forget(self) -> None:
        """Begin anew: what was seen does not compare with what comes (another stage)."""
        self.recent, self.raised = [], False

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"recent": [int(true) for true in self.recent], "raised": self.raised}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.recent, self.raised = [bool(true) for true in state["recent"]], bool(state["raised"])
