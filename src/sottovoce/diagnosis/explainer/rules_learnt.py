"""Has anything been learnt? The last validation against what constant answers reach without looking at the signal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.rules_schedule import comparable_from, planned_steps
from sottovoce.diagnosis.explainer.suspicion import Suspicion, middle, suspect
from sottovoce.diagnosis.thresholds import AT_FLOOR, LEARNT_SHARE
from sottovoce.runs.names import Metric

FEWEST_STEPS: Final = 200
"""A run, or a stage of one, that is shorter is not judged: healthy ones leave the blanks at step 84 to 210 (row D5)."""
MOST_PATIENCE: Final = 500
"""A run that was stopped is judged from a third of its plan on after the warm-up, or so many steps (row D6)."""
LONG: Final = 0.02
"""In a long run, from this share on (row D6)."""
BLIND: Final = 0.97
"""Validation loss over its floor. Closer to 1 than for training losses: all trials count, without dropout and noise,
and the slowest healthy small runs end at 0.953 after 240 steps."""
NOTHING: Final = 0.9
"""A phoneme error rate from here on is none: the commonest symbols alone have about 0.8."""
FALLS: Final = 0.98
"""Last validation loss over the least of the first half, below which a run is on its way."""
HEARD: Final = 0.02
"""Gain of the own labels over another trial's, as a share of the loss, from which the signal is heard: 0.00 measured
after 900 steps on noise, 0.03 on a run that is far too slow, 0.3 and more on those that learn."""
GROWS: Final = 1.5
"""Gain in the second half of the validations over that in the first, from which the signal is about to be heard."""
CHANCE: Final = 0.7
"""Below it something is decoded, however improbable the model finds the labels: that is another matter."""


def has_learnt(record: DiagnosedRun) -> Iterator[Suspicion]:
    """After enough steps: neither a loss below the floor nor an error rate below that of chance."""
    if knows_nothing(record) and had_time(record) and not _on_its_way(record):
        yield suspect(
            "not_learnt", f"{how_it_stands(record)}.", step=record.metric(Metric.VAL_LOSS).steps[-1], support=0.9
        )


def input_is_heard(record: DiagnosedRun) -> Iterator[Suspicion]:
    """A trial's own labels are likelier than another trial's, unless the answers do not depend on the signal.

    Without any signal a recurrence still learns how sentences begin and how many phonemes a trial of its length has:
    its loss comes down to 0.88 of the input-blind floor, its error rate to 0.73 (measured on noise).
    """
    gains, losses = record.metric(Metric.VAL_PAIRING_GAIN), record.metric(Metric.VAL_LOSS)
    if len(gains) < 4 or not losses or gains.steps[-1] != losses.steps[-1] or not had_time(record):
        return
    gain, loss, half = gains.values[-1], losses.values[-1], len(gains) // 2
    grows = middle(gains.values[half:]) >= GROWS * max(middle(gains.values[:half]), 0.0)
    if gain < HEARD * loss and not grows:
        yield suspect(
            "input_ignored",
            f"{how_it_stands(record)}; a trial's own labels are {gain:.2g} nats likelier than another trial's, "
            f"{gain / loss:.1%} of the loss.",
            step=gains.steps[-1],
            support=0.85,
            severity="warning",
        )


def knows_nothing(record: DiagnosedRun) -> bool:
    """The last validation is what a model gives that does not look at the signal."""
    last = _last_validation(record)
    if last is None:
        return False
    _, loss, rate = last
    floor = record.floors.get("val")
    blind = floor is not None and loss >= BLIND * floor and (rate is None or rate >= CHANCE)
    return blind or (rate is not None and rate >= NOTHING)


def _on_its_way(record: DiagnosedRun) -> bool:
    """Below the floor and still falling: more steps are what such a run lacks."""
    losses, floor = record.metric(Metric.VAL_LOSS).values, record.floors.get("val")
    if floor is None or len(losses) < 2:
        return False
    return losses[-1] < BLIND * floor and losses[-1] < FALLS * min(losses[: len(losses) // 2])


def validation_is_like_training(record: DiagnosedRun) -> Iterator[Suspicion]:
    """The training trials are learnt, and no validation is better than answers that ignore the signal."""
    first = comparable_from(record)
    losses = record.metric(Metric.VAL_LOSS).between(first, float("inf"))
    train = record.metric(Metric.CTC_LOSS).between(first, float("inf"))
    train_floor, val_floor = record.floors.get("train"), record.floors.get("val")
    if len(train) < 4 or not losses or train_floor is None or val_floor is None:
        return
    now = middle(train.values[-max(2, len(train) // 8) :])
    step, best = min(losses, key=lambda entry: entry[1])
    if now > LEARNT_SHARE * train_floor or best < AT_FLOOR * val_floor:
        return
    evidence = (
        f"The training loss has come down to {now:.3g}, {now / train_floor:.2f} of the input-blind floor "
        f"{train_floor:.3g}; the validation loss is {best:.3g} at its best (step {step}), {best / val_floor:.2f} of "
        f"the floor {val_floor:.3g} of its trials, and {losses.values[-1]:.3g} at step {losses.steps[-1]}."
    )
    yield suspect("validation_unlike_training", evidence, step=losses.steps[0], support=0.9, about="metric_turns")


def how_it_stands(record: DiagnosedRun) -> str:
    """The last validation in a line, for a person to judge; empty where there was none."""
    last = _last_validation(record)
    if last is None:
        return ""
    step, loss, rate = last
    floor = record.floors.get("val")
    against = f", {loss / floor:.2f} of the input-blind floor {floor:.3g}" if floor else ""
    per = f"PER {rate:.2f}, " if rate is not None else ""
    return f"At step {step}: {per}validation loss {loss:.3g}{against}"


def _last_validation(record: DiagnosedRun) -> tuple[int, float, float | None] | None:
    """Step, `val/loss` in nats an utterance, and the `val/per` of that step where it was computed."""
    losses = record.metric(Metric.VAL_LOSS)
    return (losses.steps[-1], losses.values[-1], record.metric(Metric.VAL_PER).at(losses.steps[-1])) if losses else None


def had_time(record: DiagnosedRun) -> bool:
    """The last stage has had the steps that a slow start may take."""
    if record.config is None or record.metric(Metric.VAL_LOSS).steps[-1] - comparable_from(record) < FEWEST_STEPS:
        return False
    planned = planned_steps(record) or record.last_step
    patience = max(min(MOST_PATIENCE, planned / 3), LONG * planned)
    warmup = record.config.training.scheduler.warmup_steps
    return record.finished or record.last_step >= max(FEWEST_STEPS, warmup + patience)
