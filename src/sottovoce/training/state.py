"""What a run has to know beside weights and moments to go on as if it had never stopped, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sottovoce.training.module import DecoderTraining, Progress
from sottovoce.training.recorder import WindowMeans
from sottovoce.training.stages import StagePosition


def module_state(module: DecoderTraining) -> dict[str, Any]:
    """Progress, guard, balance of the losses, flow bridge and pseudo-labels."""
    return {
        "progress": asdict(module.progress),
        "guard": module.guard.state(),
        "balance": module.balance.norms,
        "use_flow_bridge": module.model.use_flow_bridge,
        "modes": module.modes.state() if module.modes is not None else [],
    }


def progress_from(state: Mapping[str, Any]) -> Progress:
    """The progress that `module_state` has written.

    Raises:
        KeyError, TypeError: another version wrote it.
    """
    return Progress(**{**state, "position": StagePosition(**state["position"])})


def restore_state(state: Mapping[str, Any], module: DecoderTraining) -> WindowMeans:
    """Give `module` a checkpoint's state; returns the means of the metrics since the last logged line.

    Raises:
        KeyError, TypeError: another version wrote it.
    """
    module.progress = progress_from(state["progress"])
    module.guard.restore(state["guard"])
    module.balance.norms.update(state["balance"])
    module.model.use_flow_bridge = state["use_flow_bridge"]
    if module.modes is not None:
        module.modes.restore(state["modes"])
    return WindowMeans(**state["window"])
