"""Which trials a model can be trained or run on at all, known from lengths alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sottovoce.core.faults import Fault
from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.core.trial import Trial


def infeasible_trials(
    trials: Iterable[Trial], frames_of: Callable[[Trial], int], why_shorter: str = ""
) -> dict[str, Fault]:
    """Trials that give no frame, or fewer than CTC needs for their labels, by trial id.

    Args:
        frames_of: the fewest encoder frames a trial can come out with.
        why_shorter: what training takes away from a trial's length, for the message.
    """
    faults = {}
    for trial in trials:
        frames, labels = frames_of(trial), trial.labels or ()
        needed = max(ctc_frames_needed(labels), 1)
        if frames < 1:
            code, remedy = (
                "too_short_for_model",
                "leave it out (data.on_fault=skip; decode: --on-fault skip) or use a smaller model.patch.size",
            )
        elif frames < needed:
            code, remedy = "ctc_infeasible", "leave it out (data.on_fault=skip) or lower the model's stride"
        else:
            continue
        repeats = ctc_frames_needed(labels) - len(labels)
        message = (
            f"{trial.num_steps} bins or samples give {frames} frames{why_shorter}, CTC needs {needed} "
            f"({len(labels)} labels and {repeats} repeats); {remedy}"
        )
        faults[trial.trial_id] = Fault(str(trial.file), trial.key, code, "error", message, trial.trial_id)
    return faults
