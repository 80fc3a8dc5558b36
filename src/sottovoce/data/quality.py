"""The quality filter: trials that are sound but too short, too long or of too few live channels to learn from.

Off unless asked for, and never silent: every trial it leaves out is recorded like one with a fault (mode-ssm drops 296
of 8,072 training trials of T15 without a word).
"""

from __future__ import annotations

from collections.abc import Iterator

from sottovoce.core.faults import Fault
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.config import DataConfig


def filtered_trials(trial_set: TrialSet, config: DataConfig, step_ms: float) -> dict[str, Fault]:
    """Training and validation trials that the filter leaves out, by trial id, with the limit that each misses.

    Args:
        step_ms: milliseconds of one of a trial's `num_steps` (a bin, or a sample).
    """
    found = {}
    for index, trial in enumerate(trial_set.trials):
        for code, message in _misses(trial_set, index, trial, config, step_ms):
            found[trial.trial_id] = Fault(str(trial.file), trial.key, code, "warning", message, trial.trial_id)
            break
    return found


def _misses(
    trial_set: TrialSet, index: int, trial: Trial, config: DataConfig, step_ms: float
) -> Iterator[tuple[str, str]]:
    duration_ms = trial.num_steps * step_ms
    shortest, longest = config.min_sequence_ms or 0.0, config.max_sequence_ms or float("inf")
    if not shortest <= duration_ms <= longest:
        limit = "data.min_sequence_ms" if duration_ms < shortest else "data.max_sequence_ms"
        yield "outside_length_limits", f"{duration_ms:.0f} ms; {limit} leaves it out"
    if config.missing_channel_threshold is not None:
        signal = trial_set.signal(index)
        constant = float((signal == signal[:1]).all(axis=0).mean())
        if constant > config.missing_channel_threshold:
            yield (
                "too_many_missing_channels",
                f"{constant:.1%} of the channels are constant; data.missing_channel_threshold leaves it out",
            )
