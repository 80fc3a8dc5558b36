"""What the teachers say of the same frames, in place of a part of the labels' weight."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.losses.distillation import distillation_loss
from sottovoce.runs.names import Metric
from sottovoce.training.branches.branch import Branch, Functions, PartInputs
from sottovoce.training.teachers import DistillationConfig


def _nats(inputs: PartInputs, settings: DistillationConfig, functions: Functions) -> torch.Tensor:
    """How far the CTC head is from what the teachers say, [B].

    Raises:
        ConfigurationError: they have other frames or symbols.
    """
    targets = inputs.teacher_targets
    own, theirs = inputs.ctc_logits_BSV.shape, targets.log_q_BSV.shape
    if own != theirs:
        raise ConfigurationError(
            f"training.distillation.teachers give logits of {list(theirs)}, this run's are {list(own)} (trials, "
            "frames, symbols); take teachers with the same symbols and bins per frame"
        )
    return functions["distillation_loss"](
        inputs.ctc_logits_BSV, targets.log_q_BSV, targets.weights_BS, settings.temperature
    )


DISTILLATION: Final = Branch(
    name="distillation",
    component="ctc_decoder",
    metric=Metric.DISTILLATION_LOSS,
    compute=_nats,
    functions=MappingProxyType({"distillation_loss": distillation_loss}),
    section="training.distillation",
    weight_of="ctc",
)
