"""Scoring: hypotheses and their trials in, corpus error rates with intervals out; no model is needed.

Errors and reference lengths are summed over the corpus, then divided once. Both sides of a word or character
comparison go through `core.text.normalise_text`, and the references are the text of the data, never text
derived from its symbols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sottovoce.core.errors import DataError
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.splits import Split
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.text import NORMALISER, normalise_text
from sottovoce.core.trial import Trial
from sottovoce.metrics import ErrorCounts, Rate, bootstrap_interval

Metric = Literal["per", "wer", "cer", "wra"]
METRICS: Final[tuple[Metric, ...]] = ("per", "wer", "cer", "wra")
FEWEST_BLOCKS: Final = 10
"""Intervals resample whole blocks from this many on; with fewer the bootstrap of blocks is too narrow to trust."""


@dataclass(frozen=True)
class TrialScore:
    """A hypothesis beside its reference: what each metric counts, None where it cannot count."""

    trial: Trial
    hypothesis: Hypothesis
    reference_text: str | None
    hypothesis_text: str | None
    """Both texts as they were compared: normalised."""
    per: ErrorCounts
    wer: ErrorCounts | None
    cer: ErrorCounts | None
    is_empty: bool
    """Nothing but word boundaries was decoded."""

    def rate(self, metric: Metric) -> Rate | None:
        """This trial's share of `metric`; WRA counts right trials, the others errors."""
        if metric == "wra":
            return None if self.wer is None else Rate(int(self.reference_text == self.hypothesis_text), 1)
        counts = {"per": self.per, "wer": self.wer, "cer": self.cer}[metric]
        return None if counts is None else counts.rate


@dataclass(frozen=True)
class Metrics:
    """Rates of a set of trials; a metric that some trial cannot be counted in is absent."""

    num_trials: int
    rates: dict[Metric, Rate]
    ci95: dict[Metric, tuple[float, float]]
    """Bootstrap intervals, where there are at least two clusters of trials."""
    blank: Rate
    """Frames whose best symbol is the blank, of all valid frames."""
    empty: Rate
    """Trials with nothing decoded, of all trials."""

    def as_dict(self) -> dict[str, Any]:
        """Fractions under the names of the command line; null where there is no value."""
        values: dict[str, Any] = {m: self.rates[m].value if m in self.rates else None for m in METRICS}
        intervals = {m: list(self.ci95[m]) if m in self.ci95 else None for m in METRICS}
        return {
            "num_trials": self.num_trials,
            **values,
            "ci95": intervals,
            "blank_fraction": self.blank.value,
            "empty_fraction": self.empty.value,
        }


@dataclass(frozen=True)
class Evaluation:
    """Error rates of one decoder on one split, with everything they were computed from."""

    split: Split
    decoder: str
    symbols: str
    """Name of the symbol table that PER counts in."""
    overall: Metrics
    by_group: dict[str, dict[str, Metrics]]
    """`session`, and where the data has them `speaker`, `mode` and `text` (`seen_text`, `unseen_text`)."""
    ci95_unit: str
    """What the intervals resample: `block`, `event` or `trial`."""
    notes: tuple[str, ...]
    """Why a metric is missing, and how to read the others."""
    scores: tuple[TrialScore, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object that `evaluate --json` prints."""
        groups = {kind: {name: m.as_dict() for name, m in found.items()} for kind, found in self.by_group.items()}
        return {
            "split": self.split,
            "decoder": self.decoder,
            "symbols": self.symbols,
            "normaliser": NORMALISER,
            **self.overall.as_dict(),
            "ci95_unit": self.ci95_unit,
            "errors": {metric: [rate.count, rate.total] for metric, rate in self.overall.rates.items()},
            "by_group": groups,
            "notes": list(self.notes),
        }


def score(
    hypotheses: Sequence[tuple[Trial, Hypothesis]],
    table: SymbolTable,
    *,
    decoder: str,
    seed: int = 0,
    training_texts: Collection[str] | None = None,
) -> Evaluation:
    """Score the hypotheses of one split's trials; texts of training (as written) add the seen and unseen breakdown.

    Raises:
        DataError: no hypotheses, two of one trial, two splits, or a trial without labels.
    """
    if not hypotheses:
        raise DataError("there are no trials to score: the split is empty")
    repeated = [name for name, count in Counter(trial.trial_id for trial, _ in hypotheses).items() if count > 1]
    splits = {trial.split for trial, _ in hypotheses}
    if repeated or len(splits) > 1:
        found = f"trial {repeated[0]} twice" if repeated else f"trials of {' and '.join(sorted(splits))}"
        raise DataError(f"an evaluation holds every trial of one split once; found {found}")
    scores = tuple(_score_trial(trial, hypothesis, table) for trial, hypothesis in hypotheses)
    unit, cluster_of = _resampling(scores)
    groups = _groups(scores, training_texts)
    return Evaluation(
        split=scores[0].trial.split,
        decoder=decoder,
        symbols=table.name,
        overall=_metrics(scores, cluster_of, seed),
        by_group={
            kind: {name: _metrics(members, cluster_of, seed) for name, members in sorted(found.items())}
            for kind, found in groups.items()
        },
        ci95_unit=unit,
        notes=tuple(_notes(scores, table)),
        scores=scores,
    )


def choose_examples(scores: Sequence[TrialScore]) -> dict[str, int]:
    """Indices of the trials with the lowest, median and highest PER, under `best`, `median` and `worst`.

    Fewer where there are fewer trials; ties go to the longer reference.
    """
    counted = [i for i, s in enumerate(scores) if s.per.reference_length and s.hypothesis.num_frames]
    ranked = sorted(counted, key=lambda i: (scores[i].per.rate.value or 0.0, -scores[i].per.reference_length))
    places = {"best": 0, "worst": len(ranked) - 1, "median": len(ranked) // 2}
    chosen: dict[str, int] = {}
    for name, place in places.items():
        if ranked and ranked[place] not in chosen.values():
            chosen[name] = ranked[place]
    return {name: chosen[name] for name in ("best", "median", "worst") if name in chosen}


def _score_trial(trial: Trial, hypothesis: Hypothesis, table: SymbolTable) -> TrialScore:
    if trial.labels is None:
        raise DataError(
            f"trial {trial.trial_id} ({trial.split}) has no labels, so it cannot be scored; "
            "evaluate a split with labels, or write its hypotheses with decode or submit"
        )
    reference = None if trial.text is None else normalise_text(trial.text)
    text = None if hypothesis.text is None else normalise_text(hypothesis.text)
    wer = cer = None
    if reference is not None and text is not None:
        wer, cer = ErrorCounts.of(reference.split(), text.split()), ErrorCounts.of(reference, text)
    is_empty = all(symbol == table.boundary for symbol in hypothesis.symbols)
    per = ErrorCounts.of(trial.labels, hypothesis.symbols)
    return TrialScore(trial, hypothesis, reference, text, per, wer, cer, is_empty)


def _metrics(scores: Sequence[TrialScore], cluster_of: Callable[[Trial], Hashable], seed: int) -> Metrics:
    clusters = [cluster_of(s.trial) for s in scores]
    rates: dict[Metric, Rate] = {}
    intervals: dict[Metric, tuple[float, float]] = {}
    for metric in METRICS:
        found = [rate for s in scores if (rate := s.rate(metric)) is not None]
        if len(found) < len(scores):
            continue
        rates[metric] = sum(found, Rate(0, 0))
        interval = bootstrap_interval([r.count for r in found], [r.total for r in found], clusters, seed=seed)
        if interval is not None:
            intervals[metric] = interval
    frames = Rate(sum(s.hypothesis.blank_frames for s in scores), sum(s.hypothesis.num_frames for s in scores))
    empty = Rate(sum(s.is_empty for s in scores), len(scores))
    return Metrics(len(scores), rates, intervals, frames, empty)


def _resampling(scores: Sequence[TrialScore]) -> tuple[str, Callable[[Trial], Hashable]]:
    """The unit whose members are drawn together: the largest one of which there are enough."""
    trials = [s.trial for s in scores]
    blocks = {(t.session, t.block) for t in trials}
    if all(t.block is not None for t in trials) and len(blocks) >= FEWEST_BLOCKS:
        return "block", lambda t: (t.session, t.block)
    if any(t.event for t in trials):
        return "event", lambda t: t.event or t.trial_id
    return "trial", lambda t: t.trial_id


def _groups(
    scores: Sequence[TrialScore], training_texts: Collection[str] | None
) -> dict[str, dict[str, list[TrialScore]]]:
    seen = None if training_texts is None else {normalise_text(text) for text in training_texts}

    def familiarity(score: TrialScore) -> str:
        if seen is None or score.reference_text is None:
            return ""
        return "seen_text" if score.reference_text in seen else "unseen_text"

    keys: dict[str, Callable[[TrialScore], str]] = {
        "session": lambda s: s.trial.session,
        "speaker": lambda s: s.trial.speaker,
        "mode": lambda s: s.trial.mode,
        "text": familiarity,
    }
    groups: dict[str, dict[str, list[TrialScore]]] = {}
    for kind, key in keys.items():
        for score in scores:
            if name := key(score):
                groups.setdefault(kind, {}).setdefault(name, []).append(score)
    return groups


def _notes(scores: Sequence[TrialScore], table: SymbolTable) -> list[str]:
    notes = []
    silent = sum(s.hypothesis_text is None for s in scores)
    unwritten = sum(s.reference_text is None for s in scores)
    for count, lack in ((silent, "the decoder gives no words"), (unwritten, "the data has no text")):
        if count:
            of = "" if count == len(scores) else f" for {count} of {len(scores)} trials"
            notes.append(f"wer, cer, wra: null, {lack}{of}")
    if not (silent or unwritten) and any(len((s.reference_text or "").split()) > 1 for s in scores):
        notes.append("wra: counts whole sentences, because references hold more than one word")
    if table.name != "phonemes":
        notes.append(f"per: counts {table.name}, the symbols this model emits")
    return notes
