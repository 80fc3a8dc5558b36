"""Rules about the checkpoint that was kept, the metric that chose it, and records that cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.rules_schedule import comparable_from, planned_steps, selection_metric
from sottovoce.diagnosis.explainer.suspicion import Suspicion, suspect
from sottovoce.metrics import percent
from sottovoce.models.compose import build_model
from sottovoce.runs.names import TEST, VAL, Event, Metric
from sottovoce.runs.record import Evaluated, Series

AVERAGES: Final = (2, 3, 4, 5)
"""Lengths of the moving averages that are tried."""
FEWEST_RANKED: Final = 5
"""Checkpoints that a rank correlation needs: docs/failures/selection_gate.md."""
SPREAD: Final = 0.05
LOSS_BY_GATE: Final = 0.03
"""The reported metric must vary by five points, and the choice cost three, before the gate is worth a word."""
WORKS: Final = 0.9
"""A model with a higher error rate has not learnt enough for its checkpoints to be ranked."""


def kept_checkpoint_is_the_best(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G7, G8: the step of the best checkpoint against the least recorded metric."""
    best, name = record.checkpoints.get("best"), selection_metric(record)
    if best is None or record.events_named(Event.FLOW_BRIDGE_MEASURED) or best.state.get("use_flow_bridge"):
        return
    metric = record.metric(name).between(comparable_from(record), float("inf"))
    if not record.finished:  # the run may have been killed between a validation and its checkpoint
        metric = metric.between(-1, max(best.step, metric.steps[-2] if len(metric) > 1 else 0))
    kept = metric.at(best.step)
    if not metric or kept is None:
        return
    sign = -1 if name == Metric.VAL_WRA else 1
    least_step, least = min(metric, key=lambda entry: (sign * entry[1], entry[0]))
    if sign * (kept - least) <= 1e-9:
        return
    evidence = (
        f"checkpoints/best is of step {best.step} ({name} {kept:.4g}); the best recorded is {least:.4g} at step "
        f"{least_step}, {abs(kept - least):.3g} better."
    )
    by_loss = record.metric(Metric.VAL_LOSS).between(comparable_from(record), float("inf"))
    averaged = [n for n in AVERAGES if _least_average(metric, n, sign) == best.step]
    if by_loss and min(by_loss, key=lambda entry: entry[1])[0] == best.step:
        evidence_of_loss = f"{evidence} Step {best.step} has the least {Metric.VAL_LOSS}."
        yield suspect("selection_gate", evidence_of_loss, step=best.step, support=0.8, about="kept", severity="error")
    if averaged:
        what = f"{evidence} A moving average of {averaged[0]} validations chooses step {best.step}."
        yield suspect("moving_average_checkpoint", what, step=best.step, support=0.95, about="kept")
    else:
        yield suspect("moving_average_checkpoint", evidence, step=best.step, support=0.6, about="kept")


def _least_average(metric: Series, length: int, sign: int) -> int | None:
    if len(metric) <= length:
        return None
    means = [sum(metric.values[max(0, i + 1 - length) : i + 1]) / min(i + 1, length) for i in range(len(metric))]
    return min(zip(metric.steps, means, strict=True), key=lambda entry: (sign * entry[1], entry[0]))[0]


def gate_follows_the_metric(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G8: what chooses the checkpoint ranks the validations otherwise than the rate that is reported."""
    gate, target, since = selection_metric(record), Metric.VAL_WER, comparable_from(record)
    if gate == target:
        return
    rates, reported = (record.metric(name).between(since, float("inf")) for name in (gate, target))
    pairs = [(value, other) for step, value in rates if (other := reported.at(step)) is not None]
    if len(pairs) < FEWEST_RANKED or record.best_step is None:
        return
    others = [other for _, other in pairs]
    chosen = reported.at(record.best_step)
    if chosen is None or chosen > WORKS or max(others) - min(others) < SPREAD or chosen - min(others) < LOSS_BY_GATE:
        return
    if (rho := _rank_correlation([v for v, _ in pairs], others)) <= 0:
        evidence = (
            f"Over {len(pairs)} validations {gate} and {target} rank the checkpoints with a correlation of {rho:.2f}; "
            f"the chosen one (step {record.best_step}) has {target} {percent(chosen)}, the best has "
            f"{percent(min(others))}."
        )
        by_wer, fix, step = "training.selection_metric=wer", "choose by what is reported", record.best_step
        yield suspect("selection_gate", evidence, step=step, support=0.7, override=by_wer, fix=fix, about="kept")


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; 0 where one of them does not vary."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) + 1) / 2
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]


def selection_metric_exists(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G9: validations, but no best checkpoint; or the metric that should choose it is absent or not finite."""
    name, validated = selection_metric(record), record.series.get(Metric.VAL_LOSS, Series())
    raw = record.series.get(name, Series())
    if not validated:
        return
    bad = [step for step, value in raw if not math.isfinite(value)]
    first = validated.steps[0]
    known = ", ".join(sorted(n for n in record.series if n.startswith(VAL)))
    if not raw:
        evidence = f"{len(validated)} validations, the first at step {first}, gave {known}, and never {name}."
        yield suspect("metric_missing", evidence, step=first, support=0.95)
    elif bad:
        evidence = f"{name} is not finite at {len(bad)} of {len(raw)} validations, the first at step {bad[0]}."
        yield suspect("metric_missing", evidence, step=bad[0], support=0.9)
    elif record.best_step is None and (record.finished or len(validated) > 1):
        evidence = f"{len(validated)} validations from step {first} on gave {name}, but there is no checkpoints/best."
        yield suspect("metric_missing", evidence, step=first, support=0.9)


def test_split_was_used(record: DiagnosedRun) -> Iterator[Suspicion]:
    """H2: test rates among the records of training, or several settings tried on the test split alone."""
    during = [line for line in record.metrics if line.get("split") == "test" or line["name"].startswith(TEST)]
    if during:
        evidence = (
            f"{during[0]['name']} was recorded {len(during)} times while training, the first at step "
            f"{during[0]['step']}; the best checkpoint is of step {record.best_step}."
        )
        yield suspect("selection_on_test", evidence, step=int(during[0]["step"]), support=0.9)
    settings = {split: {d for s, _, d in _parts(record.evaluations) if s == split} for split in ("val", "test")}
    beams = {d for d in settings["test"] if "beam" in d}
    if len(beams) > 1 and not beams & settings["val"]:
        evidence = f"The test split was decoded with {len(beams)} settings ({', '.join(sorted(beams))}), val with none."
        yield suspect("selection_on_test", evidence, support=0.6, severity="warning")


def _parts(evaluations: Sequence[Evaluated]) -> list[tuple[str, str, str]]:
    return [e.name.partition(".") for e in evaluations]


def records_are_whole(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Files that could not be read, or only in part."""
    for what in record.damaged:
        yield suspect("record_damaged", f"{what}.", about=what)


def records_can_be(record: DiagnosedRun) -> Iterator[Suspicion]:
    """I8: steps that the run never logs at, steps beyond its end, and counts of parameters that the model has not."""
    config = record.config
    if config is None:
        return
    training, planned = config.training, planned_steps(record)
    ends = {b.last for b in record.stages} | {
        int(e["step"]) for e in record.events_named(Event.STAGE_FINISHED, Event.RUN_FINISHED)
    }
    trained = [s for name in (Metric.TRAIN_LOSS, Metric.GRADIENT_NORM) for s in record.series.get(name, Series()).steps]
    odd = [s for s in trained if s % training.log_every_steps]
    odd_val = [
        s
        for s in record.series.get(Metric.VAL_LOSS, Series()).steps
        if s % training.validate_every_steps and s not in ends
    ]
    known = ends | {record.last_step}
    odd_val = [s for s in odd_val if s not in known]
    if odd or odd_val:
        what = (
            f"train metrics are written every {training.log_every_steps} steps, but there are some of step {odd[0]}"
            if odd
            else f"validations come every {training.validate_every_steps} steps, but there is one of step {odd_val[0]}"
        )
        yield suspect("unprovenanced_log", f"By the configuration {what}.", step=(odd or odd_val)[0], support=0.9)
    steps = [s for series in record.series.values() for s in series.steps]
    if planned and steps and max(steps) > planned:
        evidence = f"The run is {planned} steps long, but there are records of step {max(steps)}."
        yield suspect("unprovenanced_log", evidence, step=max(steps), support=0.95)
    yield from _parameters_can_be(record)


def _parameters_can_be(record: DiagnosedRun) -> Iterator[Suspicion]:
    assert record.config is not None
    counts = [
        int(e["trainable_parameters"])
        for e in record.events_named(Event.STAGE_STARTED, Event.UNFROZEN)
        if "trainable_parameters" in e
    ]
    model = record.config.model
    if not counts or None in (model.num_channels, model.num_sessions, model.num_symbols):
        return
    with torch.device("meta"):
        total = sum(p.numel() for p in build_model(model).parameters())
    if max(counts) > total:
        evidence = f"The log speaks of {max(counts):,} trainable parameters; the configured model has {total:,}."
        yield suspect("unprovenanced_log", evidence, support=0.8, about="parameters")
    for event in record.events_named(Event.UNFROZEN):
        if event.get("trainable_before") == event.get("trainable_parameters"):
            evidence = (
                f"{', '.join(event['components'])} was released at step {event['step']}, but the count of trainable "
                f"parameters stays {event['trainable_parameters']:,}."
            )
            yield suspect("unprovenanced_log", evidence, step=int(event["step"]), support=0.9)
