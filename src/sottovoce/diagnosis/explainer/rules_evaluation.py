"""Rules over the files of an evaluation: every rate is counted again from its hypotheses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from sottovoce.core.symbols import TABLES, SymbolTable
from sottovoce.core.text import NORMALISER
from sottovoce.decoding.greedy import greedy_ctc
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.rules_schedule import selection_metric
from sottovoce.diagnosis.explainer.suspicion import Suspicion, suspect
from sottovoce.metrics import error_counts, percent
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.examples import read_examples
from sottovoce.runs.names import VAL, Event, Metric
from sottovoce.runs.record import Evaluated

OFFSETS: Final = (-2, -1, 1, 2)
OFFSET_GAIN: Final = 0.1
"""A shift of the symbols that is better by ten points is the right one: docs/failures/tokenizer_offset.md."""
TINY_RATE: Final = 0.05
MOSTLY_EMPTY: Final = 0.5
"""An error rate under 5 % with half of the hypotheses empty is a fraction read as a percentage
(docs/failures/unit_mismatch.md)."""
DIFFERS: Final = 0.02
"""Two points between the trainer's validation and the evaluation of the same checkpoint: rounding gives none."""
LEAK_SHARE: Final = 0.01
LEAK_GAP: Final = 0.1
FEWEST_TRIALS: Final = 10
"""Overlap, gap and trials of each kind before seen and unseen sentences are worth comparing
(docs/failures/split_leak.md)."""
RATES: Final = ("per", "wer", "cer")


def rates_are_counted(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G1, G2, G4: each stored rate against the sum of its trials' errors, and these against the edit distance."""
    for evaluation in record.evaluations:
        hypotheses, result = evaluation.hypotheses, evaluation.result
        if not hypotheses:
            continue
        yield from _unit_of_empty(evaluation)
        if result.get("num_trials") not in (None, len(hypotheses)):
            evidence = (
                f"evaluation/{evaluation.name} counts {result['num_trials']} trials, but there are {len(hypotheses)}."
            )
            yield suspect("metric_aggregation", evidence, support=0.85, about=evaluation.name)
        yield from _positional(evaluation)
        for metric in RATES:
            yield from _aggregation(evaluation, metric)


def _aggregation(evaluation: Evaluated, metric: str) -> Iterator[Suspicion]:
    counts = [h["counts"][metric] for h in evaluation.hypotheses if metric in h["counts"]]
    stored, total = evaluation.result.get(metric), sum(c[3] for c in counts)
    if not isinstance(stored, (int, float)) or len(counts) < len(evaluation.hypotheses) or not total:
        return
    counted = sum(sum(c[:3]) for c in counts) / total
    if abs(stored - counted) <= 1e-6:
        return
    mean = sum(sum(c[:3]) / c[3] for c in counts if c[3]) / len(counts)
    evidence = (
        f"evaluation/{evaluation.name}: {metric} is stored as {stored:.4g}; all errors over "
        f"all symbols give {counted:.4g}"
    )
    factor = stored / counted if counted else 0.0
    if any(abs(factor - f) < 0.01 * f for f in (100, 0.01)):
        yield suspect("unit_mismatch", f"{evidence}, a hundred times more or less.", about=evaluation.name)
    elif abs(stored - mean) < 1e-6:
        evidence += f", and the mean over the {len(counts)} trials' rates is {mean:.4g}."
        yield suspect("metric_aggregation", evidence, about=evaluation.name)
    else:
        yield suspect("metric_aggregation", f"{evidence}.", support=0.8, about=evaluation.name)


def _unit_of_empty(evaluation: Evaluated) -> Iterator[Suspicion]:
    empty = evaluation.result.get("empty_fraction") or 0.0
    for metric in RATES:
        rate = evaluation.result.get(metric)
        if isinstance(rate, (int, float)) and rate < TINY_RATE and empty > MOSTLY_EMPTY:
            evidence = (
                f"evaluation/{evaluation.name}: {metric} {percent(rate)}, but {percent(empty)} of "
                "the hypotheses are empty."
            )
            yield suspect("unit_mismatch", evidence, support=0.95, about=evaluation.name)
            return


def validation_has_its_unit(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G1 in the records of training: next to no errors from a model that answers blank."""
    blank = record.metric(Metric.VAL_BLANK_FRACTION)
    for name in (Metric.VAL_PER, Metric.VAL_WER):
        for step, rate in record.metric(name):
            share = blank.at(step)
            if rate < TINY_RATE and share is not None and share > 0.99:
                evidence = f"{name} is {rate:.4g} at step {step}, where {percent(share)} of all frames are blank."
                yield suspect("unit_mismatch", evidence, step=step, support=0.95)
                return


def _positional(evaluation: Evaluated) -> Iterator[Suspicion]:
    wrong, like_places = 0, 0
    worst: tuple[int, int, str] | None = None
    for h in evaluation.hypotheses:
        if "per" not in h["counts"] or "reference_symbols" not in h:
            continue
        reference, decoded = h["reference_symbols"], h["symbols"]
        stored, distance = sum(h["counts"]["per"][:3]), sum(error_counts(reference, decoded)[:3])
        if stored == distance:
            continue
        wrong += 1
        places = sum(a != b for a, b in zip(reference, decoded, strict=False))
        like_places += stored in (places, places + abs(len(reference) - len(decoded)))
        if worst is None or stored - distance > worst[0] - worst[1]:
            worst = stored, distance, h["trial_id"]
    if worst is None:
        return
    evidence = (
        f"hypotheses.{evaluation.name}: the errors of {wrong} of "
        f"{len(evaluation.hypotheses)} trials are not their edit "
        f"distance, e.g. {worst[0]} instead of {worst[1]} in {worst[2]}"
    )
    if like_places >= 0.9 * wrong:
        yield suspect("metric_is_positional", f"{evidence}; they count unequal places.", about=evaluation.name)
    else:
        yield suspect("metric_is_positional", f"{evidence}.", support=0.6, about=evaluation.name)


def symbols_are_shifted(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G5: would other ids fit the references better?"""
    for evaluation in record.evaluations:
        table = TABLES.get(str(evaluation.result.get("symbols")))
        pairs = [_ids(h, table) for h in evaluation.hypotheses if "reference_symbols" in h] if table else []
        total = sum(len(reference) for reference, _ in pairs)
        if not total:
            continue
        rates = {offset: _rate(pairs, offset, total) for offset in (0, *OFFSETS)}
        best = min(OFFSETS, key=lambda offset: rates[offset])
        if rates[0] - rates[best] > OFFSET_GAIN and rates[best] < 0.75 * rates[0]:
            evidence = (
                f"hypotheses.{evaluation.name}: the error rate is {percent(rates[0])} as decoded and "
                ""
                f"{percent(rates[best])} with every symbol id shifted by {best:+d} (table "
                f"{table.name if table else ''})."
            )
            yield suspect("tokenizer_offset", evidence, about=f"symbols of {evaluation.name}")


def _ids(hypothesis: dict[str, Any], table: SymbolTable | None) -> tuple[list[int], list[int]]:
    assert table is not None
    reference, decoded = hypothesis["reference_symbols"], hypothesis["symbols"]
    return [table.index[s] for s in reference if s in table.index], [
        table.index[s] for s in decoded if s in table.index
    ]


def _rate(pairs: Sequence[tuple[list[int], list[int]]], offset: int, total: int) -> float:
    return sum(sum(error_counts(ref, [i + offset for i in hyp])[:3]) for ref, hyp in pairs) / total


def greedy_order_is_right(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G3: the kept examples decoded again from their posteriors."""
    for path in RunDirectory(record.run_dir).all_examples:
        kept = read_examples(path)
        table = TABLES.get(kept.symbols)
        if kept.decoder != "greedy" or table is None:
            continue
        wrong = [e for e in kept.examples if list(e.hypothesis) != _decoded(e.log_probs_SV, table.blank)]
        swapped = [e for e in wrong if list(e.hypothesis) == _merged_last(e.log_probs_SV, table.blank)]
        if swapped and len(swapped) == len(wrong):
            evidence = (
                f"{swapped[0].trial_id} was decoded to {len(swapped[0].hypothesis)} symbols; its "
                "posteriors give "
                f"{len(_decoded(swapped[0].log_probs_SV, table.blank))} when repeats are merged "
                "before blanks are dropped "
                f"({len(swapped)} of {len(kept.examples)} examples)."
            )
            yield suspect("greedy_order", evidence, support=0.95)


def _decoded(log_probs_SV: Any, blank: int) -> list[int]:
    frames = torch.from_numpy(np.asarray(log_probs_SV, np.float32))
    return greedy_ctc(frames[None], torch.tensor([len(frames)]), blank)[0]


def _merged_last(log_probs_SV: Any, blank: int) -> list[int]:
    """Blanks dropped first, then repeats merged: the wrong order."""
    kept = [int(i) for i in np.asarray(log_probs_SV).argmax(axis=-1) if i != blank]
    return [symbol for i, symbol in enumerate(kept) if i == 0 or symbol != kept[i - 1]]


def trainer_and_evaluation_agree(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G6: the best checkpoint's validation rate in the trainer against the evaluation's."""
    best = record.checkpoints.get("best")
    if best is None or record.config is None or record.events_named(Event.FLOW_BRIDGE_MEASURED):
        return
    metric = selection_metric(record)
    decoder = str(best.progress.get("best_by") or "").rpartition(" ")[2] or record.config.decoding.decoder
    trainers = record.metric(metric).at(best.step)
    evaluation = next((e for e in record.evaluations if e.name == f"val.{decoder}"), None)
    stored = evaluation.result.get(metric.removeprefix(VAL)) if evaluation else None
    if trainers is None or not isinstance(stored, (int, float)) or abs(trainers - stored) <= DIFFERS:
        return
    evidence = (
        f"{metric} of step {best.step} was {percent(trainers)} in the trainer; the "
        "evaluation of the same checkpoint on "
        f"the same split and decoder gives {percent(stored)}."
    )
    yield suspect("train_eval_mismatch", evidence, step=best.step, support=0.8)


def references_are_texts(record: DiagnosedRun) -> Iterator[Suspicion]:
    """G10: another normaliser, or references that their own symbols contradict."""
    for evaluation in record.evaluations:
        normaliser = evaluation.result.get("normaliser")
        if normaliser not in (None, NORMALISER):
            evidence = (
                f"evaluation/{evaluation.name} was scored with the normaliser {normaliser!r}, not {NORMALISER!r}."
            )
            yield suspect("reference_proxy", evidence, support=0.8)
        spoken = [h for h in evaluation.hypotheses if h.get("reference") and h.get("reference_symbols")]
        if not spoken:
            continue
        if evaluation.result.get("symbols") == "letters":
            proxies = [h for h in spoken if "".join(h["reference_symbols"]).replace("|", " ").strip() != h["reference"]]
        else:
            proxies = [h for h in spoken if h["reference"].split() == _spelled(h["reference_symbols"])]
        if len(proxies) > 0.5 * len(spoken):
            evidence = (
                f"hypotheses.{evaluation.name}: in {len(proxies)} of {len(spoken)} trials the reference is not the "
                f"sentence, e.g. {proxies[0]['reference']!r} for {' '.join(proxies[0]['reference_symbols'])!r}."
            )
            yield suspect("reference_proxy", evidence, support=0.9)


def _spelled(symbols: Sequence[str]) -> list[str]:
    """The words one gets by writing phonemes as letters."""
    return "".join(" " if s == "|" else s.lower() for s in symbols).split()


def seen_sentences(record: DiagnosedRun) -> Iterator[Suspicion]:
    """H1: sentences of training are decoded far better than others."""
    for evaluation in record.evaluations:
        texts = evaluation.result.get("by_group", {}).get("text", {})
        seen, unseen = texts.get("seen_text"), texts.get("unseen_text")
        if not seen or not unseen or min(seen["num_trials"], unseen["num_trials"]) < FEWEST_TRIALS:
            continue
        share = seen["num_trials"] / (seen["num_trials"] + unseen["num_trials"])
        metric = "wer" if seen["wer"] is not None else "per"
        rates = [seen[metric], unseen[metric]]
        bounds = seen["ci95"][metric], unseen["ci95"][metric]
        apart = None not in bounds and bounds[0][1] < bounds[1][0]
        if None not in rates and share > LEAK_SHARE and rates[1] - rates[0] > LEAK_GAP and apart:
            evidence = (
                f"evaluation/{evaluation.name}: {percent(share)} of the trials hold a sentence of "
                "the training data; their "
                f"{metric.upper()} is {percent(rates[0])}, that of the others {percent(rates[1])}."
            )
            yield suspect("split_leak", evidence, support=0.9)
