"""Lexicon scoring against brute force and PyTorch; words cut at boundaries with exact text and score."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sottovoce.core.errors import DataError
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.decoding.lexicon import Lexicon, decode_words, nearest_word, word_scores

Array = npt.NDArray[np.float64]
DIGITS = Lexicon.from_words("zero one two three four five six seven eight nine".split(), LETTERS.encode)


def _random_frames(num_frames: int, num_symbols: int, seed: int = 0) -> Array:
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(num_symbols), num_frames))


def _spoken(symbols: str, peak: float = 0.9) -> Array:
    """Frames of the letters in `symbols`, `_` for the blank, each with probability `peak`, the rest shared equally."""
    ids = [LETTERS.blank if s == "_" else LETTERS.index[s] for s in symbols]
    frames = np.full((len(ids), len(LETTERS)), (1 - peak) / (len(LETTERS) - 1))
    frames[np.arange(len(ids)), ids] = peak
    return np.log(frames)


def _collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


@pytest.mark.parametrize("blank", [0, 2])
def test_scores_equal_the_sum_over_all_alignments(blank: int) -> None:
    symbols = [s for s in range(4) if s != blank]
    entries = [p for n in (1, 2, 3) for p in itertools.product(symbols, repeat=n)]
    lexicon = Lexicon(tuple(map(str, entries)), tuple(entries))
    log_probs = _random_frames(5, 4)
    sums = dict.fromkeys(entries, 0.0)
    for path in itertools.product(range(4), repeat=5):
        label = _collapse(path, blank)
        if label in sums:
            sums[label] += math.exp(sum(log_probs[frame, symbol] for frame, symbol in enumerate(path)))
    np.testing.assert_allclose(word_scores(log_probs, lexicon, blank), np.log(list(sums.values())), rtol=1e-12)


def test_scores_equal_pytorchs_loss() -> None:
    generator = np.random.default_rng(1)
    entries = tuple(tuple(generator.integers(1, 9, generator.integers(1, 12)).tolist()) for _ in range(300))
    lexicon = Lexicon(tuple(str(i) for i in range(300)), entries)
    log_probs = _random_frames(40, 9)
    lengths = torch.tensor([len(e) for e in entries])
    targets = torch.tensor([i for e in entries for i in e])
    loss = torch.nn.functional.ctc_loss(
        torch.from_numpy(log_probs)[:, None].repeat(1, 300, 1),
        targets,
        torch.full((300,), 40),
        lengths,
        reduction="none",
    )
    np.testing.assert_allclose(word_scores(log_probs, lexicon), -loss.numpy(), rtol=1e-10)


def test_a_boundary_that_must_follow_is_one_more_symbol() -> None:
    log_probs = _random_frames(12, len(LETTERS))
    longer = Lexicon(DIGITS.words, tuple((*p, LETTERS.boundary) for p in DIGITS.pronunciations))
    np.testing.assert_array_equal(word_scores(log_probs, DIGITS, 0, LETTERS.boundary), word_scores(log_probs, longer))


def test_entries_that_need_more_frames_score_minus_infinity() -> None:
    scores = dict(zip(DIGITS.words, word_scores(_random_frames(5, len(LETTERS)), DIGITS), strict=True))
    assert scores["three"] == -math.inf  # five letters and a blank between the two e
    assert all(math.isfinite(score) for word, score in scores.items() if word != "three")
    assert (word_scores(np.zeros((0, 30)), DIGITS) == -math.inf).all()


def test_impossible_symbols_give_minus_infinity_not_nan() -> None:
    frames = _spoken("onne")
    with np.errstate(divide="ignore"):
        frames[:, LETTERS.index["t"]] = np.log(0.0)
    scores = dict(zip(DIGITS.words, word_scores(frames, DIGITS), strict=True))
    assert scores["two"] == scores["eight"] == -math.inf
    assert math.isfinite(scores["one"])


def test_an_isolated_word_is_all_frames() -> None:
    frames = _spoken("__s_ev__een_")
    (word,) = decode_words(frames, DIGITS)
    scores = word_scores(frames, DIGITS)
    assert (word.word, word.start_frame, word.end_frame) == ("seven", 0, 12)
    assert word.log_prob == scores[7]
    assert word.confidence == pytest.approx(math.exp(scores[7] - np.logaddexp.reduce(scores)), abs=1e-12)
    assert word.alternatives[0] == ("seven", word.log_prob)
    assert len(word.alternatives) == 5
    assert [score for _, score in word.alternatives] == sorted(scores, reverse=True)[:5]


def test_an_all_blank_word_is_still_the_best_entry() -> None:
    (word,) = decode_words(_spoken("______"), DIGITS)
    assert word.word in ("one", "two", "six")  # the shortest, equally likely
    assert word.confidence < 0.5


def test_uniform_frames_have_the_closed_form_score() -> None:
    # C(S + U - R, 2U) alignments of equal probability: core of the CTC oracle at uniform logits
    frames = np.full((10, 30), -math.log(30))
    expected = math.log(math.comb(10 + 3, 6)) - 10 * math.log(30)
    assert word_scores(frames, DIGITS)[1] == pytest.approx(expected, abs=1e-12)


def test_words_are_cut_at_boundaries_and_scored_with_them() -> None:
    frames = _spoken("_on_e_||_ttwo|_|__six_")
    words = decode_words(frames, DIGITS, LETTERS.boundary)
    assert [(w.word, w.start_frame, w.end_frame) for w in words] == [("one", 0, 8), ("two", 8, 14), ("six", 16, 22)]
    one, two, six = words
    assert one.log_prob == word_scores(frames[:8], DIGITS, 0, LETTERS.boundary)[1]
    assert two.log_prob == word_scores(frames[8:14], DIGITS, 0, LETTERS.boundary)[2]
    assert six.log_prob == word_scores(frames[16:22], DIGITS)[6]
    assert all(w.confidence > 0.99 for w in words)


def test_pieces_without_symbols_or_with_too_few_frames_hold_no_word() -> None:
    assert decode_words(_spoken("__|__|_"), DIGITS, LETTERS.boundary) == []
    assert decode_words(_spoken("on|o_n_e"), DIGITS, LETTERS.boundary)[0].word == "one"
    assert len(decode_words(_spoken("on|o_n_e"), DIGITS, LETTERS.boundary)) == 1
    assert decode_words(np.zeros((0, 30)), DIGITS, LETTERS.boundary) == []
    assert decode_words(np.zeros((0, 30)), DIGITS) == []


def test_a_misspelt_word_becomes_the_likeliest_entry() -> None:
    assert [w.word for w in decode_words(_spoken("_fiv_|_nein_"), DIGITS, LETTERS.boundary)] == ["five", "nine"]


def test_pronunciations_of_one_word_are_summed() -> None:
    table = {"the": [["DH", "AH"], ["DH", "IY"]], "a": [["AH"]]}
    lexicon = Lexicon.from_pronunciations(table, PHONEMES)
    assert lexicon.words == ("the", "the", "a")
    assert lexicon.pronunciations == ((10, 3), (10, 18), (3,))
    frames = _random_frames(4, len(PHONEMES), seed=3)
    scores = word_scores(frames, lexicon)
    found = dict(decode_words(frames, lexicon)[0].alternatives)
    assert found == {"the": pytest.approx(np.logaddexp(scores[0], scores[1]), abs=1e-12), "a": scores[2]}


def test_a_shortlist_holds_the_nearest_entries() -> None:
    frames = _spoken("_f_o_ur_")
    (word,) = decode_words(frames, DIGITS, shortlist=2)
    everything = decode_words(frames, DIGITS)[0]
    assert (word.word, word.log_prob) == ("four", everything.log_prob)
    assert [w for w, _ in word.alternatives] == [
        "four",
        "one",
    ]  # 0 and 3 edits; five and nine have 3 or more and come later
    assert word.confidence >= everything.confidence


def test_nearest_word_and_its_ties() -> None:
    assert nearest_word(LETTERS.encode("sevn"), DIGITS) == "seven"
    assert nearest_word((), DIGITS) == "one"  # three deletions, as for "two" and "six"


def test_unusable_lexicons_name_the_word() -> None:
    with pytest.raises(DataError, match=r"^unknown_symbol: 'QQ' .* \(the lexicon's word 'w'\)"):
        Lexicon.from_pronunciations({"w": [["W", "QQ"]]}, PHONEMES)
    with pytest.raises(DataError, match="'w' has a pronunciation without symbols"):
        Lexicon(("w",), ((),))
    with pytest.raises(DataError, match="got 0 words and 0 pronunciations"):
        Lexicon.from_words([], LETTERS.encode)
