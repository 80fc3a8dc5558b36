import math

import pytest
import torch
from torch.autograd import gradcheck

from sottovoce.losses import ctc_loss
from sottovoce.losses.combine import normalised_sum


def _uniform(frames: int, labels: list[int]) -> float:
    lengths = torch.tensor([frames]), torch.tensor([len(labels)])
    return float(ctc_loss(torch.zeros(1, frames, 41), torch.tensor([labels]), *lengths))


def test_uniform_logits_against_the_closed_form() -> None:
    """S·ln V − ln C(S + U − R, 2U): the number of alignments is known."""
    assert _uniform(50, list(range(1, 11))) == pytest.approx(149.70669, abs=1e-4)
    assert _uniform(20, [3, 3, 5, 5, 5, 2]) == pytest.approx(60.15429, abs=1e-4)
    assert _uniform(9, [3, 3, 5, 5, 5, 2]) == pytest.approx(33.42215, abs=1e-4)
    assert 50 * math.log(41) - math.log(math.comb(60, 20)) == pytest.approx(149.70669, abs=1e-4)


def test_infeasible_target_is_infinite_not_zero() -> None:
    assert _uniform(8, [3, 3, 5, 5, 5, 2]) == math.inf


def test_padding_and_batch_mates_do_not_matter() -> None:
    logits = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    targets, lengths = torch.tensor([[1, 2, 2], [3, 0, 0]]), torch.tensor([3, 1])
    together = ctc_loss(logits, targets, torch.tensor([12, 7]), lengths)
    alone = ctc_loss(logits[1:, :7], targets[1:, :1], torch.tensor([7]), lengths[1:])
    assert together[1].item() == pytest.approx(alone.item(), abs=1e-5)


def test_blank_may_be_last() -> None:
    logits = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9]), torch.tensor([2])
    first = ctc_loss(logits, torch.tensor([[1, 4]]), *lengths, blank=0)
    last = ctc_loss(logits.roll(-1, dims=2), torch.tensor([[0, 3]]), *lengths, blank=4)
    assert first.item() == pytest.approx(last.item(), abs=1e-6)


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(2)).bfloat16()
    arguments = torch.tensor([[1, 2]]), torch.tensor([30]), torch.tensor([2])
    nats = ctc_loss(logits, *arguments)
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(ctc_loss(logits.float(), *arguments).item(), abs=1e-6)


def test_gradient_sums_to_zero_in_every_frame() -> None:
    logits = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ctc_loss(logits, torch.tensor([[1, 1, 2]]), torch.tensor([8]), torch.tensor([3])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.sum(-1).abs().max().item() < 1e-6
    assert logits.grad[0, 8].abs().max().item() == 0.0


def test_gradcheck_of_the_same_formula_in_double() -> None:
    logits = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()

    def nats(x: torch.Tensor) -> torch.Tensor:
        log_probs = x.log_softmax(-1).transpose(0, 1)
        lengths = torch.tensor([6]), torch.tensor([2])
        return torch.nn.functional.ctc_loss(log_probs, torch.tensor([[1, 2]]), *lengths, reduction="none")

    assert gradcheck(nats, (logits,))
    value = ctc_loss(logits.detach(), torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]))
    assert value.item() == pytest.approx(nats(logits).item(), rel=1e-6)


@pytest.mark.parametrize("normalisation", ["per_utterance", "per_token"])
def test_the_step_s_loss_does_not_depend_on_how_the_batch_is_cut(normalisation: str) -> None:
    nats, lengths = torch.tensor([3.0, 8.0, 5.0, 4.0]), torch.tensor([1, 4, 0, 2])
    whole = normalised_sum(nats, lengths, normalisation, 4)
    parts = sum(normalised_sum(nats[i : i + 1], lengths[i : i + 1], normalisation, 4) for i in range(4))
    assert float(whole) == pytest.approx(float(parts))
    expected = 5.0 if normalisation == "per_utterance" else (3 + 2 + 5 + 2) / 4
    assert float(whole) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("targets", "frames", "labels", "words"),
    [
        ([[1, 2], [3, 0]], [5, 5], [2, 2], "utterance 1: label 0 at 1 is the blank"),
        ([[1, 2], [9, 3]], [5, 5], [2, 2], "utterance 1: label 9 at 0"),
        ([[1, 2], [3, 4]], [5, 6], [2, 2], "utterance 1 has 6 frames, its tensor holds 5"),
        ([[1, 2], [3, 4]], [5, 5], [3, 2], "utterance 0 has 3 labels, its tensor holds 2"),
    ],
)
def test_what_is_no_target_is_refused_by_name(
    targets: list[list[int]], frames: list[int], labels: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        ctc_loss(torch.zeros(2, 5, 6), torch.tensor(targets), torch.tensor(frames), torch.tensor(labels))
