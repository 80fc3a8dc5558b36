"""Rules about the values of the losses: exact zeros, NaN that got through, terms that do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.suspicion import Suspicion, middle, suspect
from sottovoce.runs.names import Metric
from sottovoce.training.branches import BRANCHES, CTC, TRANSDUCER

ZERO_STEPS: Final = 20
"""A loss that is exactly 0 for more steps was never computed: docs/failures/zero_loss.md."""
TERMS_DIFFER: Final = 4.0
"""Transducer over CTC loss near initialisation is 1.17 to 1.27 at equal reduction
(docs/failures/reduction_mismatch.md); CTC falls a little within the steps of the first record, so that 2 would be too
strict here."""
WEIGHTS_DIFFER: Final = 50.0
"""Ratio of loss weights that leaves one loss less than a fiftieth of the total."""
TOTAL_TOLERANCE: Final = 0.02


def zero_terms(record: DiagnosedRun) -> Iterator[Suspicion]:
    """E5, and I1 or A2 where zeros come and go."""
    for name in (*(branch.metric for branch in BRANCHES.values()), Metric.VAL_LOSS):
        values = record.metric(name)
        zeros = [step for step, value in values if value == 0.0]
        steps = len(zeros) * (1 if name == Metric.VAL_LOSS else record.log_every)
        if not zeros or (name != Metric.VAL_LOSS and steps <= ZERO_STEPS and len(zeros) < len(values)):
            continue
        always = len(zeros) == len(values)
        evidence = (
            f"{name} is exactly 0 in {len(zeros)} of {len(values)} records, the first at step {zeros[0]}: no model "
            "reaches that."
        )
        options = (
            {"zero_loss": 0.9, "swallowed_exception": 0.5}
            if always
            else {"swallowed_exception": 0.7, "zero_infinity": 0.6, "zero_loss": 0.5}
        )
        for code, support in options.items():
            yield suspect(code, evidence, step=zeros[0], support=support, about=f"zero {name}")


def nonfinite_series(record: DiagnosedRun) -> Iterator[Suspicion]:
    """A5: from some step on the recorded loss itself is not finite, which a guarded run cannot show."""
    series = record.series.get(Metric.TRAIN_LOSS)
    if series is None:
        return
    bad = [step for step, value in series if not math.isfinite(value)]
    if not bad:
        return
    to_the_end = bad == [step for step in series.steps if step >= bad[0]]
    good = [(step, value) for step, value in series if step < bad[0]]
    before = f"{good[-1][1]:.4g} at step {good[-1][0]}" if good else "never finite"
    evidence = (
        f"{Metric.TRAIN_LOSS} is not finite in {len(bad)} of {len(series)} records, "
        f"{'all' if to_the_end else 'the first'} from step {bad[0]} on (before: {before})."
    )
    if to_the_end and len(bad) > 1:
        yield suspect("poisoned_weights", evidence, step=bad[0], support=0.9, about="nonfinite_series")
    yield suspect("nonfinite_loss", evidence, step=bad[0], support=0.6, about="nonfinite_series")


def terms_fit_together(record: DiagnosedRun) -> Iterator[Suspicion]:
    """E1: the two recognisers' losses at their first sight; and the total against its terms."""
    ctc, transducer = record.metric(CTC.metric), record.metric(TRANSDUCER.metric)
    if ctc and transducer and ctc.values[0] > 0:
        ratio = transducer.values[0] / ctc.values[0]
        if ratio > TERMS_DIFFER or ratio < 1 / TERMS_DIFFER:
            labels = _labels_per_trial(record)
            known = f" (labels of a trial: {labels:.0f} on average)" if labels else ""
            evidence = (
                f"When first computed, the transducer's loss was {transducer.values[0]:.4g} (step "
                f"{transducer.steps[0]}) "
                f"and CTC's {ctc.values[0]:.4g} (step {ctc.steps[0]}): a factor of {ratio:.3g}{known}; with equal "
                "normalisation it is 1.2."
            )
            like_labels = bool(labels) and 0.5 < max(ratio, 1 / ratio) / (1.2 * labels) < 2
            support = 0.9 if like_labels else 0.7
            yield suspect("reduction_mismatch", evidence, step=transducer.steps[0], support=support)
    yield from _total_is_the_sum(record)


def _total_is_the_sum(record: DiagnosedRun) -> Iterator[Suspicion]:
    """With one loss an utterance and one stage, the total is the weighted term."""
    config = record.config
    if config is None or config.training.loss_normalisation != "per_utterance" or len(record.stages) != 1:
        return
    weights = record.stages[0].weights
    if list(weights) != ["ctc"]:
        return
    total, term = record.metric(Metric.TRAIN_LOSS), record.metric(CTC.metric)
    ratios = [
        value / (weights["ctc"] * other) for step, value in total if (other := term.at(step)) is not None and other > 0
    ]
    if len(ratios) < 3 or abs(middle(ratios) - 1) < TOTAL_TOLERANCE:
        return
    ratio, parts = middle(ratios), config.training.gradient_accumulation_steps
    of_records = f"(median of {len(ratios)} records)"
    evidence = f"{Metric.TRAIN_LOSS} is {ratio:.4g} times the CTC loss of an utterance {of_records}; it is 1."
    if parts > 1 and any(abs(ratio - r) < 0.1 * r for r in (parts, 1 / parts)):
        yield suspect(
            "accumulation_mismatch", f"{evidence} There are {parts} micro-batches.", support=0.9, about="total"
        )
    else:
        yield suspect("reduction_mismatch", evidence, support=0.8, about="total")


def one_weight_dwarfs(record: DiagnosedRun) -> Iterator[Suspicion]:
    """E4: the weights of the two recognisers differ by orders of magnitude."""
    for stage in record.stages:
        weights = {name: stage.weights[name] for name in ("ctc", "rnnt") if stage.weights.get(name)}
        if len(weights) == 2 and max(weights.values()) > WEIGHTS_DIFFER * min(weights.values()):
            evidence = f"Stage {stage.name} weighs its losses {', '.join(f'{n} {w:g}' for n, w in weights.items())}."
            yield suspect("loss_term_dominates", evidence, step=stage.first, support=0.7)


def _labels_per_trial(record: DiagnosedRun) -> float:
    lengths = [len(h.get("reference_symbols", ())) for e in record.evaluations for h in e.hypotheses]
    return sum(lengths) / len(lengths) if lengths else 0.0
