"""The linter: settings that are each allowed and together make a run that cannot give what it is for.

It knows interactions. What is wrong by itself is refused by the configuration's own checks; what needs the data or the
model at work is for the preflight. No shipped recipe gets an error or a warning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.causes import linted
from sottovoce.diagnosis.linter_step import effective_step
from sottovoce.diagnosis.linter_unread import without_effect
from sottovoce.models.ssm_parts import NEVER_DECAYED
from sottovoce.training import optimizer as optimizer_module
from sottovoce.training.branches import TRANSDUCER
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import Prepared

SCHEDULE_SHARE: Final = 0.5
"""A cosine that is cut off above this share of its way, or is over before this share of the run."""
FLOOR_TAIL: Final = 0.5


def lint(config: RunConfig, prepared: Prepared | None = None) -> list[Finding]:
    """What these settings do to each other; with the data and the model at hand, more of it.

    `prepared` gives the number of trained scalars, the run's length where stages are given in epochs, and the groups
    of the real optimiser.
    """
    steps = _total_steps(config, prepared)
    findings = [
        *effective_step(config, prepared, steps),
        *_schedule(config, steps),
        *_never_happens(config, prepared, steps),
        *_selection(config, prepared),
        *_labels(config),
        *_adapter(config, prepared),
        *without_effect(config, prepared),
    ]
    if prepared is not None:
        findings += _decayed_biases(prepared)
    return findings


def _total_steps(config: RunConfig, prepared: Prepared | None) -> int | None:
    """Steps of the run; None where stages are given in epochs and the data are not at hand."""
    if prepared is not None:
        return prepared.curriculum.total_steps
    training = config.training
    if not training.stages:
        return training.steps
    lengths = [stage.steps for stage in training.stages]
    return None if None in lengths else sum(length or 0 for length in lengths)


def _schedule(config: RunConfig, steps: int | None) -> Iterator[Finding]:
    scheduler = config.training.scheduler
    if steps is None:
        return
    end = scheduler.max_steps or steps
    if scheduler.warmup_steps >= steps:  # refused before, unless max_steps is beyond the run
        yield linted(
            "schedule_length",
            f"training.scheduler.warmup_steps={scheduler.warmup_steps}, but the run has {steps} steps: the rate "
            "is still rising at its end.",
            override=f"training.scheduler.warmup_steps={max(1, steps // 10)}",
        )
    elif scheduler.name == "cosine_with_warmup" and steps < SCHEDULE_SHARE * end:
        # mode-ssm's recipe plans 100,000 steps and stops by patience; a curriculum may well end early
        severity: Severity = "note" if config.training.stages else "warning"
        yield linted(
            "schedule_length",
            f"The cosine reaches its floor at step {end}, the run ends at step {steps}: the rate never falls below "
            f"{_cosine(scheduler.warmup_steps, end, steps):.0%} of its peak.",
            severity,
            override="training.scheduler.max_steps=null",
        )
    elif scheduler.name == "cosine_with_warmup" and end < FLOOR_TAIL * steps:
        yield linted(
            "schedule_length",
            f"The cosine is at its floor ({scheduler.min_lr_ratio:g} of the peak) from step {end} on, for "
            f"{steps - end} of {steps} steps.",
            override="training.scheduler.max_steps=null",
        )


def _cosine(warmup: int, end: int, step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (end - warmup)))


def _never_happens(config: RunConfig, prepared: Prepared | None, steps: int | None) -> Iterator[Finding]:
    """Row I4: events that are planned later than the run is long."""
    training = config.training
    if steps is None:
        return
    for key in ("validate_every_steps", "checkpoint_every_steps"):
        every = getattr(training, key)
        if every > steps:
            yield linted(
                "per_epoch_counter",
                f"training.{key}={every}, but the run has {steps} steps: it happens once, at the end.",
                "note",
                override=f"training.{key}={max(1, steps // 5)}",
            )
    if training.log_every_steps > steps:
        yield linted(
            "per_epoch_counter",
            f"training.log_every_steps={training.log_every_steps}, but the run has {steps} steps: no training metric "
            "is ever written.",
            "warning",
            override=f"training.log_every_steps={max(1, steps // 20)}",
        )
    lengths = [stage.steps for stage in training.stages if stage.weight_of(TRANSDUCER.name)]
    known = prepared.curriculum.transducer_steps if prepared is not None else sum(length or 0 for length in lengths)
    if 0 < known <= training.rnnt_warmup_batches:
        yield linted(
            "per_epoch_counter",
            f"training.rnnt_warmup_batches={training.rnnt_warmup_batches}, but the stages with a transducer have "
            f"{known} steps: it never joins.",
            override=f"training.rnnt_warmup_batches={known // 10}",
        )
    yield from _patience(config, prepared)


def _patience(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    stages = prepared.curriculum.stages if prepared is not None else ()
    every = config.training.validate_every_steps
    for stage in stages:
        patience = stage.config.patience
        if patience is not None and (patience + 1) * every > stage.steps:
            yield linted(
                "per_epoch_counter",
                f"Stage {stage.name} has {stage.steps} steps and is validated every {every}: its patience of "
                f"{patience} never runs out.",
                "note",
                override=f"training.validate_every_steps={max(1, stage.steps // (patience + 2))}",
            )


def _selection(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    """Rows H2, G8 and G9: what chooses the checkpoint, and from which trials."""
    training, decoder = config.training, config.decoding.decoder
    metrics = {training.selection_metric, *(stage.metric for stage in training.stages if stage.metric)}
    if decoder == "words" and metrics == {"per"}:
        yield linted("selection_gate", "The decoder gives words, and per chooses the checkpoint.", "note")
    later = {stage.metric or training.selection_metric for stage in training.stages[-1:]}
    if training.stages and later != {training.selection_metric}:
        name = training.stages[-1].canonical_name
        yield linted(
            "selection_gate",
            f"The stage {name} goes by {later.pop()}, the run's best checkpoint by {training.selection_metric}.",
            "note",
        )
    if prepared is None:
        return
    trials = prepared.trial_set.trials
    chosen_by = [trials[i] for i in prepared.val_indices]
    if any(trial.split == "test" for trial in chosen_by):
        count = sum(trial.split == "test" for trial in chosen_by)
        yield linted("selection_on_test", f"{count} of the {len(chosen_by)} trials that choose are of the test split.")
    without_text = sum(trial.text is None for trial in chosen_by)
    if without_text and metrics - {"per"}:
        yield linted(
            "metric_missing",
            f"{', '.join(sorted(metrics - {'per'}))} chooses the checkpoint, but {without_text} of {len(chosen_by)} "
            "validation trials have no text.",
            override="training.selection_metric=per",
        )
    elif prepared.vocabulary is None and config.data.symbols == "phonemes" and metrics - {"per"}:
        yield linted(
            "metric_missing",
            f"{', '.join(sorted(metrics - {'per'}))} chooses the checkpoint; phonemes without a lexicon make no words.",
            override="data.lexicon=FILE",
            fix="or training.selection_metric=per",
        )
    if not chosen_by:
        yield linted(
            "metric_missing",
            f"There are no validation trials: {training.selection_metric} is never computed and no checkpoint chosen.",
            "note",
        )


def _labels(config: RunConfig) -> Iterator[Finding]:
    """Row H7: teachers, and nothing else."""
    if config.training.distillation.share == 1:
        yield linted(
            "distillation_without_labels",
            "training.distillation.weight=1: the CTC loss with labels has no weight and is not computed; all that is "
            "learnt comes from the teachers.",
        )


def _adapter(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    """A matrix for each session, in front of an encoder that was published without: worth a comparison, no fault."""
    if config.model.transformer is None or config.model.session_adapter is None:
        return
    channels = config.preprocessor.num_channels
    size = f"each session has {channels * (channels + 1):,} weights of its own"
    if prepared is not None:
        sessions = {prepared.trial_set.trials[i].session for i in prepared.train_indices}
        size += f" and on average {len(prepared.train_indices) / len(sessions):.0f} training trials to learn them from"
    yield linted("adapter_with_transformer", f"model.session_adapter in front of model.transformer: {size}.")


def _decayed_biases(prepared: Prepared) -> Iterator[Finding]:
    """The groups that the real optimiser is given."""
    training = prepared.config.training
    built = optimizer_module.build_optimizer(prepared.model, training.optimizer, bool(training.stages))
    decayed = {id(p) for group in built.param_groups if group["weight_decay"] for p in group["params"]}
    wrong = [
        name
        for name, p in prepared.model.named_parameters()
        if id(p) in decayed and (name.split(".")[-1].startswith("bias") or name.split(".")[-1] in NEVER_DECAYED)
    ]
    if wrong:
        some = ", ".join(wrong[:3])
        yield linted(
            "weight_decay_on_biases",
            f"Weight decay {training.optimizer.weight_decay:g} applies to {len(wrong)} biases or step sizes: {some}.",
        )
