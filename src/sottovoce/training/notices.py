"""What the person who starts a run should know before its first step, and would not think of asking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sottovoce.training.preparation import Prepared

LARGEST_P: Final = 0.1
"""Above it the blocks are not said to have two modes. On simulated data of one mode 19 of 20 p-values were above."""


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
    p_value = None if prepared.modes is None else prepared.modes.one_mode_p_value(prepared.config.seed)
    if p_value is not None and p_value > LARGEST_P:
        yield (
            f"the blocks look like one speaking mode: {p_value:.0%} of data sets of a single mode would fall into two "
            f"groups as well (up to {LARGEST_P:.0%} would speak for two modes); the estimated labels may mean nothing; "
            "give data.mode_file=FILE, or drop the stage that learns the mode"
        )
