"""Greedy CTC decoding: the best symbol of every frame, repeats merged, then blanks dropped.

The order matters: dropping blanks first would merge a symbol that was spoken twice.
"""

from __future__ import annotations

import torch

from sottovoce.core.trial import valid_mask


def greedy_ctc(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> list[list[int]]:
    """Symbol ids of each trial, read from its valid frames; logits serve as well as log-probabilities.

    >>> frames = torch.eye(8)[[5, 5, 0, 5, 7]]
    >>> greedy_ctc(frames[None], torch.tensor([5]))
    [[5, 5, 7]]
    """
    best_BS = log_probs_BSV.argmax(dim=-1).cpu()
    hypotheses = []
    for best_S, length in zip(best_BS, lengths_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_S[:length])
        hypotheses.append([int(i) for i in merged.tolist() if i != blank])
    return hypotheses


def blank_frames(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> torch.Tensor:
    """int64 [B]: how many valid frames of each trial have the blank as their best symbol."""
    valid_BS = valid_mask(lengths_B.to(log_probs_BSV.device), log_probs_BSV.shape[1])
    return ((log_probs_BSV.argmax(dim=-1) == blank) & valid_BS).sum(dim=1)


def blank_fraction(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> float:
    """Share of the batch's valid frames whose best symbol is the blank, in [0, 1]; NaN without valid frames."""
    return float(blank_frames(log_probs_BSV, lengths_B, blank).sum() / lengths_B.sum().to(log_probs_BSV.device))
