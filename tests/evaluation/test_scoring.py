"""Scoring: corpus rates, groups, intervals, missing texts, by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sottovoce.core.errors import DataError
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.splits import Split
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.core.trial import Trial
from sottovoce.evaluation.scoring import choose_examples, score


def hypothesis(
    name: str,
    labels: tuple[int, ...] | None,
    symbols: tuple[int, ...],
    *,
    reference: str | None = None,
    text: str | None = None,
    blank_frames: int = 6,
    session: str = "s1",
    split: Split = "val",
    **fields: Any,
) -> tuple[Trial, Hypothesis]:
    """A trial with more `fields` of `Trial`, and what was decoded from its ten frames."""
    trial = Trial(name, split, session, 100, labels, reference, Path("x.hdf5"), **fields)
    return trial, Hypothesis(symbols, num_frames=10, blank_frames=blank_frames, text=text)


def words(name: str, reference: str, text: str, **options: Any) -> tuple[Trial, Hypothesis]:
    labels, symbols = (LETTERS.encode(t.replace(" ", "|")) for t in (reference, text))
    return hypothesis(name, labels, symbols, reference=reference, text=text, **options)


def test_rates_are_corpus_sums_and_fractions() -> None:
    found = score(
        [hypothesis("a", (1,), (2,)), hypothesis("b", tuple(range(1, 20)), tuple(range(1, 20)))],
        PHONEMES,
        decoder="greedy",
    ).as_dict()
    assert found["per"] == 0.05
    assert found["errors"] == {"per": [1, 20]}
    assert (found["split"], found["decoder"], found["num_trials"]) == ("val", "greedy", 2)
    assert found["blank_fraction"] == 0.6
    assert found["empty_fraction"] == 0.0


def test_promised_keys_are_all_there() -> None:
    found = score([hypothesis("a", (1,), (2,)), hypothesis("b", (1,), (1,))], PHONEMES, decoder="greedy").as_dict()
    promised = "split decoder num_trials per wer cer wra ci95 blank_fraction empty_fraction by_group".split()
    assert set(promised) <= set(found)
    assert set(found["ci95"]) == {"per", "wer", "cer", "wra"}
    json.dumps(found, allow_nan=False)


def test_an_all_blank_model_scores_100_percent_not_1() -> None:
    evaluation = score(
        [words("a", "one", "", blank_frames=10), words("b", "two", "", blank_frames=10)], LETTERS, decoder="greedy"
    )
    overall = evaluation.overall
    assert overall.rates["per"].percent() == overall.rates["wer"].percent() == "100.0 %"
    assert overall.rates["wra"].percent() == "0.0 %"
    assert (overall.empty.value, overall.blank.value) == (1.0, 1.0)


def test_texts_are_compared_after_normalisation_of_both_sides() -> None:
    evaluation = score(
        [hypothesis("a", (1,), (1,), reference="It's FINE, well.", text="it's  fine well")], PHONEMES, decoder="words"
    )
    assert {metric: rate.value for metric, rate in evaluation.overall.rates.items()} == {
        "per": 0.0, "wer": 0.0, "cer": 0.0, "wra": 1.0,
    }  # fmt: skip


def test_word_and_character_errors_and_word_accuracy() -> None:
    evaluation = score([words("a", "cat", "cab"), words("b", "dog", "dog")], LETTERS, decoder="greedy")
    rates = evaluation.overall.rates
    assert rates["wer"].value == 0.5
    assert rates["cer"].value == pytest.approx(1 / 6)
    assert rates["wra"].value == 0.5
    assert not any("sentences" in note for note in evaluation.notes)


def test_sentences_make_wra_a_sentence_accuracy_and_say_so() -> None:
    evaluation = score([words("a", "a cat", "a cab"), words("b", "no dog", "no dog")], LETTERS, decoder="greedy")
    assert evaluation.overall.rates["wra"].value == 0.5
    assert "wra: counts whole sentences, because references hold more than one word" in evaluation.notes


def test_a_metric_without_words_is_null_with_a_reason() -> None:
    found = score(
        [hypothesis("a", (1,), (1,), reference="one"), hypothesis("b", (2,), (2,), reference="two", text="two")],
        PHONEMES,
        decoder="greedy",
    ).as_dict()
    assert found["per"] == 0.0
    assert found["wer"] is found["cer"] is found["wra"] is None
    assert found["ci95"]["wer"] is None
    assert found["notes"] == ["wer, cer, wra: null, the decoder gives no words for 1 of 2 trials"]


def test_groups_are_sessions_speakers_modes_and_known_texts() -> None:
    evaluation = score(
        [
            words("a", "one", "one", session="s1", speaker="F02", mode="silent"),
            words("b", "two", "too", session="s2", speaker="F02", mode="vocalised"),
            words("c", "six", "", session="s2", speaker="M01", mode="silent"),
        ],
        LETTERS,
        decoder="greedy",
        training_texts=["ONE", "two!"],
    )
    wra = {
        kind: {name: (m["num_trials"], m["wra"]) for name, m in groups.items()}
        for kind, groups in evaluation.as_dict()["by_group"].items()
    }
    assert wra == {
        "session": {"s1": (1, 1.0), "s2": (2, 0.0)},
        "speaker": {"F02": (2, 0.5), "M01": (1, 0.0)},
        "mode": {"silent": (2, 0.5), "vocalised": (1, 0.0)},
        "text": {"seen_text": (2, 0.5), "unseen_text": (1, 0.0)},
    }


def test_a_group_of_one_trial_has_a_rate_but_no_interval() -> None:
    evaluation = score(
        [words("a", "one", "one", session="s1"), words("b", "two", "too", session="s2")], LETTERS, decoder="greedy"
    )
    assert evaluation.by_group["session"]["s2"].rates["per"].value == pytest.approx(1 / 3)
    assert evaluation.by_group["session"]["s2"].ci95 == {}
    low, high = evaluation.overall.ci95["per"]
    assert low == 0.0
    assert high == pytest.approx(1 / 3)


def test_intervals_resample_blocks_events_or_trials() -> None:
    def unit(*trials: tuple[Trial, Hypothesis]) -> str:
        return score(trials, LETTERS, decoder="greedy").ci95_unit

    blocks = [words(f"{b}-{n}", "one", "one", block=b) for b in range(10) for n in range(2)]
    assert unit(*blocks) == "block"
    assert unit(*blocks[:18]) == "trial"
    assert unit(words("a", "one", "one", event="e"), words("b", "one", "one", event="e")) == "event"


def test_recordings_of_one_event_are_drawn_together() -> None:
    together = [words(f"{e}-{n}", "one", "one" if e else "", event=f"e{e}") for e in range(2) for n in range(5)]
    apart = [words(f"{e}-{n}", "one", "one" if e else "") for e in range(2) for n in range(5)]
    low, high = score(together, LETTERS, decoder="greedy").overall.ci95["wra"]
    assert (low, high) == (0.0, 1.0)
    low, high = score(apart, LETTERS, decoder="greedy").overall.ci95["wra"]
    assert 0.0 < low < 0.5 < high < 1.0


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="split is empty"):
        score([], PHONEMES, decoder="greedy")
    with pytest.raises(DataError, match=r"trial t/7 \(val\) has no labels"):
        score([hypothesis("t/7", None, (1,))], PHONEMES, decoder="greedy")
    with pytest.raises(DataError, match="trial a twice"):
        score([hypothesis("a", (1,), (1,))] * 2, PHONEMES, decoder="greedy")
    with pytest.raises(DataError, match="trials of test and val"):
        score([hypothesis("a", (1,), (1,)), hypothesis("b", (1,), (1,), split="test")], PHONEMES, decoder="greedy")


def test_word_boundaries_alone_are_an_empty_hypothesis() -> None:
    evaluation = score([hypothesis("a", (1, 40), (40, 40)), hypothesis("b", (1,), (1,))], PHONEMES, decoder="greedy")
    assert evaluation.overall.empty.value == 0.5


def test_examples_are_the_best_the_median_and_the_worst_trial() -> None:
    trials = [words("a", "one", "xxx"), words("b", "two", "two"), words("c", "four", "four"), words("d", "six", "sit")]
    scores = score([*trials, words("e", "ten", "tan")], LETTERS, decoder="greedy").scores
    assert choose_examples(scores) == {"best": 2, "median": 3, "worst": 0}
    assert choose_examples(scores[:1]) == {"best": 0}
