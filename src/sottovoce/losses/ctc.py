"""CTC loss, per utterance, in nats.

Legend: B trials, S frames, U labels, V symbols. Source: Graves et al. 2006; PyTorch's kernels do the arithmetic.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from sottovoce.core.trial import valid_mask
from sottovoce.losses.precision import refuse_half_precision


def ctc_loss(
    logits_BSV: torch.Tensor,
    targets_BU: torch.Tensor,
    logit_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    blank: int = 0,
) -> torch.Tensor:
    """−ln of the summed probability of all alignments of each target, float32 [B] in nats.

    Computed in float32. A target that does not fit
    (frames < labels + adjacent repeats) gives +inf, never 0: the guard names such an utterance.

    Raises:
        ValueError: float16 logits; lengths beyond the tensors, or a label that is the blank or no symbol, with the
            utterance.
    """
    refuse_half_precision(logits_BSV)
    _check(logits_BSV.shape, targets_BU, logit_lengths_B, target_lengths_B, blank)
    log_probs_SBV = functional.log_softmax(logits_BSV.float(), dim=-1).transpose(0, 1)
    return functional.ctc_loss(
        log_probs_SBV, targets_BU, logit_lengths_B, target_lengths_B, blank=blank, reduction="none", zero_infinity=False
    )


def _check(
    shape: torch.Size,
    targets_BU: torch.Tensor,
    logit_lengths_B: torch.Tensor,
    target_lengths_B: torch.Tensor,
    blank: int,
) -> None:
    for lengths_B, size, what in (
        (logit_lengths_B, shape[1], "frames"),
        (target_lengths_B, targets_BU.shape[1], "labels"),
    ):
        wrong = (lengths_B < 0) | (lengths_B > size)
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise ValueError(f"utterance {i} has {int(lengths_B[i])} {what}, its tensor holds {size}")
    wrong_BU = (targets_BU < 0) | (targets_BU >= shape[2]) | (targets_BU == blank)
    wrong_BU = wrong_BU & valid_mask(target_lengths_B, targets_BU.shape[1])
    if bool(wrong_BU.any()):
        i, at = wrong_BU.nonzero()[0].tolist()
        raise ValueError(
            f"utterance {i}: label {int(targets_BU[i, at])} at {at} is the blank ({blank}) or not one of the "
            f"{shape[2]} symbols"
        )
