"""What every encoder that keeps the frame rate owes to trials of unequal length."""

from __future__ import annotations

from typing import Any

import torch


def assert_padding_changes_nothing(encoder: Any) -> None:
    """Of 6 channels: a trial padded with large numbers, NaN or zeros equals the trial alone; 0 beyond its end."""
    lengths = torch.tensor([40, 23, 1, 8, 0])
    x = torch.randn(5, 40, 6)
    x[1, 23:], x[3, 8:] = 1e3, torch.nan
    padded, frames = encoder(x, lengths)
    assert padded.shape == (5, 40, encoder.output_size)
    assert frames is lengths
    for row, length in enumerate(lengths.tolist()):
        assert not padded[row, length:].any()
        assert encoder.output_lengths(length) == length
        if length:
            alone, _ = encoder(x[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(padded[row, :length], alone[0], atol=2e-6, rtol=1e-5)
