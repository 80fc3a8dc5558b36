"""From what isolation found to the cause, by the verdict procedure of stability.md section 1: first match wins.

1 are all weights finite? 2 does every gradient belong to the optimiser? 3 is a trial's loss infinite (targets, then
lengths, then overflow)? 4 is only the gradient bad (half precision, a lattice's infinities, a scan)? 5 is it only far
too large (this batch, or these weights)?
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import Capsule
from sottovoce.diagnosis.capsules.isolation import Isolation, Utterance
from sottovoce.diagnosis.causes import found

PADDING_RUN: Final = 3
"""Equal symbols at a target's end that betray padding: no word of any lexicon ends in three equal phonemes."""
LARGE_ON_FRESH_WEIGHTS: Final = 0.5
"""A spike that is at least this share as large on the weights the run began with is the batch's, not the weights'."""
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
        which = "together only, the trials" if isolated.together else "trial" + "s" * (len(isolated.trials) > 1)
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
    bad = {t: loss for (loss, t), nats in isolated.whole.losses.items() if not math.isfinite(nats) or nats == 0}
    findings: dict[tuple[str, str], Finding] = {}
    for trial, loss in bad.items():
        utterance = isolated.utterances[trial]
        nats = isolated.whole.losses[loss, trial]
        code, told, support = _of_utterance(capsule, isolated, utterance, loss, nats)
        evidence = f"{trial}: {loss} loss {nats:g}: {told}."
        findings.setdefault((code, ""), found(code, evidence, "explainer", step=capsule.step, support=support))
        if nats == 0 and code in ("ctc_infeasible", "label_padding", "frame_length_off_by_one"):
            hidden = f"{trial}: the {loss} loss of a target that cannot fit is 0 instead of infinite."
            findings.setdefault(
                ("zero_infinity", ""), found("zero_infinity", hidden, "explainer", step=capsule.step, support=0.9)
            )
    return sorted(findings.values(), key=lambda finding: -finding.support)


def _of_utterance(
    capsule: Capsule, isolated: Isolation, utterance: Utterance, loss: str, nats: float
) -> tuple[str, str, float]:
    """Code, evidence and support of a trial whose loss is not finite, or exactly 0."""
    labels = utterance.labels
    if not utterance.features_finite:
        return "nonfinite_features", "its signal holds numbers that are not finite", 1.0
    num_symbols = capsule.config.model.num_symbols or 0
    strange = [label for label in labels if not 0 <= label < num_symbols]
    if strange:
        return "label_out_of_range", f"label {strange[0]} is no symbol of the model", 1.0
    fits = f"{len(labels)} labels need {utterance.needed} frames, the model gives {utterance.frames}"
    infeasible = utterance.frames < utterance.needed and loss == "ctc"
    run = len(next(iter([list(group) for _, group in itertools.groupby(reversed(labels))]), []))
    padded = PADDING_RUN <= run < len(labels)
    if padded or capsule.blank in labels:
        which = f"the last {run} labels are all {labels[-1]}" if padded else "the blank is a label"
        return "label_padding", f"{which}; {fits}", 1.0
    if utterance.longest_frames != utterance.real_frames:
        off = utterance.longest_frames - utterance.real_frames
        return "frame_length_off_by_one", f"the formula gives {off:+d} frames of what comes out; {fits}", 1.0
    if infeasible:
        return "ctc_infeasible", fits, 1.0
    if loss == "rnnt" and utterance.frames < 1:
        return "transducer_lengths", "the trial has no frame", 1.0
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
    if not isolated.whole.bad_gradients:
        return []
    code, told, support = _overflow(isolated, "nonfinite_gradient")
    if code == "nonfinite_gradient" and isolated.by_dtype.get("float64", True):
        operation = isolated.operation
        if isolated.forward is None and (operation is None or operation.backward or operation.from_infinity):
            code, support = "infinite_padding", 0.9 if operation is not None else 0.6
    names = ", ".join(isolated.whole.bad_gradients[:3])
    evidence = f"All losses are finite, {len(isolated.whole.bad_gradients)} gradients are not ({names}): {told}."
    return [found(code, evidence, "explainer", step=capsule.step, support=support)]


def _spike(capsule: Capsule, isolated: Isolation) -> list[Finding]:
    if capsule.verdict.cause != "gradient_spike" or isolated.fresh is None:
        return []
    now, fresh = isolated.whole.norm, isolated.fresh.norm
    compared = (
        f"norm {now:.3g}, {fresh:.3g} of the same batch on the weights that the run began with; {where(isolated)}."
    )
    if fresh >= LARGE_ON_FRESH_WEIGHTS * now:
        return [found("gradient_spike", compared, "explainer", step=capsule.step, support=0.7)]
    return [found("learning_rate_too_high", compared, "explainer", step=capsule.step, support=0.6)]
