"""What the person who starts a run should know before its first step, and would not think of asking."""

from __future__ import annotations

from collections.abc import Iterator

from sottovoce.training.preparation import Prepared


def notices(prepared: Prepared) -> Iterator[str]:
    """What the person who starts the run should know about its data."""
    trials = prepared.trial_set.trials
    if prepared.data_warnings:
        counts = ", ".join(f"{count} × {code}" for code, count in prepared.data_warnings.items())
        yield f"warnings about the data: {counts}; sottovoce check {prepared.config.data.data_root} shows them"
    if not prepared.val_indices:
        yield "no validation trials: nothing is validated, and checkpoints/last is what evaluate and decode will use"
    left_out = len(prepared.config.training.stages) - len(prepared.curriculum.stages)
    if prepared.config.training.stages and left_out:
        yield "the stage of the flow bridge is left out; model.flow_bridge.enabled=true would add it"
    warmup, total = prepared.config.training.scheduler.warmup_steps, prepared.curriculum.total_steps
    if warmup >= total:
        yield (
            f"training.scheduler.warmup_steps={warmup}: the learning rate is still rising when the run ends after "
            f"{total} steps, at {total / warmup:.0%} of its peak"
        )
    trained = {trials[i].session for i in prepared.train_indices}
    untrained = sorted({trials[i].session for i in prepared.val_indices} - trained)
    if untrained and prepared.model.session_adapter is not None:
        others = f" and {len(untrained) - 1} more" if len(untrained) > 1 else ""
        yield f"no training trials in the session {untrained[0]}{others}: the adapter stays the identity"
