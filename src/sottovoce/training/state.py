"""What a run has to know beside weights and moments to go on as if it had never stopped, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sottovoce.training.recorder import WindowMeans
from sottovoce.training.stages import StagePosition
from sottovoce.training.step import Progress, StepComputer


def step_state(step: StepComputer) -> dict[str, Any]:
    """Progress, guard, balance of the losses, flow bridge and pseudo-labels."""
    return {
        "progress": asdict(step.progress),
        "guard": step.guard.state(),
        "balance": step.balance.norms,
        "use_flow_bridge": step.model.use_flow_bridge,
        "modes": step.modes.state() if step.modes is not None else [],
    }


def progress_from(state: Mapping[str, Any]) -> Progress:
    """The progress that `step_state` has written.

    Raises:
        KeyError, TypeError: another version wrote it.
    """
    return Progress(**{**state, "position": StagePosition(**state["position"])})


def restore_state(state: Mapping[str, Any], step: StepComputer) -> WindowMeans:
    """Give `step` a checkpoint's state; returns the means of the metrics since the last logged line.

    Raises:
        KeyError, TypeError: another version wrote it.
    """
    step.progress = progress_from(state["progress"])
    step.guard.restore(state["guard"])
    step.balance.norms.update(state["balance"])
    step.model.use_flow_bridge = state["use_flow_bridge"]
    if step.modes is not None:
        step.modes.restore(state["modes"])
    return WindowMeans(**state["window"])
