"""Questions with known answers, put to the very functions that the run will use: metrics, decoders, losses, guard.

Every question is one whose wrong answer has been published as a result (`docs/failures`). They need no data but a few
trials' labels; the model itself is asked nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.text import normalise_text
from sottovoce.core.trial import Trial
from sottovoce.decoding.emissions import Emissions
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.first_found import first_found
from sottovoce.diagnosis.preflight.guard import guard_answers
from sottovoce.diagnosis.preflight.known_outputs import labels_of, rehearsal_trials, rehearsed
from sottovoce.diagnosis.preflight.numbers import loss_answers
from sottovoce.diagnosis.preflight.resume import resume_answers
from sottovoce.diagnosis.preflight.selection import copied_trials, selection_metrics, selection_trials
from sottovoce.diagnosis.preflight.symbols import symbol_answers, texts_agree
from sottovoce.diagnosis.preflight.transducer import transducer_answers
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.metrics import error_rates
from sottovoce.runs.names import Metric

CLOSE: Final = 1e-6
"""Rates of small counts are exact to this."""


def known_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """What is wrong with the functions that score, decode, select, weigh and continue this run."""
    yield from first_found(
        positional_metrics(untrained),
        aggregation(untrained),
        printed_units(),
        greedy_order(untrained),
        symbol_answers(untrained),
        validated_rates(untrained),
        texts_agree(untrained),
        selection_metrics(untrained),
        reference_texts(untrained),
    )
    yield from selection_trials(untrained)
    yield from copied_trials(untrained)
    yield from transducer_answers(untrained)
    yield from loss_answers(untrained)
    yield from guard_answers(untrained)
    yield from resume_answers(untrained)


def positional_metrics(untrained: UntrainedRun) -> Iterator[Finding]:
    """An insertion at the front costs one error."""
    validation = untrained.loop.validation
    trial, said = _hypothesis("insertion", tuple(range(1, 11)), (11, *range(1, 11)))
    errors = validation.score([(trial, said)], validation.table, decoder="greedy").scores[0].per.errors
    if errors > 1:
        yield found(
            "metric_is_positional",
            f"One symbol inserted in front of ten right ones costs {errors} errors, not 1.",
            "preflight",
        )


def aggregation(untrained: UntrainedRun) -> Iterator[Finding]:
    """Rates are sums of errors over sums of lengths, as fractions."""
    validation = untrained.loop.validation
    table = validation.table
    wrong, right = (
        _hypothesis("wrong", _cycle(table, 1), ()),
        _hypothesis("right", _cycle(table, 19), _cycle(table, 19)),
    )
    for order in ((wrong, right), (right, wrong)):
        per = validation.score(order, table, decoder="greedy").as_dict()["per"]
        yield from _judged(per, 1 / 20, "Errors [1, 0] in references of [1, 19] symbols give {}")


def validated_rates(untrained: UntrainedRun) -> Iterator[Finding]:
    """The same of what the run's validation reports: of a model that says nothing, and of one that mostly is right."""
    places = rehearsal_trials(untrained)
    if not places:
        return
    labels = labels_of(untrained, places)
    blank: dict[int, tuple[int, ...]] = dict.fromkeys(places, ())
    last = places[-1]
    share = len(labels[last]) / sum(map(len, labels.values()))
    what = f"validation gives a model that {{}} a PER of {{{{}}}} ({len(places)} trials)"
    yield from _judged(rehearsed(untrained, blank).get(Metric.VAL_PER), 1.0, what.format("says nothing"))
    mixed = rehearsed(untrained, labels | {last: ()}).get(Metric.VAL_PER)
    yield from _judged(mixed, share, what.format("says nothing in the last trial and is right in the others"))


def _judged(value: float | None, expected: float, what: str) -> Iterator[Finding]:
    if value is not None and abs(value - expected) <= CLOSE:
        return
    if value is None:
        return  # a metric that is not there at all is a matter of the selection
    times_100 = any(abs(value - other) <= 100 * CLOSE for other in (100 * expected, expected / 100))
    code = "unit_mismatch" if times_100 else "metric_aggregation"
    yield found(code, f"{what.format(f'{value:.4g}')}, not {expected:.4g}.", "preflight")


def printed_units() -> Iterator[Finding]:
    """A rate of 1 is printed as 100.0 %."""
    ways: dict[str, Callable[[float], str]] = {
        "percent": lambda value: error_rates.percent(value),
        "Rate.percent": lambda value: error_rates.Rate(round(value * 1000), 1000).percent(),
    }
    for place, percent in ways.items():
        for value, expected in ((1.0, "100.0 %"), (0.25, "25.0 %")):
            if (shown := percent(value)) != expected:
                yield found("unit_mismatch", f"A rate of {value:g} is printed as {shown!r} ({place}).", "preflight")
                return


def greedy_order(untrained: UntrainedRun) -> Iterator[Finding]:
    """Repeats are merged first, then blanks dropped: `a a – a b` is `a a b`."""
    validation, blank = untrained.loop.validation, untrained.computer.blank
    first, second = [i for i in range(len(validation.table)) if i != blank][4:6]
    path = [first, first, blank, first, second]
    frames_SV = torch.nn.functional.one_hot(torch.tensor(path), len(validation.table)).float()
    said = list(validation.until_trained.decode(Emissions(frames_SV.numpy())).symbols)
    if said == [first, second]:
        yield found(
            "greedy_order",
            f"The frames {path} (blank {blank}) decode to {said}, not {[first, first, second]} "
            f"({validation.until_trained.name}): the symbol that was said twice is lost.",
            "preflight",
        )


def reference_texts(untrained: UntrainedRun) -> Iterator[Finding]:
    """The reference of WER, CER and WRA is the trial's text, whatever its symbols; no two symbols count as one."""
    validation = untrained.loop.validation
    yield from _text_is_the_reference(validation.score, validation.table)
    yield from _no_merged_symbols(validation.score, validation.table)


def _text_is_the_reference(score: Callable[..., Any], table: SymbolTable) -> Iterator[Finding]:
    text = "two words"
    for labels in (_cycle(table, 5), _cycle(table, 9)):
        trial, said = _hypothesis("text", labels, labels, text)
        evaluation = score([(trial, replace(said, text=text))], table, decoder="greedy")
        reference, wer = evaluation.scores[0].reference_text, evaluation.as_dict()["wer"]
        if reference != normalise_text(text) or wer != 0:
            yield found(
                "reference_proxy",
                f"A trial of the text {text!r} is scored against {reference!r}: a hypothesis that equals its text has "
                f"a WER of {wer}.",
                "preflight",
            )
            return


def _no_merged_symbols(score: Callable[..., Any], table: SymbolTable) -> Iterator[Finding]:
    ids = [i for i in range(len(table)) if i != table.blank]
    pairs = [(a, b) for a in ids for b in ids if a < b]
    hypotheses = [_hypothesis(f"{a} {b}", (a,), (b,)) for a, b in pairs]
    scores = score(hypotheses, table, decoder="greedy").scores
    merged = [table.decode(pair) for pair, scored in zip(pairs, scores, strict=True) if not scored.per.errors]
    if merged:
        examples = ", ".join(" as ".join(pair) for pair in merged[:3])
        yield found(
            "reference_proxy",
            f"{len(merged)} pairs of different {table.name} count as equal, for example {examples}.",
            "preflight",
        )


def _cycle(table: SymbolTable, count: int) -> tuple[int, ...]:
    """`count` symbols, neighbours different."""
    ids = [i for i in range(len(table)) if i not in (table.blank, table.boundary)]
    return tuple(ids[i % len(ids)] for i in range(count))


def _hypothesis(
    name: str, labels: Sequence[int], said: Sequence[int], text: str | None = None
) -> tuple[Trial, Hypothesis]:
    trial = Trial(name, "val", "session", 100, tuple(labels), text, Path(name))
    return trial, Hypothesis(tuple(said), num_frames=10, blank_frames=5)
