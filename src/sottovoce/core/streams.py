"""What arrives piece by piece: what must not stand in its way, and what a piece must be.

Legend: B streams, T bins, C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sottovoce.core.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class WholeTrialPart:
    """Something whose output cannot be computed before the trial has ended."""

    key: str
    """Of the configuration, e.g. `model.stem`."""
    reason: str
    """Why, and what to set instead."""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def check_streams(parts: Sequence[WholeTrialPart]) -> None:
    """Raise ConfigurationError with every part and reason, where there is any part."""
    if parts:
        raise ConfigurationError(f"cannot work on a stream; {'; '.join(map(str, parts))}")


def check_chunk(chunk: torch.Tensor, expected: Sequence[int | None], layout: str) -> None:
    """Hold a piece of a stream against the sizes it must have; None stands for any size.

    Args:
        layout: names of the axes, for the message, e.g. `[bins, channels]`.

    Raises:
        DataError: it has another shape, or a value that is not finite.
    """
    shape = tuple(chunk.shape)
    fits = len(shape) == len(expected)
    if not fits or any(wanted not in (None, size) for size, wanted in zip(shape, expected, strict=True)):
        sizes = ", ".join("any" if wanted is None else str(wanted) for wanted in expected)
        raise DataError(f"a chunk of shape {list(shape)}: must be {layout}, here [{sizes}]")
    finite = chunk.isfinite()
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        raise DataError(
            f"a chunk with {int((~finite).sum())} values that are not finite, the first at {first} of {layout}: "
            f"{float(chunk[tuple(first)])}; leave the state as it was and send a mended chunk"
        )


def check_open(ended: bool) -> None:
    """Raise DataError where a stream has ended."""
    if ended:
        raise DataError("this stream has ended: begin the next trial with a new state")
