"""What the run itself has recorded: findings of the checks and the monitor, and what the guard did."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.causes import causes, found
from sottovoce.diagnosis.explainer.run_record import RunRecord, Series
from sottovoce.diagnosis.explainer.suspicion import Suspicion
from sottovoce.diagnosis.explainer.targets import Target, look_up
from sottovoce.diagnosis.ranking import PLAIN_SYMPTOMS
from sottovoce.diagnosis.thresholds import INCIDENT_STEPS, INCIDENT_WINDOW
from sottovoce.training.stages import DECODER_OF

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
_TRIAL: Final = re.compile(r"(?:^|, )([^,]+?) \((-?inf|nan)\)")
_MORE: Final = re.compile(r" and (\d+) more$")


def recorded_findings(record: RunRecord) -> Iterator[Suspicion]:
    """Events that carry a code of the catalogue; of several with one code the first, with how often it was seen."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event["event"] in causes():
            seen.setdefault(event["event"], []).append(event)
    for code, events in seen.items():
        first = max(events, key=lambda e: float(e.get("support", 1.0)))
        again = f" Recorded {len(events)} times, last at step {events[-1]['step']}." if len(events) > 1 else ""
        entry = found(code, str(first.get("evidence", "")) + again, first.get("source", "monitor"))
        finding = Finding(
            code=code,
            severity=first.get("severity", entry.severity),
            evidence=entry.evidence,
            explanation=str(first.get("explanation", entry.explanation)),
            fix=str(first.get("fix", entry.fix)),
            source=entry.source,
            step=int(events[0]["step"]),
            support=float(first.get("support", 1.0)),
            tell_apart=str(first.get("tell_apart", entry.tell_apart)),
        )
        yield Suspicion(finding, code)


def guard_actions(record: RunRecord) -> Iterator[Suspicion]:
    """Steps that the guard skipped or undid, by its own reason."""
    actions = record.told("step_skipped", "rolled_back")
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
        )
        yield Suspicion(finding, code)


def _replay_of(record: RunRecord, steps: Sequence[int]) -> str:
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


def named_trials(evidence: str) -> tuple[dict[str, str], int]:
    """The trials that a guard's evidence names with their losses, and how many losses were not finite in all.

    >>> named_trials("s1/train/3 (inf), s1/train/4 rnnt (nan), s1/train/5 (inf) and 2 more")
    ({'s1/train/3': 'inf', 's1/train/4': 'nan', 's1/train/5': 'inf'}, 5)
    """
    more = _MORE.search(evidence)
    pairs = _TRIAL.findall(_MORE.sub("", evidence))
    trials = {}
    for name, value in pairs:
        trial, _, term = name.rpartition(" ")
        trials[trial if term in DECODER_OF else name] = value
    return trials, len(pairs) + (int(more[1]) if more else 0)


def why_the_loss_is_not_finite(record: RunRecord) -> Iterator[Suspicion]:
    """Section 1, step 3 of stability.md: which trials, what their targets need, else overflow or a lost model."""
    skips = [e for e in record.told("step_skipped") if e.get("code") == "nonfinite_loss"]
    if not skips:
        return
    parsed = [named_trials(str(event.get("evidence"))) for event in skips]
    values = {trial: value for trials, _ in parsed for trial, value in trials.items()}
    step = int(skips[0]["step"])
    batch = (
        record.config.training.batch_size * record.config.training.gradient_accumulation_steps if record.config else 0
    )
    if batch > 1 and all(count >= batch for _, count in parsed):
        yield from _everything_is_bad(record, step, batch)
        return
    often = Counter(trial for trials, _ in parsed for trial in trials)
    targets = look_up(record, list(values))
    named = ", ".join(f"{trial} ({values[trial]}, {count} ×)" for trial, count in often.most_common(3))
    if targets:
        yield from _from_targets(targets, named, step)
    elif "inf" in values.values():
        evidence = (
            f"The loss of {len(values)} trials is infinite whenever they are drawn ({named}), from step {step}; the "
            "others' is finite. Their lengths are not at hand."
        )
        yield _about_loss("ctc_infeasible", evidence, step, 0.7)
        yield _about_loss("label_padding", evidence, step, 0.6)
        yield _about_loss("frame_length_off_by_one", evidence, step, 0.4)
    elif values:
        evidence = f"The loss of {len(values)} trials is NaN, not infinite ({named}), from step {step}."
        yield _about_loss("nonfinite_features", evidence, step, 0.7)
        yield _about_loss("fp16_overflow", evidence, step, 0.4)


def _from_targets(targets: dict[str, Target], named: str, step: int) -> Iterator[Suspicion]:
    bad = {trial: t for trial, t in targets.items() if not t.finite_signal}
    if bad:
        yield _about_loss(
            "nonfinite_features", f"The signal of {_ids(bad)} is not finite; losses: {named}.", step, 0.95
        )
        return
    padded = {trial: t for trial, t in targets.items() if t.blank_labels}
    if padded:
        trial, target = next(iter(padded.items()))
        evidence = (
            f"{trial}: {target.blank_labels} of its {target.num_labels} labels are the blank, so that it needs "
            f"{target.needed} frames and has {target.frames}; losses: {named}."
        )
        yield _about_loss("label_padding", evidence, step, 0.95)
        return
    short = {trial: t for trial, t in targets.items() if t.frames < t.needed}
    if short:
        trial, target = next(iter(short.items()))
        evidence = (
            f"{trial}: {target.frames} frames for {target.num_labels} labels and {target.needed - target.num_labels} "
            f"repeats, which need {target.needed}; {len(short)} of the {len(targets)} failing trials are like that; "
            f"losses: {named}."
        )
        yield _about_loss("ctc_infeasible", evidence, step, 0.95)
        return
    margin = min(t.frames - t.needed for t in targets.values())
    evidence = f"All failing trials have frames enough by the formula (at least {margin} to spare); losses: {named}."
    yield _about_loss("frame_length_off_by_one", evidence, step, 0.6 if margin < 2 else 0.4)
    yield _about_loss("fp16_overflow", evidence, step, 0.5)


def _everything_is_bad(record: RunRecord, step: int, batch: int) -> Iterator[Suspicion]:
    norms = record.metric("train/gradient_norm").between(-1, step)
    evidence = f"From step {step} on the loss of every one of the {batch} trials of a batch is not finite."
    if _rising(norms):
        evidence += f" The gradient norm had grown from {min(norms.values):.3g} to {norms.values[-1]:.3g}."
        yield _about_loss("learning_rate_too_high", evidence, step, 0.8)
    else:
        yield _about_loss("fp16_overflow", evidence, step, 0.5)
        yield _about_loss("poisoned_weights", evidence, step, 0.5)


def why_the_gradient_is_not_finite(record: RunRecord) -> Iterator[Suspicion]:
    """Section 1, step 4: finite losses, so that the fault lies in the backward pass or in its number format."""
    skips = [e for e in record.told("step_skipped") if e.get("code") == "nonfinite_gradient"]
    if not skips or record.config is None:
        return
    step, names = int(skips[0]["step"]), str(skips[0].get("evidence"))
    times = f"{len(skips)} steps from {step} on" if len(skips) > 1 else f"step {step}"
    evidence = f"All losses are finite, but not the gradient of {names}, in {times}."
    if _rising(record.metric("train/gradient_norm").between(-1, step)):
        yield _about_gradient("learning_rate_too_high", f"{evidence} The norm had been growing.", step, 0.7)
        return
    halves = record.config.training.precision != "float32"
    if _MORE.search(names):  # what goes wrong in a loss reaches every layer below; a few parameters are another story
        yield _about_gradient("infinite_padding", evidence, step, 0.5 if halves else 0.7)
    if halves:
        yield _about_gradient("fp16_overflow", evidence, step, 0.6)
    if record.config.model.ssm is not None:
        yield _about_gradient("scan_overflow", evidence, step, 0.6)


def _about_loss(code: str, evidence: str, step: int, support: float) -> Suspicion:
    return Suspicion(found(code, evidence, "explainer", step=step, support=support), "nonfinite_loss")


def _about_gradient(code: str, evidence: str, step: int, support: float) -> Suspicion:
    return Suspicion(found(code, evidence, "explainer", step=step, support=support), "nonfinite_gradient")


def _rising(norms: Series) -> bool:
    """The last norms are four times what they were (the factor of a spike, stability.md D3)."""
    return len(norms) >= 3 and norms.values[-1] > 4 * min(norms.values)


def _ids(trials: dict[str, Target]) -> str:
    return ", ".join(list(trials)[:3])
