"""Speaking mode: cross-entropy and a contrastive term."""

from __future__ import annotations

from typing import Final

import torch

from sottovoce.losses.speaking_mode import speaking_mode_loss
from sottovoce.models.speaking_mode import SpeakingModeConfig
from sottovoce.runs.names import Metric
from sottovoce.training.branches.branch import Branch, Functions, PartInputs


def _nats(inputs: PartInputs, settings: SpeakingModeConfig, functions: Functions) -> torch.Tensor:
    modes, said = inputs.modes, inputs.encoded.mode
    assert modes is not None and said is not None  # the plan refuses such a stage
    targets_B = modes.of(inputs.batch.trial_ids, inputs.encoded.lengths_B.device)
    return speaking_mode_loss(said.logits_B2, said.embedding_BD, *targets_B, settings.contrastive_weight)


SPEAKING_MODE: Final = Branch(
    name="mode",
    component="mode_head",
    metric=Metric.MODE_LOSS,
    compute=_nats,
    unit="trial",
    section="model.speaking_mode",
    available=lambda model: model.speaking_mode is not None,
)
