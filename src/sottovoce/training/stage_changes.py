"""What happens where the curriculum moves on: what is said of it, and what is measured anew.

Every process calls these; only the main one has a recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sottovoce.training.module import DecoderTraining
from sottovoce.training.ownership import num_trainable
from sottovoce.training.recorder import RunRecorder
from sottovoce.training.stages import Stage
from sottovoce.training.validation import Validation


def announce_stage(module: DecoderTraining, recorder: RunRecorder | None) -> None:
    """Say what the stage that begins now is about; a run of one stage needs no such words."""
    if recorder is None:
        return
    position, step = module.progress.position, module.progress.step
    stage, activity = module.curriculum.stage(position), module.curriculum.activity(position)
    trainable = num_trainable(module.named, activity)
    weights = module.curriculum.weights(stage)
    recorder.event(
        step,
        "stage_started",
        stage=stage.name,
        num_steps=stage.steps,
        loss_weights=weights,
        components=sorted(activity.rates),
        trainable_parameters=trainable,
    )
    if len(module.curriculum.stages) > 1:
        terms = " + ".join(f"{weight:g}·{name}" for name, weight in weights.items())
        recorder.say(
            f"step {step}: stage {stage.name}, up to {stage.steps} steps, loss {terms}, "
            f"{trainable:,} trainable parameters"
        )


def announce_teachers(module: DecoderTraining, recorder: RunRecorder) -> None:
    """Record who teaches this run, and how well they decode."""
    if module.teachers is not None:
        names, rates = zip(*((t.name, t.per) for t in module.teachers.teachers), strict=True)
        recorder.event(0, "taught_by", teachers=names, per=rates)


def announce_unfrozen(module: DecoderTraining, stage: Stage, recorder: RunRecorder | None) -> None:
    """Of the components of `stage`, the one the last step belonged to, name those that the next step releases."""
    before, after = module.activity, module.curriculum.activity(module.progress.position)
    assert before is not None
    released = (after.rates.keys() - before.rates.keys()) & set(stage.config.components)
    if not released or recorder is None:
        return
    counts = [num_trainable(module.named, activity) for activity in (before, after)]
    recorder.event(
        module.progress.step,
        "unfrozen",
        components=sorted(released),
        trainable_parameters=counts[1],
        trainable_before=counts[0],
    )
    recorder.say(
        f"step {module.progress.step}: {', '.join(released)} released, "
        f"{counts[0]:,} → {counts[1]:,} trainable parameters"
    )


def refresh_modes(
    module: DecoderTraining, validation: Validation, train_indices: Sequence[int], recorder: RunRecorder | None
) -> None:
    """In a stage that learns the speaking mode without labels: estimate them anew."""
    modes = module.modes
    learning = module.activity is not None and "mode" in module.activity.weights
    if not learning or modes is None or not modes.estimated:
        return
    before = modes.modes
    modes.refresh(validation.embeddings(module, train_indices))
    if recorder is None:
        return
    kept, confidence = modes.modes.agreement(before), modes.modes.confidence
    recorder.event(module.progress.step, "modes_refreshed", confidence=confidence, kept=kept)
    recorder.metrics(module.progress.step, "train", {"train/mode_confidence": confidence})


def measure_flow_bridge(
    module: DecoderTraining,
    validation: Validation,
    ranked: Callable[[dict[str, float]], tuple[float, float]],
    without: float,
) -> tuple[dict[str, float], tuple[float, float]]:
    """Decode the validation trials over the bridge, and leave it in use if that is better than `without`.

    Gives the validation's values (in the main process) and what `ranked` makes of them: smaller is better.
    """
    module.model.use_flow_bridge = True
    values = validation.values(module)
    now = module.from_main(ranked(values))
    module.model.use_flow_bridge = now[0] < without
    return values, now


def announce_flow_bridge(
    module: DecoderTraining,
    metric: str,
    values: dict[str, float],
    now: float,
    without: float,
    recorder: RunRecorder | None,
) -> None:
    """Say whether the bridge is used, and why."""
    if recorder is None:
        return
    step, used = module.progress.step, module.model.use_flow_bridge
    recorder.metrics(step, "val", {f"{metric}_with_flow_bridge": values[metric]})
    compared = {"metric": metric, "with_bridge": abs(now), "without": abs(without)}
    recorder.event(step, "flow_bridge_measured", used=used, **compared)
    verdict = "it is used" if used else "it is left out"
    recorder.say(f"step {step}: flow bridge: {metric} {abs(now):.4f} with it, {abs(without):.4f} without: {verdict}")
