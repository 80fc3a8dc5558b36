"""Loss of the speaking-mode head: cross-entropy, and a supervised contrastive term over the batch.

Dimension legend: B trials, D size of the embedding, 2 modes (silent, vocalised). Source of the contrastive term:
Khosla et al. 2020, "Supervised contrastive learning", equation 2.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

TEMPERATURE: Final = 0.07
_ABSENT: Final = -1e30
"""Logit of a pair that does not count; finite, so that a row without any pair has no NaN in its gradient."""


def speaking_mode_loss(
    logits_B2: torch.Tensor,
    embedding_BD: torch.Tensor | None,
    vocalised_B: torch.Tensor,
    labelled_B: torch.Tensor,
    contrastive_weight: float = 0.1,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Nats of each trial, float32 [B]: cross-entropy + `contrastive_weight` × contrastive term; 0 without a label.

    `vocalised_B` is the probability that the trial is vocalised: 0 or 1 where the mode is known, in between for a
    pseudo-label; where `labelled_B` is False it is not read. `embedding_BD` has length 1.

    A trial's cross-entropy depends on the trial alone. Its contrastive term cannot: it compares batch mates, and is
    absent (not 0 with a gradient, not NaN) in a batch without two trials of one mode. Hence accumulation over
    micro-batches equals one large batch for the cross-entropy only.

    Raises:
        ValueError: a label lies outside [0, 1].
    """
    vocalised_B = torch.where(labelled_B, vocalised_B, 0.5).float()
    if not bool(((vocalised_B >= 0) & (vocalised_B <= 1)).all()):
        raise ValueError(f"mode labels must be probabilities in [0, 1], got {vocalised_B.tolist()}")
    log_probs_B2 = logits_B2.float().log_softmax(dim=-1)
    target_B2 = torch.stack([1 - vocalised_B, vocalised_B], dim=-1)
    nats_B = -(target_B2 * log_probs_B2).sum(dim=-1)
    nats_B = torch.where(labelled_B, nats_B, 0.0)
    if contrastive_weight and embedding_BD is not None:
        nats_B = nats_B + contrastive_weight * contrastive_nats(
            embedding_BD, vocalised_B > 0.5, labelled_B, temperature
        )
    return nats_B


def contrastive_nats(
    embedding_BD: torch.Tensor,
    vocalised_B: torch.Tensor,
    labelled_B: torch.Tensor,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Supervised contrastive loss, float32 [B], whose mean over the labelled trials is the mean over the anchors.

    Anchor i with positives P(i) (labelled trials of its mode, itself excluded) has
    −1/|P(i)| Σ_p ln( e^{f_i·f_p/τ} / Σ_{a≠i} e^{f_i·f_a/τ} ), a over the labelled trials. Trials without a positive
    are no anchors: they get 0, and the others are scaled by labelled/anchors, so that they are left out of the mean
    rather than counted as 0. Without any anchor all is 0.
    """
    f_BD = embedding_BD.float()
    itself_BB = torch.eye(len(f_BD), dtype=torch.bool, device=f_BD.device)
    pair_BB = labelled_B[:, None] & labelled_B & ~itself_BB
    positive_BB = pair_BB & (vocalised_B[:, None] == vocalised_B)
    num_positives_B = positive_BB.sum(dim=1)
    anchor_B = num_positives_B > 0
    similarity_BB = (f_BD @ f_BD.T / temperature).masked_fill(~pair_BB, _ABSENT)
    log_share_BB = functional.log_softmax(similarity_BB, dim=1).masked_fill(~positive_BB, 0.0)
    nats_B = -log_share_BB.sum(dim=1) / num_positives_B.clamp(min=1)
    return nats_B * (labelled_B.sum() / anchor_B.sum().clamp(min=1))
