"""Rules about the size of the steps: schedule, learning rate, clipping, and a metric that turns round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.suspicion import JUMP, Suspicion, jump_after, middle, suspect
from sottovoce.diagnosis.thresholds import (
    AT_FLOOR,
    EVALUATIONS,
    FEWEST_SPIKES,
    HIGH_RATE,
    LARGE_EPS,
    SPIKE,
    SPIKE_WINDOW,
)
from sottovoce.runs.names import Event, Metric, validation_rate
from sottovoce.runs.record import Series
from sottovoce.training.schedules import learning_rate_factor

RATE_TOLERANCE: Final = 0.01
"""Recorded learning rates are means over a line's steps, computed here the same way."""
MEDIAN_OF: Final = 20
"""Records that a running median looks back on."""
WORSE: Final = 1.1
WORSE_BY: Final = 0.02
"""A metric is worse from a tenth and two points on; a smaller change is within the bootstrap's half-width."""
SLIGHTLY_WORSE: Final = 1.05
"""Half of that is enough where the validation loss rises too."""
LOSS_RISES: Final = 1.2
"""Last validation loss over the least."""
LEARNT: Final = 0.75
"""Chance symbols reach error rates of about 0.8, and the blank plateau that follows is worse without any fault."""
MOSTLY: Final = 0.95
"""Share of records above the clip limit: docs/failures/clip_before_unscale.md."""
STANDSTILL: Final = 30.0
STANDSTILL_WITH_EPS: Final = 5.0
"""Median norm over clip limit; with a large epsilon the step shrinks with the gradient, so that less is enough."""
EXPLODED: Final = 10.0
"""Norms that have grown this much are the fault themselves, not the limit."""
FEWEST_STEPS: Final = 100


def schedule_is_followed(record: DiagnosedRun) -> Iterator[Suspicion]:
    """B6: the recorded learning rate against the configured schedule, line by line."""
    expected = _expected_rates(record)
    name, rates = _rates(record)
    wrong = [
        (step, rate, expected[step])
        for step, rate in rates
        if step in expected and abs(rate - expected[step]) > RATE_TOLERANCE * max(expected.values())
    ]
    if len(wrong) < max(3, 0.1 * len(rates)):
        return
    step, rate, planned = max(wrong, key=lambda entry: abs(entry[1] - entry[2]))
    flat = max(rates.values) - min(rates.values) < 0.01 * max(rates.values)
    evidence = (
        f"{name} is {rate:.3g} at step {step}, where the schedule gives {planned:.3g}; {len(wrong)} of {len(rates)} "
        f"records differ, the first at step {wrong[0][0]}{', and the rate never changes' if flat else ''}."
    )
    resumed = [int(e["step"]) for e in record.events_named(Event.RESUMED) if e["step"] <= wrong[0][0]]
    if resumed and wrong[0][0] - resumed[-1] <= 2 * record.log_every and not flat:
        yield suspect("incomplete_resume", f"After the run was resumed at step {resumed[-1]}: {evidence}", support=0.8,
                      step=resumed[-1], about="schedule")  # fmt: skip
    else:
        yield suspect("schedule_not_stepped", evidence, step=wrong[0][0], support=0.95, about="schedule")


def _rates(record: DiagnosedRun) -> tuple[str, Series]:
    names = ("learning_rate/other", "learning_rate/encoder.other", "learning_rate/encoder.bias")
    name = next((n for n in names if n in record.series), names[0])
    return name, record.metric(name)


def _expected_rates(record: DiagnosedRun) -> dict[int, float]:
    """The mean rate of each line's steps by the configuration; empty where the run's length is not known."""
    config, log = record.config, record.log_every
    total = planned_steps(record)
    if config is None or (total is None and config.training.scheduler.max_steps is None):
        return {}
    if record.events_named(Event.ROLLED_BACK):
        return {}  # a rolled-back step may or may not have counted
    training, skipped = config.training, {int(e["step"]) for e in record.events_named(Event.STEP_SKIPPED)}
    staged = bool(training.stages)
    factors = {s.canonical_name: s.rate_of("encoder") if "encoder" in s.components else 0.0 for s in training.stages}
    stage_of = {step: b.name for b in record.stages for step in range(b.first + 1, b.last + 1)} if staged else {}
    expected: dict[int, float] = {}
    updates, window = 0, []
    for step in range(1, record.last_step + 1):
        if step not in skipped:
            share = factors.get(stage_of.get(step, ""), 0.0) if staged else 1.0
            factor = learning_rate_factor(updates, training.scheduler, total or 0)
            window.append(training.optimizer.lr * factor * share)
            updates += 1
        if step % log == 0 and window:
            expected[step] = sum(window) / len(window)
            window = []
    return expected


def planned_steps(record: DiagnosedRun) -> int | None:
    """Steps of the whole run; None where a stage in epochs has not begun yet."""
    if record.config is None:
        return None
    training = record.config.training
    if not training.stages:
        return training.steps
    begun = {b.name: int(b.event["num_steps"]) for b in record.stages}
    present = [
        s for s in training.stages if record.config.model.flow_bridge.enabled or "flow_bridge" not in s.components
    ]
    lengths = [begun.get(stage.canonical_name, stage.steps) for stage in present]
    return None if None in lengths else sum(length or 0 for length in lengths)


def steps_are_too_large(record: DiagnosedRun) -> Iterator[Suspicion]:
    """D3: the loss rises above where it began, or norms spike again and again."""
    loss, norms = record.metric(Metric.CTC_LOSS), record.metric(Metric.GRADIENT_NORM)
    if len(loss) < 5 or record.config is None:
        return
    if any(
        jump_after(loss, int(e["step"]))
        for e in record.events_named(Event.STAGE_STARTED, Event.UNFROZEN, Event.RESUMED)
    ):
        return  # that has a cause of its own
    rate = record.config.training.optimizer.lr
    half, fix = (
        f"training.optimizer.lr={rate / 2:g}",
        "halve it and go on from the last good checkpoint; warm up longer",
    )
    start = max(loss.values[:2])
    worst = max(loss, key=lambda entry: entry[1])
    spikes = _spikes(norms)
    late = middle(loss.values[-max(3, len(loss) // 4) :])
    lowest = min(middle(loss.values[i : i + 3]) for i in range(len(loss) - 2))
    evidence = ""
    rose = worst[1] > JUMP * start and worst[0] > loss.steps[1]
    if rose and (spikes or late > JUMP * start):  # one record alone may be a batch of long trials
        evidence = f"The CTC loss rose from {start:.3g} at the start to {worst[1]:.3g} at step {worst[0]}"
    elif spikes and late > JUMP * lowest:
        evidence = f"The CTC loss had come down to {lowest:.3g} and ended at {late:.3g}"
    if not evidence:
        return
    support = 0.8 + (0.1 if spikes else 0)
    if spikes:
        at = ", ".join(str(step) for step, _ in spikes[:3])
        evidence += f"; the gradient norm exceeded {SPIKE:g} running medians {len(spikes)} times (steps {at})"
    evidence += f"; learning rate {rate:g}, eps {record.config.training.optimizer.eps:g}."
    step = spikes[0][0] if spikes else worst[0]
    yield suspect(
        "learning_rate_too_high", evidence, step=step, support=support, override=half, fix=fix, about="divergence"
    )


def _spikes(norms: Series) -> list[tuple[int, float]]:
    """Records far above the running median, where there are several close together."""
    found = []
    for i in range(5, len(norms)):
        usual = middle(norms.values[max(0, i - MEDIAN_OF) : i])
        if norms.values[i] > SPIKE * usual > 0:
            found.append((norms.steps[i], norms.values[i] / usual))
    for (first, _), (last, _) in zip(found, found[FEWEST_SPIKES - 1 :], strict=False):
        if last - first <= SPIKE_WINDOW:
            return found
    return []


def metric_turns(record: DiagnosedRun) -> Iterator[Suspicion]:
    """D4 and overfitting: the validation metric has been worse than its best for three validations and more."""
    name = selection_metric(record)
    metric, loss = record.metric(name), record.metric(Metric.CTC_LOSS)
    first = comparable_from(record)
    metric, sign = metric.between(first, float("inf")), (-1 if name == Metric.VAL_WRA else 1)
    if len(metric) < EVALUATIONS + 1 or len(loss) < 4 or record.config is None:
        return
    best_step, best = min(metric, key=lambda entry: (sign * entry[1], entry[0]))
    after = metric.between(best_step, float("inf"))
    if len(after) < EVALUATIONS or best_step == metric.steps[0] or (best > LEARNT and sign > 0):
        return
    nats = record.metric(Metric.VAL_LOSS)
    floor = record.floors.get("val")
    if nats and floor is not None and min(nats.values) >= AT_FLOOR * floor:
        return  # it never was any good: nothing has turned
    if nats and nats.values[-1] < (nats.at(best_step) or 0.0):
        return  # more probable labels: what a decoder makes of them on the way to the blank plateau says little
    before, since = loss.between(-1, best_step).values[-3:], loss.values[-3:]
    if not before:
        return
    trend = middle(since) / max(middle(before), 1e-12)
    by = [sign * (value - best) for value in after.values[-EVALUATIONS:]]
    worse = all(value > max(WORSE_BY, (WORSE - 1) * abs(best)) for value in by)
    by_heart = bool(nats) and nats.values[-1] > LOSS_RISES * min(nats.values) and trend < 0.5
    slightly = middle(by) > max(WORSE_BY, (SLIGHTLY_WORSE - 1) * abs(best))
    if not worse and not (by_heart and slightly):
        return
    rates = _rates(record)[1]
    peak = max(rates.values, default=0.0)
    rate = middle(rates.between(best_step, float("inf")).values or (0.0,)) / peak if peak else 0.0
    evidence = (
        f"{name} was best at step {best_step} ({best:.3g}) and has been worse since ({after.values[-1]:.3g} at step "
        f"{after.steps[-1]}, {len(after)} validations), while the training loss went to "
        f"{trend:.0%} of what it was; the "
        f"learning rate since then: {rate:.0%} of its peak"
    )
    if trend > JUMP:
        return  # the training loss is lost too: learning_rate_too_high
    high, falls = rate >= HIGH_RATE, trend < 0.8
    options = {"schedule_degradation": 0.2, "overfitting": 0.2}
    options["schedule_degradation"] += (0.4 if high else 0.0) + (0.0 if falls else 0.3)
    options["overfitting"] += (0.5 if falls else 0.0) + (0.0 if high else 0.2)
    if trend < 0.5:
        options["overfitting"] += 0.1
    for code, support in options.items():
        if support > 0.4:
            yield suspect(code, evidence + ".", step=best_step, support=support, about="metric_turns")


def clip_leaves_nothing(record: DiagnosedRun) -> Iterator[Suspicion]:
    """The gradient is nearly always many times the clip limit."""
    norms = record.metric(Metric.GRADIENT_NORM)
    if record.config is None or not record.config.training.max_grad_norm or record.last_step < FEWEST_STEPS:
        return
    training, limit = record.config.training, record.config.training.max_grad_norm
    above = sum(value > limit for value in norms.values)
    if len(norms) < 5 or above < MOSTLY * len(norms) or middle(norms.values) > EXPLODED * norms.values[0]:
        return
    ratio = middle(norms.values) / limit
    if ratio < (STANDSTILL_WITH_EPS if training.optimizer.eps >= LARGE_EPS else STANDSTILL):
        return
    evidence = (
        f"The norm exceeds training.max_grad_norm={limit:g} in {above} of {len(norms)} records; its median is "
        f"{middle(norms.values):.3g}, {ratio:.0f} times the limit."
    )
    wider, fix = f"training.max_grad_norm={2 * middle(norms.values):.2g}", "about twice the usual norm"
    yield suspect("clipped_to_standstill", evidence, support=0.8, override=wider, fix=fix, step=norms.steps[0])


def steps_become_slow(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Steps take four times as long as at the start of the same stage, and do so for a quarter of it."""
    since = max(
        (int(e["step"]) for e in record.events_named(Event.STAGE_STARTED, Event.UNFROZEN, Event.RESUMED)), default=0
    )
    seconds = record.metric(Metric.STEP_SECONDS).between(since, float("inf"))
    if len(seconds) < 20:
        return
    quarter = len(seconds) // 4
    early, late = middle(seconds.values[1 : quarter + 1]), seconds.values[-quarter:]
    if min(late) > 2 * early and middle(late) > 4 * early and middle(late) - early > 0.05:
        evidence = (
            f"A step took {early:.3g} s after step {since} and takes {middle(late):.3g} s since step "
            f"{seconds.steps[-quarter]}."
        )
        yield suspect("throughput_drop", evidence, step=seconds.steps[-quarter], support=0.8)


def selection_metric(record: DiagnosedRun) -> str:
    """The metric that chose the best checkpoint in the stage that ran last."""
    if record.config is None:
        return Metric.VAL_PER
    training, name = record.config.training, record.config.training.selection_metric
    by_stage = {stage.canonical_name: stage.metric for stage in training.stages}
    if record.stages:
        name = by_stage.get(record.stages[-1].name) or name
    return validation_rate(name)


def comparable_from(record: DiagnosedRun) -> int:
    """Validations after this step were made with one decoder and one metric, in one stage with one set of parts."""
    return max((int(e["step"]) for e in record.events_named(Event.STAGE_STARTED, Event.UNFROZEN)), default=0)
