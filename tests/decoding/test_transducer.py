"""Transducer search against every path of tiny lattices."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch

from sottovoce.decoding.transducer import State, beam_transducer, greedy_transducer
from sottovoce.models.transducer import TransducerConfig, TransducerHead

Labels = tuple[int, ...]


class Toy:
    """A transducer whose next symbol depends on the frame and on all labels so far; float64, the joint is a sum."""

    def __init__(self, num_symbols: int, seed: int = 0) -> None:
        self.mixing = 2.5 * torch.randn(
            3, num_symbols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        self.advanced: list[int] = []

    def start(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, dtype=torch.float64),)

    def advance(self, state: State, symbols_N: torch.Tensor) -> tuple[State, torch.Tensor]:
        self.advanced += symbols_N.tolist()
        memory_N = torch.sin(3.0 * state[0] + 1.3 * symbols_N + 0.7)
        features = torch.stack([memory_N, memory_N.square(), torch.cos(5 * memory_N)], dim=1)
        return (memory_N,), features @ self.mixing

    def joint(self, sum_H: torch.Tensor) -> torch.Tensor:
        return sum_H

    def log_probs(self, frame_H: torch.Tensor, labels: Labels, blank: int) -> torch.Tensor:
        """ln p(symbol | frame, labels), from the start symbol on."""
        state, output = self.advance(self.start(1), torch.tensor([blank]))
        for symbol in labels:
            state, output = self.advance(state, torch.tensor([symbol]))
        return self.joint(frame_H + output[0]).log_softmax(dim=-1)


def frames(num_frames: int, num_symbols: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(num_frames, num_symbols, dtype=torch.float64, generator=generator)


def every_path(toy: Toy, encoder: torch.Tensor, blank: int, cap: int, most_labels: int) -> dict[Labels, float]:
    """ln of the summed probability of all paths of each label sequence, path by path."""
    others = [k for k in range(encoder.shape[1]) if k != blank]

    def walk(frame: int, labels: Labels, emitted: int, score: float) -> Iterator[tuple[Labels, float]]:
        if frame == len(encoder):
            yield labels, score
            return
        log_probs = toy.log_probs(encoder[frame], labels, blank)
        yield from walk(frame + 1, labels, 0, score + float(log_probs[blank]))
        if emitted < cap and len(labels) < most_labels:
            for symbol in others:
                yield from walk(frame, (*labels, symbol), emitted + 1, score + float(log_probs[symbol]))

    totals: dict[Labels, float] = defaultdict(float)
    for labels, score in walk(0, (), 0, 0.0):
        totals[labels] += math.exp(score)
    return {labels: math.log(total) for labels, total in totals.items()}


@pytest.mark.parametrize(
    ("num_frames", "num_symbols", "blank", "cap"),
    [(1, 3, 0, 3), (2, 3, 2, 3), (3, 3, 1, 2), (4, 3, 0, 1), (4, 2, 0, 3)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_gives_every_sequence_its_exact_probability(
    num_frames: int, num_symbols: int, blank: int, cap: int, seed: int
) -> None:
    toy, encoder = Toy(num_symbols, seed), frames(num_frames, num_symbols, seed)
    truth = every_path(toy, encoder, blank, cap, most_labels=cap * num_frames)
    found = beam_transducer(encoder, toy, 2000, blank, cap)
    assert dict(found).keys() == truth.keys()
    for labels, score in found:
        assert score == pytest.approx(truth[labels], abs=1e-9)
    assert [score for _, score in found] == pytest.approx(sorted(truth.values(), reverse=True), abs=1e-9)


def test_scores_are_those_of_the_lattice_recursion() -> None:
    """Graves 2012: ln P = α(S−1, U) + ln p(blank); a cap of U labels a frame leaves no path out."""
    toy, encoder = Toy(3), frames(4, 3, 0)
    found = dict(beam_transducer(encoder, toy, 20_000, max_symbols_per_frame=3))
    for labels in itertools.chain.from_iterable(itertools.product((1, 2), repeat=n) for n in range(4)):
        alpha = {(0, 0): 0.0}
        for s, u in itertools.product(range(4), range(len(labels) + 1)):
            arriving = []
            if s:
                arriving.append(alpha[s - 1, u] + float(toy.log_probs(encoder[s - 1], labels[:u], 0)[0]))
            if u:
                arriving.append(alpha[s, u - 1] + float(toy.log_probs(encoder[s], labels[: u - 1], 0)[labels[u - 1]]))
            if arriving:
                alpha[s, u] = math.log(sum(map(math.exp, arriving)))
        final = alpha[3, len(labels)] + float(toy.log_probs(encoder[3], labels, 0)[0])
        assert found[labels] == pytest.approx(final, abs=1e-9)


@pytest.mark.slow
def test_a_narrow_beam_never_claims_more_than_the_truth_and_finds_the_best() -> None:
    hits = 0
    for seed in range(20):
        toy, encoder = Toy(3, seed), frames(3, 3, seed)
        truth = every_path(toy, encoder, 0, cap=2, most_labels=6)
        found = beam_transducer(encoder, toy, 4, max_symbols_per_frame=2)
        assert len(found) <= 4
        assert all(score <= truth[labels] + 1e-9 for labels, score in found)
        hits += found[0][0] == max(truth, key=lambda labels: truth[labels])
    assert hits >= 18


def test_length_normalisation_reorders_but_keeps_the_scores() -> None:
    toy, encoder = Toy(3, 3), frames(3, 3, 3)
    plain = beam_transducer(encoder, toy, 2000, max_symbols_per_frame=2)
    normalised = beam_transducer(encoder, toy, 2000, max_symbols_per_frame=2, length_normalised=True)
    assert dict(plain) == dict(normalised)
    assert normalised == sorted(plain, key=lambda item: -item[1] / (len(item[0]) + 1))
    assert normalised != plain


def greedy_by_hand(toy: Toy, encoder: torch.Tensor, blank: int, cap: int) -> list[int]:
    labels: Labels = ()
    for frame in encoder:
        for _ in range(cap):
            best = int(toy.log_probs(frame, labels, blank).argmax())
            if best == blank:
                break
            labels = (*labels, best)
    return list(labels)


@pytest.mark.parametrize(("blank", "cap"), [(0, 5), (0, 1), (3, 2)])
def test_greedy_takes_the_best_symbol_until_it_is_the_blank(blank: int, cap: int) -> None:
    toy = Toy(4, 5)
    toy.mixing[:, blank] += 0.8  # blanks in a row, as trained models have them
    encoder = torch.stack([3 * frames(30, 4, seed) for seed in range(6)])
    lengths = torch.tensor([30, 29, 9, 8, 1, 0])
    expected = [greedy_by_hand(toy, row[:n], blank, cap) for row, n in zip(encoder, lengths.tolist(), strict=True)]
    assert greedy_transducer(encoder, lengths, toy, blank, cap) == expected
    assert [len(labels) for labels in expected][-1] == 0 < len(expected[0])


def test_the_predictor_moves_on_labels_only() -> None:
    toy = Toy(3)
    encoder = torch.full((1, 20, 3), -50.0, dtype=torch.float64)
    encoder[..., 0] = 50.0  # nothing but blanks
    assert greedy_transducer(encoder, torch.tensor([20]), toy) == [[]]
    assert toy.advanced == [0]  # the start symbol
    encoder[0, 11, 2], encoder[0, 11, 0] = 50.0, -50.0
    assert greedy_transducer(encoder, torch.tensor([20]), toy, max_symbols_per_frame=1) == [[2]]
    assert toy.advanced == [0, 0, 2]


def test_the_number_of_labels_in_a_frame_is_capped() -> None:
    encoder = torch.full((1, 2, 3), -50.0, dtype=torch.float64)
    encoder[..., 1] = 50.0  # never a blank
    assert greedy_transducer(encoder, torch.tensor([2]), Toy(3)) == [[1] * 10]
    found = beam_transducer(encoder[0], Toy(3), 500, max_symbols_per_frame=2)
    assert max(len(labels) for labels, _ in found) == 4


@pytest.mark.parametrize("layers", [0, 2])
def test_both_searches_agree_with_the_trained_head_s_own_lattice(layers: int) -> None:
    """With the real head: the beam's score is the brute-force sum over the plain route's logits."""
    torch.manual_seed(1)
    config = TransducerConfig(embedding_size=5, units=6, layers=layers, joint_size=7, dropout=0.3)
    head = TransducerHead(config, 4, 3).double().eval()
    with torch.no_grad():
        head.output.weight *= 8
        head.embedding.weight *= 20
        encoder = head.project(torch.randn(2, 3, 4, dtype=torch.float64))
    found = dict(beam_transducer(encoder[0], head, 5000, max_symbols_per_frame=3))
    for labels in [(), (1,), (2, 2), (1, 2, 1)]:
        targets = torch.tensor([labels], dtype=torch.long).reshape(1, len(labels))
        with torch.no_grad():
            log_probs = head.logits(encoder[:1], head.predict(targets, torch.tensor([len(labels)])))[0].log_softmax(-1)
        total = 0.0
        for at in itertools.combinations_with_replacement(range(3), len(labels)):  # the frame of each label
            score = sum(float(log_probs[s, u, labels[u]]) for u, s in enumerate(at))
            score += sum(float(log_probs[s, sum(a <= s for a in at), 0]) for s in range(3))
            total += math.exp(score)
        assert found[labels] == pytest.approx(math.log(total), abs=1e-9)
    both = greedy_transducer(encoder, torch.tensor([3, 2]), head)
    assert both[1] == greedy_transducer(encoder[1:, :2], torch.tensor([2]), head)[0]


def test_senseless_arguments_are_refused() -> None:
    toy, encoder = Toy(3), frames(2, 3, 0)
    with pytest.raises(ValueError, match="max_symbols_per_frame=0"):
        greedy_transducer(encoder[None], torch.tensor([2]), toy, max_symbols_per_frame=0)
    with pytest.raises(ValueError, match=r"frame lengths \[3\] exceed the 2 frames"):
        greedy_transducer(encoder[None], torch.tensor([3]), toy)
    with pytest.raises(ValueError, match="beam_size=0"):
        beam_transducer(encoder, toy, 0)


def test_a_trial_without_frames_says_nothing() -> None:
    assert beam_transducer(frames(0, 3, 0), Toy(3), 4) == [((), 0.0)]
