"""Frame lengths: the only place that knows how many frames come out of how many bins.

Every function takes and returns whole numbers or integer tensors, element by element. Each module that
changes the time axis calls these from its `output_lengths`; tests hold that against the tensor that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch

Lengths = TypeVar("Lengths", int, torch.Tensor)


def conv_length(length: Lengths, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Lengths:
    """Frames of a convolution (or of patches): `floor((length + 2p - d(k-1) - 1)/s) + 1`, at least 0.

    Source: PyTorch `Conv1d`; with p = 0, d = 1 this is `floor((T - k)/s) + 1`, the official T15 length.
    """
    frames = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return frames.clamp(min=0) if isinstance(frames, torch.Tensor) else max(frames, 0)


def log_mel_length(num_samples: Lengths, hop: int) -> Lengths:
    """Valid frames of a centred short-time spectrum: `floor(samples / hop)` (NeMo `features.py`)."""
    return num_samples // hop


def adjacent_repeats(labels: Sequence[int]) -> int:
    """How often a label equals the one before it."""
    return sum(a == b for a, b in pairwise(labels))


def ctc_frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames with a CTC path for `labels`: one each, and a blank between equal neighbours.

    >>> ctc_frames_needed([1, 1, 1])
    5
    """
    return len(labels) + adjacent_repeats(labels)
