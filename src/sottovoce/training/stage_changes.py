"""What happens where the curriculum moves on: what is said of it, and what is measured anew.

Every process calls these; only the main one has a recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sottovoce.runs.names import Event, Metric, with_flow_bridge
from sottovoce.training.branches import SPEAKING_MODE
from sottovoce.training.ownership import num_trainable
from sottovoce.training.processes import pair_of_main
from sottovoce.training.recorder import Recorder
from sottovoce.training.stages import Stage
from sottovoce.training.step import StepComputer
from sottovoce.training.validation import Validation


def announce_stage(computer: StepComputer, recorder: Recorder | None) -> None:
    """Say what the stage that begins now is about; a run of one stage needs no such words."""
    if recorder is None:
        return
    position, step = computer.progress.position, computer.progress.step
    stage, activity = computer.curriculum.stage(position), computer.curriculum.activity(position)
    trainable = num_trainable(computer.named, activity)
    weights = computer.curriculum.weights(stage)
    recorder.event(
        step,
        Event.STAGE_STARTED,
        stage=stage.name,
        num_steps=stage.steps,
        loss_weights=weights,
        components=sorted(activity.rates),
        trainable_parameters=trainable,
    )
    if len(computer.curriculum.stages) > 1:
        terms = " + ".join(f"{weight:g}·{name}" for name, weight in weights.items())
        recorder.say(
            f"step {step}: stage {stage.name}, up to {stage.steps} steps, loss {terms}, "
            f"{trainable:,} trainable parameters"
        )


def announce_teachers(computer: StepComputer, recorder: Recorder) -> None:
    """Record who teaches this run, and how well they decode."""
    if computer.teachers is not None:
        names, rates = zip(*((t.name, t.per) for t in computer.teachers.teachers), strict=True)
        recorder.event(0, Event.TAUGHT_BY, teachers=names, per=rates)


def announce_unfrozen(computer: StepComputer, stage: Stage, recorder: Recorder | None) -> None:
    """Of the components of `stage`, the one the last step belonged to, name those that the next step releases."""
    before, after = computer.now, computer.curriculum.activity(computer.progress.position)
    released = (after.rates.keys() - before.rates.keys()) & set(stage.config.components)
    if not released or recorder is None:
        return
    counts = [num_trainable(computer.named, activity) for activity in (before, after)]
    recorder.event(
        computer.progress.step,
        Event.UNFROZEN,
        components=sorted(released),
        trainable_parameters=counts[1],
        trainable_before=counts[0],
    )
    recorder.say(
        f"step {computer.progress.step}: {', '.join(released)} released, "
        f"{counts[0]:,} → {counts[1]:,} trainable parameters"
    )


def refresh_modes(
    computer: StepComputer, validation: Validation, train_indices: Sequence[int], recorder: Recorder | None
) -> None:
    """In a stage that learns the speaking mode without labels: estimate them anew."""
    modes = computer.modes
    if SPEAKING_MODE.name not in computer.now.weights or modes is None or not modes.estimated:
        return
    before = modes.modes
    modes.refresh(validation.embeddings(computer, train_indices))
    if recorder is None:
        return
    kept, confidence = modes.modes.agreement(before), modes.modes.confidence
    recorder.event(computer.progress.step, Event.MODES_REFRESHED, confidence=confidence, kept=kept)
    recorder.metrics(computer.progress.step, "train", {Metric.MODE_CONFIDENCE: confidence})


def measure_flow_bridge(
    computer: StepComputer,
    validation: Validation,
    ranked: Callable[[dict[str, float]], tuple[float, float]],
    without: float,
) -> tuple[dict[str, float], tuple[float, float]]:
    """Decode the validation trials over the bridge, and leave it in use if that is better than `without`.

    Gives the validation's values (in the main process) and what `ranked` makes of them: smaller is better.
    """
    computer.model.use_flow_bridge = True
    values = validation.values(computer)
    now = pair_of_main(computer.processes, ranked(values), computer.device)
    computer.model.use_flow_bridge = now[0] < without
    return values, now


def announce_flow_bridge(
    computer: StepComputer,
    metric: str,
    values: dict[str, float],
    now: float,
    without: float,
    recorder: Recorder | None,
) -> None:
    """Say whether the bridge is used, and why."""
    if recorder is None:
        return
    step, used = computer.progress.step, computer.model.use_flow_bridge
    recorder.metrics(step, "val", {with_flow_bridge(metric): values[metric]})
    compared = {"metric": metric, "with_bridge": abs(now), "without": abs(without)}
    recorder.event(step, Event.FLOW_BRIDGE_MEASURED, used=used, **compared)
    verdict = "it is used" if used else "it is left out"
    recorder.say(f"step {step}: flow bridge: {metric} {abs(now):.4f} with it, {abs(without):.4f} without: {verdict}")
