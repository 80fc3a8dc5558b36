"""Every decoder on emissions that can be read by eye: text, score, n-best list, times; and what each refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.decoding.config import DECODERS, DecodingConfig
from sottovoce.decoding.decoder import Decoder, DecoderParts
from sottovoce.decoding.emissions import Emissions
from sottovoce.decoding.greedy import GreedyConfig
from sottovoce.decoding.lexicon import Lexicon, word_scores
from sottovoce.decoding.transducer import beam_transducer
from sottovoce.decoding.transducer_decoder import TransducerConfig
from sottovoce.decoding.words import WordsConfig
from tests.decoding.emissions import Once, random_emissions, written

LEXICON = Lexicon.from_words(["on", "no", "one", "two"], LETTERS.encode)
PARTS = DecoderParts(LETTERS, LEXICON, transducer=Once())


def decoders() -> list[Decoder]:
    beam = DecodingConfig(transducer=TransducerConfig(beam_size=3))
    return [*(DecodingConfig().build(PARTS, name) for name in DECODERS), beam.build(PARTS, "transducer")]


def test_greedy_by_hand() -> None:
    assert GreedyConfig().build(PARTS).decode(written("_oo_n|_noo_o__")) == Hypothesis(
        LETTERS.encode("on|noo"),
        num_frames=14,
        blank_frames=6,
        text="on noo",
        words=(Word("on", 1, 5), Word("noo", 7, 12)),
    )


def test_greedy_of_silence_and_of_phonemes_without_words() -> None:
    assert GreedyConfig().build(PARTS).decode(written("___")) == Hypothesis((), 3, 3, "")
    said = GreedyConfig().build(DecoderParts(PHONEMES)).decode(written("_", PHONEMES))
    assert said == Hypothesis((), 1, 1, None)


def test_greedy_phonemes_are_the_nearest_words_with_their_times() -> None:
    lexicon = Lexicon.from_pronunciations({"pea": [["P", "B"]], "eff": [["F", "F"]]}, PHONEMES)
    said = GreedyConfig().build(DecoderParts(PHONEMES, lexicon)).decode(written("|PP_|F_K||", PHONEMES))
    assert said.text == "pea eff"
    assert said.words == (Word("pea", 1, 3), Word("eff", 5, 8))


def test_words_by_their_exact_probability() -> None:
    emissions = random_emissions(7, seed=1)
    said = WordsConfig(alternatives=2).build(replace(PARTS, isolated_words=True)).decode(emissions)
    scores = dict(zip(LEXICON.words, word_scores(emissions.log_probs_SV, LEXICON).tolist(), strict=True))
    first, second = sorted(scores, key=lambda word: -scores[word])[:2]
    assert said.text == first
    assert said.score == scores[first]
    assert said.n_best == tuple(Candidate(LETTERS.encode(w), w, scores[w]) for w in (first, second))
    (word,) = said.words
    assert (word.text, word.start_frame, word.end_frame) == (first, 0, 7)
    assert word.confidence == pytest.approx(math.exp(scores[first]) / sum(map(math.exp, scores.values())), rel=1e-12)


def test_words_between_boundaries_with_their_frames() -> None:
    said = WordsConfig().build(PARTS).decode(written("on_||_no__"))
    assert [(w.text, w.start_frame, w.end_frame) for w in said.words] == [("on", 0, 5), ("no", 5, 10)]
    assert all(w.confidence is not None and 0.9 < w.confidence <= 1 for w in said.words)
    assert (said.text, said.symbols, said.n_best) == ("on no", LETTERS.encode("on|no"), ())


def test_a_shortlist_of_one_leaves_no_doubt() -> None:
    said = WordsConfig(shortlist=1).build(PARTS).decode(written("on"))
    assert [(w.text, w.confidence) for w in said.words] == [("on", 1.0)]


def test_the_transducer_by_hand() -> None:
    said = TransducerConfig().build(PARTS).decode(written("_on|_too"))
    assert said == Hypothesis(LETTERS.encode("on|t"), 8, 2, "on t", words=(Word("on"), Word("t")))


def test_the_transducers_beam_is_the_search() -> None:
    emissions, head = random_emissions(5, seed=4), Once()
    assert emissions.transducer_SH is not None
    paths = beam_transducer(emissions.transducer_SH, head, 3, LETTERS.blank, 2)
    said = TransducerConfig(beam_size=3, max_symbols_per_frame=2).build(PARTS).decode(emissions)
    assert (said.symbols, said.score) == paths[0]
    assert [(c.symbols, c.score) for c in said.n_best] == paths
    assert said.text == said.n_best[0].text == " ".join(word.text for word in said.words)
    longer = TransducerConfig(beam_size=3, max_symbols_per_frame=2, length_normalised=True).build(PARTS)
    ranks = [c.score / (len(c.symbols) + 1) for c in longer.decode(emissions).n_best]
    assert ranks == sorted(ranks, reverse=True)


def test_the_names_tell_beams_apart() -> None:
    assert [decoder.name for decoder in decoders()] == ["greedy", "words", "transducer", "transducer_beam_3"]
    assert [decoder.needs for decoder in decoders()] == [None, None, "rnnt_decoder", "rnnt_decoder"]


def test_one_trials_emissions_decoded_in_turn_are_as_decoded_alone() -> None:
    shared = random_emissions(9, seed=2)
    in_turn = [decoder.decode(shared) for decoder in (*decoders(), *reversed(decoders()))]
    alone = [decoder.decode(random_emissions(9, seed=2)) for decoder in decoders()]
    assert in_turn == [*alone, *reversed(alone)]


def test_a_batch_is_its_trials_one_by_one() -> None:
    trials = [random_emissions(num_frames, seed=num_frames) for num_frames in (11, 3, 7)]
    for decoder in decoders():
        assert decoder.decode_batch(trials) == [decoder.decode(trial) for trial in trials]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TransducerConfig(beam_size=0), r"decoding\.transducer\.beam_size=0: must be at least 1"),
        (lambda: WordsConfig(shortlist=0), r"decoding\.words\.shortlist=0: must be at least 1"),
        (lambda: DecodingConfig(decoder="best"), r"decoding\.decoder=best: choose one of greedy, words, transducer"),
        (lambda: DecodingConfig().build(PARTS, "best"), r"no decoder 'best'; choose one of greedy, words, transducer"),
        (lambda: DecodingConfig().with_beam(0, ["transducer"]), r"beam_size=0: must be at least 1"),
        (lambda: DecodingConfig().with_beam(4), r"a beam of 4: greedy keeps none; choose the decoder transducer"),
        (lambda: WordsConfig().build(DecoderParts(LETTERS)), "'words' needs a lexicon"),
        (
            lambda: TransducerConfig().build(DecoderParts(LETTERS)),
            "the model has no transducer; use the decoder greedy",
        ),
    ],
)
def test_one_line_says_what_cannot_be(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        build()
    assert "\n" not in str(refused.value)


def test_a_beam_is_given_to_those_that_keep_one() -> None:
    changed = DecodingConfig().with_beam(4, ["greedy", "transducer"])
    assert changed == DecodingConfig(transducer=TransducerConfig(beam_size=4))
    assert changed.in_training() == DecodingConfig()


def test_emissions_of_another_table_are_refused() -> None:
    for decoder in decoders():
        with pytest.raises(ConfigurationError, match="frames have 41 symbols, the table of letters has 30"):
            decoder.decode(random_emissions(3, seed=0, table=PHONEMES))


def test_emissions_without_the_transducers_frames_are_refused() -> None:
    bare = Emissions(written("on").log_probs_SV)
    with pytest.raises(ConfigurationError, match="without the transducer's frames"):
        TransducerConfig().build(PARTS).decode(bare)


def test_nan_is_named_with_its_trial() -> None:
    log_probs = written("one").log_probs_SV.copy()
    log_probs[1, 4] = np.nan
    with pytest.raises(DataError, match=r"trial s/val/3: the model gives NaN in 1 of 3 frames"):
        Emissions(log_probs, torch.zeros(3, 1)).check_numbers("s/val/3")
    written("one").check_numbers("s/val/3")
