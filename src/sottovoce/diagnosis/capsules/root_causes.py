"""From what isolation found to the cause, by questions in this order; the first that is answered wins.

1 are all weights finite? 2 does every gradient belong to the optimiser? 3 is a trial's loss infinite (targets, then
lengths, then overflow)? 4 is only the gradient bad (half precision, a lattice's infinities, a scan)? 5 is it only far
too large (this batch, or these weights)?
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Final

import torch

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.capsules.capsule import Capsule
from sottovoce.diagnosis.capsules.isolation import Isolation, Utterance
from sottovoce.diagnosis.capsules.signals import Signal
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.ranking import PLAIN_SYMPTOMS

PADDING_RUN: Final = 3
"""Equal symbols at a target's end that betray padding: no word of any lexicon ends in three equal phonemes."""
LARGE_ON_FRESH_WEIGHTS: Final = 0.5
"""A spike that is at least this share as large on the weights the run began with is the batch's, not the weights'."""
SPOILS_A_STEP: Final[Severity] = "error"
"""Severity of a signal out of scale, a mere warning otherwise, once it has cost a step."""
BEYOND_THE_REPLAY: Final = (
    "The replay cannot narrow it down further: see what the operation named above makes of its numbers. Where float64 "
    "is fine, make them smaller: normalise the features, or halve training.optimizer.lr."
)
"""Advice where even the replay finds only what the guard has seen."""
SCANS: Final = "sottovoce.models.ssm"


def root_causes(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    """The cause of a step that came back bad, best supported first; one finding, or several of one kind."""
    for rule in (_weights, _owners, _losses, _gradients, _spike):
        if findings := rule(capsule, isolated):
            return findings
    return []


def where(isolated: Isolation) -> str:
    """Terms, trials, modules and dtypes in one line."""
    said = []
    if isolated.terms:
        said.append(f"loss term {', '.join(isolated.terms)}")
    if isolated.trials:
        which = "trial" + "s" * (len(isolated.trials) > 1)
        if isolated.together:
            which = "together only, the trials" if len(isolated.trials) > 1 else "only where it is drawn twice, trial"
        more = f" and {len(isolated.trials) - 3} more" if len(isolated.trials) > 3 else ""
        said.append(f"{which} {', '.join(isolated.trials[:3])}{more}")
    for name, site in (("first module", isolated.forward or isolated.outlier), ("backward", isolated.backward)):
        if site is not None:
            said.append(f"{name} {site}")
    if isolated.operation is not None:
        said.append(f"first operation {isolated.operation}")
    if isolated.by_dtype:
        said.append(", ".join(f"{'bad' if bad else 'fine'} in {dtype}" for dtype, bad in isolated.by_dtype.items()))
    if isolated.fresh is not None:
        said.append(f"{'bad' if isolated.fresh.is_bad else 'fine'} on the weights that the run began with")
    return "; ".join(said)


def _weights(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    if not isolated.bad_weights:
        return []
    names = ", ".join(isolated.bad_weights[:3])
    evidence = (
        f"{len(isolated.bad_weights)} tensors of the model were not finite before the step ({names}); its batch is "
        "innocent."
    )
    return [found("poisoned_weights", evidence, "explainer", step=capsule.step)]


def _owners(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    strays = {name: g for name, g in capsule.verdict.gradients.items() if name not in capsule.owned}
    if not strays or capsule.verdict.cause not in ("stale_optimizer", "nonfinite_gradient"):
        return []
    ours = math.hypot(*(g.norm for name, g in capsule.verdict.gradients.items() if name in capsule.owned))
    theirs = math.hypot(*(g.norm for g in strays.values()))
    names = ", ".join(list(strays)[:3]) + (f" and {len(strays) - 3} more" if len(strays) > 3 else "")
    evidence = (
        f"{len(strays)} parameters had a gradient but belong to no optimiser ({names}); norm {theirs:.3g}, against "
        f"{ours:.3g} of the optimiser's own."
    )
    return [found("stale_optimizer", evidence, "explainer", step=capsule.step)]


def _losses(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    bad = {key: nats for key, nats in isolated.whole.losses.items() if not math.isfinite(nats) or nats == 0}
    guilty = {key: nats for key, nats in bad.items() if nats == 0 or key[1] in isolated.trials}
    findings: dict[str, Finding] = {}
    for (loss, trial), nats in (guilty or bad).items():  # a trial that spoils the whole batch has innocent company
        utterance = isolated.utterances[trial]
        code, told, support = _of_utterance(capsule, isolated, utterance, loss, nats)
        evidence = f"{trial}: {loss} loss {nats:g}: {told}."
        findings.setdefault(code, _finding(capsule, code, evidence, support, utterance.signal, [trial]))
        if nats == 0 and code in ("ctc_infeasible", "label_padding", "frame_length_off_by_one"):
            hidden = f"{trial}: the {loss} loss of a target that cannot fit is 0 instead of infinite."
            findings.setdefault("zero_infinity", _finding(capsule, "zero_infinity", hidden, 0.9, trials=[trial]))
    causes = [finding for finding in findings.values() if finding.code not in PLAIN_SYMPTOMS]
    return sorted(causes or findings.values(), key=lambda finding: -finding.support)


def _finding(
    capsule: Capsule,
    code: str,
    evidence: str,
    support: float,
    signal: Signal | None = None,
    trials: Iterable[str] = (),
) -> Finding:
    """A finding of the replay; where it is only a symptom still, the advice is not to replay."""
    fix: str = ""
    severity: Severity | None = None
    if code in PLAIN_SYMPTOMS:
        fix = BEYOND_THE_REPLAY
    elif code == "scale_outlier" and signal is not None:
        fix, severity = signal.remedy, SPOILS_A_STEP
    return found(
        code, evidence, "explainer", step=capsule.step, support=support, fix=fix, severity=severity, trials=trials
    )


def _of_utterance(
    capsule: Capsule, isolated: Isolation, utterance: Utterance, loss: str, nats: float
) -> tuple[str, str, float]:
    """Code, evidence and support of a trial whose loss is not finite, or exactly 0."""
    labels, signal = utterance.labels, utterance.signal
    if not signal.finite:
        return "nonfinite_features", signal.told, 1.0
    out_of_scale = "scale_outlier", f"{signal.told}; {where(isolated)}", 0.95
    if signal.out_of_scale and math.isnan(nats):  # a target that does not fit makes a loss infinite, never NaN
        return out_of_scale
    fits = f"{len(labels)} labels need {utterance.needed} frames, the model gives {utterance.frames}"
    infeasible = utterance.frames < utterance.needed and loss == "ctc"
    run = len(next(iter([list(group) for _, group in itertools.groupby(reversed(labels))]), []))
    if PADDING_RUN <= run < len(labels):
        return "label_padding", f"the last {run} labels are all {labels[-1]}; {fits}", 1.0
    if utterance.longest_frames != utterance.real_frames:
        off = utterance.longest_frames - utterance.real_frames
        return "frame_length_off_by_one", f"the formula gives {off:+d} frames of what comes out; {fits}", 1.0
    if infeasible:
        return "ctc_infeasible", fits, 1.0
    if loss == "rnnt" and utterance.frames < 1:
        return "transducer_lengths", "the trial has no frame", 1.0
    if signal.out_of_scale:
        return out_of_scale
    if nats == 0:
        return "zero_loss", f"the target fits ({fits}), so that a loss of 0 was never computed", 0.8
    return _overflow(isolated, "nonfinite_loss")


def _overflow(isolated: Isolation, otherwise: str) -> tuple[str, str, float]:
    """Code, evidence and support where the numbers themselves overflow."""
    operation, told = isolated.operation, where(isolated)
    sites = [site for site in (operation, isolated.forward, isolated.backward) if site is not None]
    if operation is not None and operation.low_input:
        return "fp16_underflow", told, 0.9
    if any(site.dtype == torch.float16 for site in sites):
        return "fp16_overflow", told, 1.0
    if isolated.by_dtype.get("bfloat16") and not isolated.by_dtype["float32"]:
        return "fp16_overflow", told, 0.7
    if isolated.module_source.startswith(SCANS) and not isolated.by_dtype.get("float64", True):
        return "scan_overflow", told, 1.0
    if isolated.module_source.startswith(SCANS) and isolated.forward is not None and isolated.forward.frame:
        return "scan_overflow", told, 0.8
    return otherwise, told, 0.5


def _gradients(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    whole = isolated.whole
    if not (whole.bad_gradients or whole.norm_overflows):
        return []
    which = "the gradients" if whole.bad_gradients else f"the square of the gradient's norm, {whole.norm:.3g}"
    if findings := _signals(capsule, isolated, f"All losses are finite, but not {which}"):
        return findings
    if not whole.bad_gradients:
        told = f"All losses are finite, but not {which}, in float32: {where(isolated)}."
        return [_finding(capsule, "nonfinite_gradient", told, 0.5)]
    code, told, support = _overflow(isolated, "nonfinite_gradient")
    if code == "nonfinite_gradient" and isolated.by_dtype.get("float64", True):
        operation = isolated.operation
        if isolated.forward is None and (operation is None or operation.backward or operation.from_infinity):
            code, support = "infinite_padding", 0.9 if operation is not None else 0.6
    names = ", ".join(isolated.whole.bad_gradients[:3])
    evidence = f"All losses are finite, {len(isolated.whole.bad_gradients)} gradients are not ({names}): {told}."
    return [_finding(capsule, code, evidence, support)]


def _signals(capsule: Capsule, isolated: Isolation, seen: str) -> list[Finding]:
    """The trials that were isolated have signals out of scale."""
    signals = {trial: isolated.utterances[trial].signal for trial in isolated.trials}
    odd = {trial: signal for trial, signal in signals.items() if signal.out_of_scale}
    if not odd:
        return []
    trial, signal = max(odd.items(), key=lambda item: item[1].largest)
    evidence = f"{seen}; {trial}: {signal.told}; {where(isolated)}."
    return [_finding(capsule, "scale_outlier", evidence, 0.9, signal, odd)]


def _spike(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    if capsule.verdict.cause != "gradient_spike" or isolated.fresh is None:
        return []
    now, fresh = isolated.whole.norm, isolated.fresh.norm
    if findings := _signals(capsule, isolated, f"The norm is {now:.3g}"):
        return findings
    compared = (
        f"norm {now:.3g}, {fresh:.3g} of the same batch on the weights that the run began with; {where(isolated)}."
    )
    if fresh >= LARGE_ON_FRESH_WEIGHTS * now:
        return [found("gradient_spike", compared, "explainer", step=capsule.step, support=0.7)]
    return [_finding(capsule, "learning_rate_too_high", compared, 0.6)]
