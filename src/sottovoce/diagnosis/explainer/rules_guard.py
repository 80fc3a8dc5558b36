"""What the run itself has recorded: findings of the checks and the monitor, and what the guard did."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from sottovoce.core.findings import Severity
from sottovoce.diagnosis.causes import causes, found, recorded
from sottovoce.diagnosis.explainer.bad_steps import BadStep, refused_steps
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.suspicion import Suspicion
from sottovoce.diagnosis.explainer.targets import Target, look_up
from sottovoce.diagnosis.ranking import PLAIN_SYMPTOMS
from sottovoce.diagnosis.thresholds import INCIDENT_STEPS, INCIDENT_WINDOW
from sottovoce.runs.names import Event, Metric
from sottovoce.runs.record import Series

SYMPTOM: Final = 0.5
"""Support of what the guard saw: it happened for certain, but it is what has to be explained."""
_GUARD_SUPPORT: Final = {
    "nonfinite_loss": SYMPTOM,
    "nonfinite_gradient": SYMPTOM,
    "gradient_spike": SYMPTOM,
    "zero_loss": 0.8,
    "poisoned_weights": 0.7,
    "stale_optimizer": 0.95,
}
FEW: Final = 3
"""A fault of a loss spoils more parameters than these."""
OWN_CAST: Final = (
    "Nothing that sottovoce ships leaves float32 here: look for a cast in code of your own (.half(), torch.float16), "
    "and replay the capsule with that code and without it."
)
"""Advice where numbers overflow in a run that is in float32 already."""


def recorded_findings(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Events that carry a code of the catalogue; of several with one code the first, with how often it was seen."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event["event"] in causes():
            seen.setdefault(event["event"], []).append(event)
    for code, events in seen.items():
        first = max(events, key=lambda e: float(e["support"]))
        again = f" Recorded {len(events)} times, last at step {events[-1]['step']}." if len(events) > 1 else ""
        finding = recorded(first)
        yield Suspicion(replace(finding, evidence=finding.evidence + again, step=int(events[0]["step"])), code)


def guard_actions(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Steps that the guard skipped or undid, by its own reason."""
    actions = record.events_named(Event.STEP_SKIPPED, Event.ROLLED_BACK)
    for code in dict.fromkeys(str(event["code"]) for event in actions if event.get("code") in causes()):
        events = [event for event in actions if event.get("code") == code]
        steps = [int(event["step"]) for event in events]
        where = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
        evidence = f"The guard refused {where} of {record.last_step}: {events[0].get('evidence')}."
        if record.aborted:
            evidence += " Then it ended the run."
        finding = found(
            code,
            evidence,
            "guard",
            step=steps[0],
            support=_GUARD_SUPPORT.get(code, SYMPTOM),
            severity=_severity(code, steps, record.aborted),
            fix=_replay_of(record, steps) if code in PLAIN_SYMPTOMS else "",
            trials=dict.fromkeys(trial for event in events for _, trial, _ in event["losses"]),
        )
        yield Suspicion(finding, code)


def _replay_of(record: DiagnosedRun, steps: Sequence[int]) -> str:
    """The command that takes a bad step apart, where one of `steps` was kept; empty: the catalogue's advice."""
    kept = [folder for folder in record.capsules if folder.name in map(str, steps)]
    if not kept:
        return ""
    folder = min(kept, key=lambda kept: int(kept.name))
    return f"sottovoce diagnose {folder} --replay finds the loss term, the trial, the module and the number format"


def _severity(code: str, steps: Sequence[int], aborted: bool) -> Severity | None:
    """None: the catalogue's. A single event is milder than an incident."""
    close = any(b - a < INCIDENT_WINDOW for a, b in zip(steps, steps[INCIDENT_STEPS - 1 :], strict=False))
    in_a_row = any(b - a == 1 for a, b in itertools.pairwise(steps))
    if aborted or close or in_a_row or code not in ("nonfinite_loss", "nonfinite_gradient", "gradient_spike"):
        return None
    return "note" if code == "gradient_spike" else "warning"


def why_the_loss_is_not_finite(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Which trials, what their signals and targets are, else overflow."""
    steps = refused_steps(record, "nonfinite_loss")
    yield from _from_signals(steps, "nonfinite_loss")
    known = {trial for step in steps for trial in step.culprits}
    rest = [s for s in steps if not known & s.values.keys() and (s.named_all or not known)]
    if not rest:
        return
    batch = (
        record.config.training.batch_size * record.config.training.gradient_accumulation_steps if record.config else 0
    )
    if batch > 1 and all(step.count >= (len(step.batch) or batch) for step in rest):
        yield from _everything_is_bad(record, rest)
        return
    values = {trial: value for step in rest for trial, value in step.values.items()}
    often = Counter(trial for step in rest for trial in step.values)
    named = ", ".join(f"{trial} ({values[trial]}, {count} ×)" for trial, count in often.most_common(3))
    named += _unread(rest)
    infinite = [trial for trial, value in values.items() if value != "nan"]
    first = rest[0].step
    targets = look_up(record, list(values))
    if targets:
        yield from _from_targets(targets, infinite, named, first)
    elif infinite:
        evidence = (
            f"The loss of {len(infinite)} trials is infinite whenever they are drawn ({named}), from step {first}; the "
            "others' is finite. Their lengths are not at hand."
        )
        yield _about_loss("ctc_infeasible", evidence, first, 0.7, infinite)
        yield _about_loss("label_padding", evidence, first, 0.6, infinite)
        yield _about_loss("frame_length_off_by_one", evidence, first, 0.4, infinite)
    elif values and not any(step.signals for step in rest):
        evidence = f"The loss of {len(values)} trials is NaN, not infinite ({named}), from step {first}."
        yield _about_loss("nonfinite_features", evidence, first, 0.7, values)
    if values and not infinite:
        yield from _numbers_overflow(record, rest, f"The loss of {len(values)} trials is NaN ({named}).")


def _from_signals(steps: Sequence[BadStep], about: str) -> Iterator[Suspicion]:
    """The trials whose own values, as a capsule holds them, are enough."""
    told, looked_at = [step for step in steps if step.culprits], [step for step in steps if step.signals]
    for code, finite in (("nonfinite_features", False), ("scale_outlier", True)):
        found_in = {
            t: (s, signal) for s in reversed(told) for t, signal in s.culprits.items() if signal.finite == finite
        }
        if not found_in:
            continue
        often = Counter(trial for step in told for trial in step.culprits)
        trial = max(found_in, key=lambda t: (often[t], found_in[t][1].largest))
        step, signal = found_in[trial]
        more = f" {len(found_in) - 1} other trials are like it." if len(found_in) > 1 else ""
        evidence = (
            f"{trial}: {signal.told}. It is in {often[trial]} of the {len(looked_at)} refused steps that a capsule "
            f"shows, first in step {step.step}"
        )
        if step.values:
            evidence += f", where the losses of {step.count} of {len(step.batch)} trials were not finite"
        evidence += f".{more}{_unread(steps)}"
        fix = signal.remedy if finite else ""
        finding = found(
            code, evidence, "explainer", step=step.step, support=0.95, fix=fix, severity="error", trials=found_in
        )
        yield Suspicion(finding, about)


def _unread(steps: Sequence[BadStep]) -> str:
    """Which capsules could have told more."""
    return "".join(f" {step.damage}." for step in steps if step.damage)


def _from_targets(targets: dict[str, Target], infinite: Sequence[str], named: str, step: int) -> Iterator[Suspicion]:
    """What the data set says of the failing trials; only an infinite loss can come of a target that does not fit."""
    bad = {trial: t for trial, t in targets.items() if not t.finite_signal}
    if bad:
        yield _about_loss(
            "nonfinite_features", f"The signal of {_ids(bad)} is not finite; losses: {named}.", step, 0.95, bad
        )
        return
    targets = {trial: t for trial, t in targets.items() if trial in infinite}
    if not targets:
        return
    padded = {trial: t for trial, t in targets.items() if t.blank_labels}
    if padded:
        trial, target = next(iter(padded.items()))
        evidence = (
            f"{trial}: {target.blank_labels} of its {target.num_labels} labels are the blank, so that it needs "
            f"{target.needed} frames and has {target.frames}; losses: {named}."
        )
        yield _about_loss("label_padding", evidence, step, 0.95, padded)
        return
    short = {trial: t for trial, t in targets.items() if t.frames < t.needed}
    if short:
        trial, target = next(iter(short.items()))
        evidence = (
            f"{trial}: {target.frames} frames for {target.num_labels} labels and {target.needed - target.num_labels} "
            f"repeats, which need {target.needed}; {len(short)} of the {len(targets)} failing trials are like that; "
            f"losses: {named}."
        )
        yield _about_loss("ctc_infeasible", evidence, step, 0.95, short)
        return
    margin = min(t.frames - t.needed for t in targets.values())
    evidence = f"All failing trials have frames enough by the formula (at least {margin} to spare); losses: {named}."
    yield _about_loss("frame_length_off_by_one", evidence, step, 0.6 if margin < 2 else 0.4, targets)


def _everything_is_bad(record: DiagnosedRun, steps: Sequence[BadStep]) -> Iterator[Suspicion]:
    step = steps[0].step
    norms = record.metric(Metric.GRADIENT_NORM).between(-1, step)
    evidence = f"From step {step} on the loss of every trial of a batch is not finite ({steps[0].count} at first)."
    evidence += _unread(steps)
    if _rising(norms):
        evidence += f" The gradient norm had grown from {min(norms.values):.3g} to {norms.values[-1]:.3g}."
        yield _about_loss("learning_rate_too_high", evidence, step, 0.8)
        return
    yield from _numbers_overflow(record, steps, evidence)


def _numbers_overflow(record: DiagnosedRun, steps: Sequence[BadStep], evidence: str) -> Iterator[Suspicion]:
    """Half precision, where the run uses it; of a run in float32 only where its capsules acquit the signals."""
    step, looked_at = steps[0].step, [s for s in steps if s.signals]
    if looked_at:
        largest = max(signal.largest for s in looked_at for signal in s.signals.values())
        common = set.intersection(*(set(s.batch) for s in looked_at))
        alike = f"; in all of them: {', '.join(sorted(common)[:3])}" if common and len(looked_at) > 1 else ""
        evidence += f" {len(looked_at)} capsules show its signals: ordinary, at most {largest:.3g}{alike}."
    if in_half_precision(record):
        yield _about_loss("fp16_overflow", evidence, step, 0.5)
    elif looked_at:
        evidence += " The run itself is in float32."
        finding = found("fp16_overflow", evidence, "explainer", step=step, support=0.5, fix=OWN_CAST)
        yield Suspicion(finding, "nonfinite_loss")
        if record.config is not None and record.config.model.ssm is not None:
            yield _about_loss("scan_overflow", evidence, step, 0.5)


def in_half_precision(record: DiagnosedRun) -> bool:
    """The run computed in bfloat16: by its setting, or where that is `auto` by the machine it ran on."""
    if record.config is None or record.config.training.precision != "auto":
        return record.config is not None and record.config.training.precision == "bfloat16"
    machine = record.environment.get("machine")
    has_gpu = isinstance(machine, dict) and bool(machine.get("gpus"))
    return has_gpu and record.config.trainer.accelerator != "cpu"


def why_the_gradient_is_not_finite(record: DiagnosedRun) -> Iterator[Suspicion]:
    """Section 1, step 4: finite losses, so that the fault lies in the backward pass or in its number format."""
    steps = refused_steps(record, "nonfinite_gradient")
    yield from _from_signals(steps, "nonfinite_gradient")
    explained = any(step.culprits for step in steps)
    rest = {s.step for s in steps if not s.culprits and (s.signals or not explained)}
    skips = [
        e for e in record.events_named(Event.STEP_SKIPPED) if e["code"] == "nonfinite_gradient" and e["step"] in rest
    ]
    if not skips or record.config is None:
        return
    step, names = int(skips[0]["step"]), str(skips[0].get("evidence"))
    times = f"{len(skips)} steps from {step} on" if len(skips) > 1 else f"step {step}"
    evidence = f"All losses are finite, but not the gradient of {names}, in {times}."
    if _rising(record.metric(Metric.GRADIENT_NORM).between(-1, step)):
        yield _about_gradient("learning_rate_too_high", f"{evidence} The norm had been growing.", step, 0.7)
        return
    halves = in_half_precision(record)
    if (
        skips[0]["num_parameters"] > FEW
    ):  # what goes wrong in a loss reaches every layer below; a few parameters are another story
        yield _about_gradient("infinite_padding", evidence, step, 0.5 if halves else 0.7)
    if halves:
        yield _about_gradient("fp16_overflow", evidence, step, 0.6)
    if record.config.model.ssm is not None:
        yield _about_gradient("scan_overflow", evidence, step, 0.6)


def _about_loss(code: str, evidence: str, step: int, support: float, trials: Iterable[str] = ()) -> Suspicion:
    finding = found(code, evidence, "explainer", step=step, support=support, trials=trials)
    return Suspicion(finding, "nonfinite_loss")


def _about_gradient(code: str, evidence: str, step: int, support: float) -> Suspicion:
    return Suspicion(found(code, evidence, "explainer", step=step, support=support), "nonfinite_gradient")


def _rising(norms: Series) -> bool:
    """The last norms are four times what they were (the factor of a spike: docs/failures/gradient_spike.md)."""
    return len(norms) >= 3 and norms.values[-1] > 4 * min(norms.values)


def _ids(trials: dict[str, Target]) -> str:
    return ", ".join(list(trials)[:3])
