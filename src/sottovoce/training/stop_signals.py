"""Ctrl-C and SIGTERM ask a run to stop after the step in progress; a second one ends it at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Final

ASK_TO_STOP: Final = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Whether somebody has asked this process to stop."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals over."""
        for number in ASK_TO_STOP:
            self._previous[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Give them back to who had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
