"""Flow matching: the flow bridge's squared error on the way from corrupted to recorded features."""

from __future__ import annotations

from typing import Final

import torch

from sottovoce.losses.flow_matching import CorruptionConfig, corrupt, draw_times, flow_matching_loss
from sottovoce.runs.names import Metric
from sottovoce.training.branches.branch import Branch, Functions, PartInputs


def _nats(inputs: PartInputs, settings: CorruptionConfig, functions: Functions) -> torch.Tensor:
    """[B]; each trial draws for itself."""
    bridge, clean, generators = inputs.model.flow_bridge, inputs.recorded, inputs.draws.for_corruption()
    assert bridge is not None and clean is not None  # the plan leaves the stage out
    corrupted_BTC = corrupt(clean.signal, clean.lengths_B, settings, generators)
    tau_B = draw_times(generators, clean.signal.device)
    return flow_matching_loss(bridge, clean.signal, corrupted_BTC, clean.lengths_B, tau_B)


DENOISING: Final = Branch(
    name="denoise",
    component="flow_bridge",
    metric=Metric.FLOW_LOSS,
    compute=_nats,
    unit="trial",
    section="training.corruption",
    needs_recorded=True,
    available=lambda model: model.flow_bridge.enabled,
    own_part=lambda model: model.flow_bridge,
)
