"""The divergence from teachers, against the definition written out frame by frame."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sottovoce.losses.distillation import distillation_loss, frame_weights, teachers_opinion

BLANK = 0


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def _slow_opinion(logits: list[list[float]], weights: list[float], temperature: float, aggregation: str) -> list[float]:
    """One frame; each teacher with a weight."""
    said = [(w, _softmax(z, temperature)) for z, w in zip(logits, weights, strict=True) if w > 0]
    columns = range(len(logits[0]))
    if aggregation == "prob_mean":
        return [sum(w * p[v] for w, p in said) for v in columns]
    return _softmax([sum(w * math.log(p[v]) for w, p in said) for v in columns], 1.0)


@pytest.mark.parametrize("aggregation", ["logprob_mean", "prob_mean"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_opinion_is_the_mean_of_those_that_may_teach(aggregation: str, temperature: float) -> None:
    logits_KBSV = _logits(3, 2, 4, 5)
    weights_KB = torch.tensor([[1 / 3, 0.5], [1 / 3, 0.0], [1 / 3, 0.5]])
    logits_KBSV[1, 1] = torch.nan  # of weight 0: never read
    log_q_BSV = teachers_opinion(logits_KBSV, weights_KB, temperature, aggregation)
    for b, s in itertools.product(range(2), range(4)):
        expected = _slow_opinion(logits_KBSV[:, b, s].tolist(), weights_KB[:, b].tolist(), temperature, aggregation)
        assert log_q_BSV[b, s].exp().tolist() == pytest.approx(expected, abs=1e-5)


def test_the_mean_of_logits_is_the_geometric_mean() -> None:
    logits_KBSV, weights_KB = _logits(3, 1, 6, 5), torch.full((3, 1), 1 / 3)
    of_logits = (logits_KBSV.mean(0) / 2.0).log_softmax(-1)
    torch.testing.assert_close(teachers_opinion(logits_KBSV, weights_KB, 2.0, "logprob_mean"), of_logits)


@pytest.mark.parametrize("aggregation", ["logprob_mean", "prob_mean"])
def test_a_trial_without_a_teacher_gives_numbers_all_the_same(aggregation: str) -> None:
    log_q_BSV = teachers_opinion(_logits(2, 1, 3, 5), torch.zeros(2, 1), 1.0, aggregation)
    assert log_q_BSV.exp().sum(-1).tolist() == [pytest.approx([1.0] * 3)]


def test_blank_frames_count_little_and_padding_nothing() -> None:
    sure, unsure = [0.97, 0.01, 0.02], [0.9, 0.05, 0.05]
    log_q_BSV = torch.tensor([[sure, unsure, sure, unsure]]).log()
    weights = frame_weights(log_q_BSV, torch.tensor([3]), BLANK, threshold=0.95, weight=0.1)
    assert weights.tolist() == [pytest.approx([0.1, 1.0, 0.1, 0.0])]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_weighted_sum_of_divergences_over_all_symbols(temperature: float) -> None:
    logits_BSV, log_q_BSV = _logits(2, 4, 5), _logits(2, 4, 5, seed=1).log_softmax(-1)
    weights_BS = torch.tensor([[1.0, 0.1, 1.0, 1.0], [0.1, 1.0, 0.0, 0.0]])
    nats_B = distillation_loss(logits_BSV, log_q_BSV, weights_BS, temperature)
    for b in range(2):
        expected = 0.0
        for s in range(4):
            p = _softmax(logits_BSV[b, s].tolist(), temperature)
            q = log_q_BSV[b, s].exp().tolist()
            expected += float(weights_BS[b, s]) * sum(q[v] * math.log(q[v] / p[v]) for v in range(5))
        assert nats_B[b].item() == pytest.approx(temperature**2 * expected, rel=1e-5)


def test_a_student_that_agrees_loses_nothing() -> None:
    logits_BSV = _logits(1, 6, 5)
    nats_B = distillation_loss(logits_BSV, (logits_BSV / 2.0).log_softmax(-1), torch.ones(1, 6), 2.0)
    assert nats_B.item() == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_of_a_frame_is_as_large_as_its_formula_says_and_reaches_the_blank() -> None:
    """τ·w·(softmax(z/τ) - q): as CTC's, posterior minus what is wanted, and not divided by the number of frames."""
    logits_BSV, log_q_BSV = _logits(1, 6, 5).requires_grad_(), _logits(1, 6, 5, seed=1).log_softmax(-1)
    weights_BS = torch.tensor([[1.0, 0.1, 1.0, 0.1, 1.0, 0.0]])
    (gradient,) = torch.autograd.grad(distillation_loss(logits_BSV, log_q_BSV, weights_BS, 2.0).sum(), logits_BSV)
    p = (logits_BSV.detach() / 2).softmax(-1)
    torch.testing.assert_close(gradient, 2 * weights_BS[..., None] * (p - log_q_BSV.exp()))
    assert gradient[0, :5, BLANK].abs().min().item() > 1e-4
    assert gradient[0, 5].abs().max().item() == 0.0


def test_batch_mates_and_padding_do_not_matter() -> None:
    logits_BSV, log_q_BSV = _logits(2, 7, 5), _logits(2, 7, 5, seed=1).log_softmax(-1)
    weights_BS = frame_weights(log_q_BSV, torch.tensor([7, 4]), BLANK, 0.95, 0.1)
    together = distillation_loss(logits_BSV, log_q_BSV, weights_BS, 2.0)
    alone = distillation_loss(logits_BSV[1:, :4], log_q_BSV[1:, :4], weights_BS[1:, :4], 2.0)
    assert together[1].item() == pytest.approx(alone.item(), rel=1e-6)


def test_other_frames_or_symbols_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 6, 5\], the teachers' \[1, 6, 4\]"):
        distillation_loss(_logits(1, 6, 5), _logits(1, 6, 4).log_softmax(-1), torch.ones(1, 6), 1.0)


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits_BSV, log_q_BSV = _logits(1, 6, 5).bfloat16(), _logits(1, 6, 5, seed=1).log_softmax(-1)
    nats = distillation_loss(logits_BSV, log_q_BSV, torch.ones(1, 6), 2.0)
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(
        distillation_loss(logits_BSV.float(), log_q_BSV, torch.ones(1, 6), 2.0).item(), rel=1e-6
    )
    with pytest.raises(ValueError, match="float16"):
        distillation_loss(logits_BSV.half(), log_q_BSV, torch.ones(1, 6), 2.0)
