"""Normalisation of a trial by its own statistics.

Legend: B trials, T bins, C channels. Only valid bins count, so a trial comes out the same alone and beside others.
"""

from __future__ import annotations

from typing import Final

import torch

from sottovoce.core.trial import valid_mask

DEVIATION_FLOOR: Final = 1e-5


def normalise(signal_BTC: torch.Tensor, lengths_B: torch.Tensor, kind: str) -> torch.Tensor:
    """Each channel of each trial at mean 0; beyond the valid bins 0.

    `trial` divides every channel by its own deviation (with n - 1; NeMo `features.py`): `(x - mean) / (deviation +
    1e-5)`, a trial of one bin becomes 0. `trial_mean` divides the trial as a whole, so that loud channels stay loud:
    what a channel's deviation says about the speech is kept, the recording's gain and colour are not.
    """
    mask_BT1 = valid_mask(lengths_B, signal_BTC.shape[1])[:, :, None]
    count_B11 = lengths_B[:, None, None]
    mean = (signal_BTC * mask_BT1).sum(1, keepdim=True) / count_B11.clamp(min=1)
    centred = (signal_BTC - mean) * mask_BT1
    power = centred.square().sum(1, keepdim=True)
    if kind == "trial_mean":
        power, count_B11 = power.sum(2, keepdim=True), count_B11 * signal_BTC.shape[2]
    return centred / ((power / (count_B11 - 1).clamp(min=1)).sqrt() + DEVIATION_FLOOR)
