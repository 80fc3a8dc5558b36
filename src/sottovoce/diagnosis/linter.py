"""The linter: settings that are each allowed and together make a run that cannot give what it is for.

It knows interactions. What is wrong by itself is refused by the configuration's own checks; what needs the data or the
model at work is for the preflight. No shipped recipe gets an error or a warning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.linter_unread import without_effect
from sottovoce.diagnosis.thresholds import LARGE_EPS
from sottovoce.models.ssm_parts import NEVER_DECAYED
from sottovoce.training import optimizer as optimizer_module
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import Prepared
from sottovoce.training.schedules import SchedulerConfig, learning_rate_factor

MOMENTUM_EPS: Final = 1e-2
"""Row D1's pair: such an ε with a clip below a hundredth of ε·√N and a rate below 5e-3."""
SMALL_CLIP: Final = 0.01
LOW_RATE: Final = 5e-3
SMALL_EPS: Final = 1e-6
"""The reverse pair: true Adam, and a rate above 1e-3 for a recurrence. Mostly fine: extreme ones are told."""
EXTREME_RATE: Final = 0.03
"""Every scalar of a true Adam moves by up to the rate in a step; weights are of the order of 0.1."""
LEAST_TRAVEL: Final = 50.0
"""Σ of rates over the run, divided by ε: the path in units of the clipped gradient that a momentum-SGD run may go.
The official T15 run has 0.05 · 120,000 · ½ = 3,000; toy runs of 300 steps (8 and less) do not leave the blanks."""
TIGHT: Final = 1e-3
"""Clip as a share of the norm at initialisation below which the clip decides the step."""
USUAL_NORM: Final = 5.0
"""Median norm of a CTC run in nats an utterance; a token's share of it (about 1/25) with `per_token`."""
USUAL_LABELS: Final = 25
LEAST_REACH: Final = 0.01
"""Σ of rates: no scalar of a true Adam moves farther; weights are of the order of 0.1."""
USUAL_RATE: Final = 1e-3
"""Of GRUs and state-space models with true Adam: 0.001 to 0.005 (row D1)."""
SHORT_RUN: Final = 500
"""Steps that a shorter run is given here: that it does not get far is not the rate's fault."""
FORGOTTEN: Final = 1.0
"""Σ of rates times the decay, from which e^-1 of the start is left at the end."""
BRIEF_MEMORY: Final = 100
"""1/(rate·decay) steps is what weights remember; fewer are hardly more than the last batches."""
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
        *_epsilon(config, prepared, steps),
        *_clip(config),
        *_reach(config, steps),
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


def _finding(
    code: str, evidence: str, severity: Severity | None = None, fix: str = "", support: float = 1.0
) -> Finding:
    return found(code, evidence, "linter", severity=severity, fix=fix, support=support)


def _total_steps(config: RunConfig, prepared: Prepared | None) -> int | None:
    """Steps of the run; None where stages are given in epochs and the data are not at hand."""
    if prepared is not None:
        return prepared.curriculum.total_steps
    training = config.training
    if not training.stages:
        return training.steps
    lengths = [stage.steps for stage in training.stages]
    return None if None in lengths else sum(length or 0 for length in lengths)


def _epsilon(config: RunConfig, prepared: Prepared | None, steps: int | None) -> Iterator[Finding]:
    """Row D1: ε against the gradients that the clip allows, and how far the run can then go."""
    training, adam = config.training, config.training.optimizer
    clip = training.max_grad_norm
    if adam.eps >= LARGE_EPS:
        scalars = None if prepared is None else sum(p.numel() for p in prepared.model.parameters())
        regime = f"ε = {adam.eps:g}, learning rate {adam.lr:g}, clip {clip:g}: momentum SGD with rate lr/ε = "
        regime += f"{adam.lr / adam.eps:.3g}"
        if scalars is not None:
            root = adam.eps * math.sqrt(scalars)
            regime += f"; ε·√N = {root:.3g} for {scalars:,} numbers"
            if clip:
                largest = adam.lr / adam.eps * clip
                regime += f", largest step {largest:.3g} (rms {largest / math.sqrt(scalars):.1e})"
        travel = math.inf if steps is None else adam.lr / adam.eps * steps * min(1.0, (clip or 10.0) / 10.0) / 2
        tight = scalars is None or (bool(clip) and clip < SMALL_CLIP * adam.eps * math.sqrt(scalars))
        if adam.eps >= MOMENTUM_EPS and travel < LEAST_TRAVEL:
            yield _finding("adam_eps_regime", f"{regime}. In {steps} steps that does not get far.", "warning")
        elif adam.eps >= MOMENTUM_EPS and tight and adam.lr < LOW_RATE:
            yield _finding("adam_eps_regime", f"{regime}. Runs like this stay at the blanks for long.", "warning")
        else:
            yield _finding("adam_eps_regime", f"{regime}. Clip, loss scale and batch size all act on the step.", "note")
    elif adam.eps <= SMALL_EPS and adam.lr > EXTREME_RATE:
        yield _finding(
            "effective_step",
            f"learning rate {adam.lr:g} with ε = {adam.eps:g}: weights may move by {adam.lr:g} in a step, about their "
            "own size.",
            fix=f"training.optimizer.lr={LOW_RATE:g}: or ε = 0.1, with which such a rate is usual",
        )


def _clip(config: RunConfig) -> Iterator[Finding]:
    """A clip that leaves nothing of the gradient, in a regime where that matters."""
    training, adam = config.training, config.training.optimizer
    if not training.max_grad_norm:
        return
    usual = USUAL_NORM / (USUAL_LABELS if training.loss_normalisation == "per_token" else 1)
    kept = training.max_grad_norm / usual
    scale_free = adam.eps <= SMALL_EPS
    if kept < (TIGHT if scale_free else 0.25):
        evidence = (
            f"training.max_grad_norm={training.max_grad_norm:g}, where gradients of this loss usually have a norm of "
            f"about {usual:.2g}: a step keeps {kept:.1%} of its gradient"
        )
        severity: Severity = "note" if scale_free else "warning"
        yield _finding("clipped_to_standstill", f"{evidence}, with ε = {adam.eps:g}.", severity)


def _reach(config: RunConfig, steps: int | None) -> Iterator[Finding]:
    """How far the rate takes a weight in the whole run, and how much of that the decay takes back."""
    training, adam = config.training, config.training.optimizer
    if steps is None:
        return
    planned = max(steps, SHORT_RUN)
    path = adam.lr * _mean_factor(training.scheduler, planned) * planned
    if path < LEAST_REACH and adam.eps < LARGE_EPS:
        yield _finding(
            "learning_rate_too_low",
            f"training.optimizer.lr={adam.lr:g}: over {planned} steps the rates add up to {path:.1e}, and no weight "
            "moves farther; weights are of the order of 0.1.",
            "warning",
            fix=f"training.optimizer.lr={USUAL_RATE:g}: the order of what works with a small epsilon",
        )
    total = adam.lr * adam.weight_decay * _mean_factor(training.scheduler, steps) * steps
    if total > FORGOTTEN and adam.lr * adam.weight_decay * BRIEF_MEMORY > 1:
        yield _finding(
            "weight_decay_too_strong",
            f"training.optimizer.weight_decay={adam.weight_decay:g} with lr={adam.lr:g}: weights forget in "
            f"{1 / (adam.lr * adam.weight_decay):.0f} steps and stay below {1 / adam.weight_decay:.2g}; rate · decay "
            f"adds up to {total:.2g} over {steps} steps.",
            "warning",
        )


def _mean_factor(scheduler: SchedulerConfig, steps: int) -> float:
    """Of the schedule over a run of so many steps, from a hundred of them."""
    return sum(learning_rate_factor(steps * i // 100, scheduler, steps) for i in range(100)) / 100


def _schedule(config: RunConfig, steps: int | None) -> Iterator[Finding]:
    scheduler = config.training.scheduler
    if steps is None:
        return
    end = scheduler.max_steps or steps
    if scheduler.warmup_steps >= steps:  # refused before, unless max_steps is beyond the run
        yield _finding(
            "schedule_length",
            f"training.scheduler.warmup_steps={scheduler.warmup_steps}, but the run has {steps} steps: the rate "
            "is still rising at its end.",
            fix=f"training.scheduler.warmup_steps={max(1, steps // 10)}",
        )
    elif scheduler.name == "cosine_with_warmup" and steps < SCHEDULE_SHARE * end:
        # mode-ssm's recipe plans 100,000 steps and stops by patience; a curriculum may well end early
        severity: Severity = "note" if config.training.stages else "warning"
        yield _finding(
            "schedule_length",
            f"The cosine reaches its floor at step {end}, the run ends at step {steps}: the rate never falls below "
            f"{_cosine(scheduler.warmup_steps, end, steps):.0%} of its peak.",
            severity,
            fix="training.scheduler.max_steps=null",
        )
    elif scheduler.name == "cosine_with_warmup" and end < FLOOR_TAIL * steps:
        yield _finding(
            "schedule_length",
            f"The cosine is at its floor ({scheduler.min_lr_ratio:g} of the peak) from step {end} on, for "
            f"{steps - end} of {steps} steps.",
            fix="training.scheduler.max_steps=null",
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
            yield _finding(
                "per_epoch_counter",
                f"training.{key}={every}, but the run has {steps} steps: it happens once, at the end.",
                "note",
                fix=f"training.{key}={max(1, steps // 5)}",
            )
    if training.log_every_steps > steps:
        yield _finding(
            "per_epoch_counter",
            f"training.log_every_steps={training.log_every_steps}, but the run has {steps} steps: no training metric "
            "is ever written.",
            "warning",
            fix=f"training.log_every_steps={max(1, steps // 20)}",
        )
    lengths = [stage.steps for stage in training.stages if stage.loss_weights.rnnt]
    known = prepared.curriculum.transducer_steps if prepared is not None else sum(length or 0 for length in lengths)
    if 0 < known <= training.rnnt_warmup_batches:
        yield _finding(
            "per_epoch_counter",
            f"training.rnnt_warmup_batches={training.rnnt_warmup_batches}, but the stages with a transducer have "
            f"{known} steps: it never joins.",
            fix=f"training.rnnt_warmup_batches={known // 10}",
        )
    yield from _patience(config, prepared)


def _patience(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    stages = prepared.curriculum.stages if prepared is not None else ()
    every = config.training.validate_every_steps
    for stage in stages:
        patience = stage.config.patience
        if patience is not None and (patience + 1) * every > stage.steps:
            yield _finding(
                "per_epoch_counter",
                f"Stage {stage.name} has {stage.steps} steps and is validated every {every}: its patience of "
                f"{patience} never runs out.",
                "note",
                fix=f"training.validate_every_steps={max(1, stage.steps // (patience + 2))}",
            )


def _selection(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    """Rows H2, G8 and G9: what chooses the checkpoint, and from which trials."""
    training, decoder = config.training, config.evaluation.decoder
    metrics = {training.selection_metric, *(stage.metric for stage in training.stages if stage.metric)}
    if decoder == "words" and metrics == {"per"}:
        yield _finding("selection_gate", "The decoder gives words, and per chooses the checkpoint.", "note")
    later = {stage.metric or training.selection_metric for stage in training.stages[-1:]}
    if training.stages and later != {training.selection_metric}:
        name = training.stages[-1].canonical_name
        yield _finding(
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
        yield _finding(
            "selection_on_test", f"{count} of the {len(chosen_by)} trials that choose are of the test split."
        )
    without_text = sum(trial.text is None for trial in chosen_by)
    if without_text and metrics - {"per"}:
        yield _finding(
            "metric_missing",
            f"{', '.join(sorted(metrics - {'per'}))} chooses the checkpoint, but {without_text} of {len(chosen_by)} "
            "validation trials have no text.",
            fix="training.selection_metric=per",
        )
    elif prepared.vocabulary is None and config.data.symbols == "phonemes" and metrics - {"per"}:
        yield _finding(
            "metric_missing",
            f"{', '.join(sorted(metrics - {'per'}))} chooses the checkpoint; phonemes without a lexicon make no words.",
            fix="data.lexicon=FILE: or training.selection_metric=per",
        )
    if not chosen_by:
        yield _finding(
            "metric_missing",
            f"There are no validation trials: {training.selection_metric} is never computed and no checkpoint chosen.",
            "note",
        )


def _labels(config: RunConfig) -> Iterator[Finding]:
    """Row H7: teachers, and nothing else."""
    if config.training.distillation.share == 1:
        yield _finding(
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
    yield _finding("adapter_with_transformer", f"model.session_adapter in front of model.transformer: {size}.")


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
        yield _finding(
            "weight_decay_on_biases",
            f"Weight decay {training.optimizer.weight_decay:g} applies to {len(wrong)} biases or step sizes: {some}.",
        )
