"""Who may move: which parameters a stage trains, and that exactly those receive a gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.compose import DecoderModel
from sottovoce.training.branches import BRANCHES
from sottovoce.training.optimizer import SESSION_MODULE
from sottovoce.training.stages import Activity


def freeze_others(parameters: Mapping[str, nn.Parameter], activity: Activity) -> None:
    """Let gradients reach the components that learn, and no others; the optimiser keeps all of them."""
    for name, parameter in parameters.items():
        parameter.requires_grad_(DecoderModel.component_of(name) in activity.rates)


def num_trainable(parameters: Mapping[str, nn.Parameter], activity: Activity) -> int:
    """Numbers that the steps of `activity` move."""
    return sum(p.numel() for name, p in parameters.items() if DecoderModel.component_of(name) in activity.rates)


def check_owners(parameters: Mapping[str, nn.Parameter], activity: Activity) -> None:
    """Hold the gradients of a step against what is supposed to learn.

    Session adapters are left out: a batch holds some sessions only.

    Raises:
        ConfigurationError: a parameter that shall learn has no gradient, or one that is frozen has.
    """
    for name, parameter in parameters.items():
        component = DecoderModel.component_of(name)
        learns, reached = component in activity.rates, parameter.grad is not None
        recognises = any(BRANCHES[loss].is_likelihood for loss in activity.weights)
        if learns and name.startswith("mode_conditioner") and not recognises:
            continue  # only a recogniser's loss reaches what modulates its encoder
        if learns != reached and not name.startswith(SESSION_MODULE):
            raise ConfigurationError(
                f"{name} shall learn, but no loss of this stage reaches it; take {component} out of the "
                "stage's components or give its loss a weight"
                if learns
                else f"{name} is frozen, but a gradient has reached it; the optimiser would ignore it and the clip "
                "norm would not"
            )
