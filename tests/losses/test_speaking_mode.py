"""The mode loss against loops over the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from sottovoce.losses.speaking_mode import contrastive_nats, speaking_mode_loss


def _embeddings(num_trials: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(num_trials, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _mean_over_anchors(embeddings: torch.Tensor, modes: list[int], temperature: float) -> float:
    """−mean_i [ 1/|P(i)| Σ_p ln( e^{f_i·f_p/τ} / Σ_{a≠i} e^{f_i·f_a/τ} ) ], anchors without a positive left out."""
    terms = []
    for i, mode in enumerate(modes):
        others = [a for a in range(len(modes)) if a != i]
        positives = [p for p in others if modes[p] == mode]
        if positives:
            weight = {a: math.exp(float(embeddings[i] @ embeddings[a]) / temperature) for a in others}
            terms.append(-sum(math.log(weight[p] / sum(weight.values())) for p in positives) / len(positives))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("modes", [[0, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1], [0, 0, 0]])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_contrastive_term_is_the_mean_over_anchors(modes: list[int], temperature: float) -> None:
    embeddings = _embeddings(len(modes))
    nats = contrastive_nats(embeddings, torch.tensor(modes) == 1, torch.ones(len(modes), dtype=torch.bool), temperature)
    assert float(nats.mean()) == pytest.approx(_mean_over_anchors(embeddings, modes, temperature), rel=1e-5)


@pytest.mark.parametrize("modes", [[0], [0, 1]])
def test_without_a_positive_the_term_is_absent(modes: list[int]) -> None:
    embeddings = _embeddings(len(modes)).requires_grad_()
    labelled = torch.ones(len(modes), dtype=torch.bool)
    nats = contrastive_nats(embeddings, torch.tensor(modes) == 1, labelled)
    assert nats.tolist() == [0.0] * len(modes)
    nats.sum().backward()
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_cross_entropy_of_known_and_soft_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    vocalised, labelled = torch.tensor([0.0, 1.0, 0.3]), torch.ones(3, dtype=torch.bool)
    nats = speaking_mode_loss(logits, _embeddings(3), vocalised, labelled, contrastive_weight=0.0)
    log1p = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log(2)]
    assert nats.tolist() == pytest.approx(log1p, rel=1e-6)
    assert nats.dtype == torch.float32


def test_both_terms_together() -> None:
    logits, embeddings = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), _embeddings(4)
    modes = [1, 0, 1, 1]
    nats = speaking_mode_loss(logits, embeddings, torch.tensor(modes).float(), torch.ones(4, dtype=torch.bool))
    expected = functional.cross_entropy(logits, torch.tensor(modes)) + 0.1 * _mean_over_anchors(embeddings, modes, 0.07)
    assert float(nats.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_trials_without_a_label_are_not_read() -> None:
    logits, embeddings = torch.randn(5, 2), _embeddings(5)
    labelled = torch.tensor([True, True, False, True, False])
    vocalised = torch.tensor([1.0, 0.0, math.nan, 1.0, 7.0])
    nats = speaking_mode_loss(logits, embeddings, vocalised, labelled)
    kept = [0, 1, 3]
    alone = speaking_mode_loss(logits[kept], embeddings[kept], vocalised[kept], torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(nats[kept], alone)
    assert nats[[2, 4]].tolist() == [0.0, 0.0]


def test_cross_entropy_does_not_depend_on_batch_mates() -> None:
    logits, vocalised = torch.randn(4, 2), torch.tensor([1.0, 0.0, 0.6, 1.0])
    labelled = torch.ones(4, dtype=torch.bool)
    whole = speaking_mode_loss(logits, _embeddings(4), vocalised, labelled, contrastive_weight=0.0)
    for row in range(4):
        part = slice(row, row + 1)
        alone = speaking_mode_loss(logits[part], _embeddings(4)[part], vocalised[part], labelled[part])
        assert alone.item() == pytest.approx(whole[row].item(), rel=1e-6)


def test_gradients_are_right_and_finite() -> None:
    logits = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    vocalised, labelled = torch.tensor([1.0, 0.0, math.nan, 1.0]), torch.tensor([True, True, False, True])
    nats = speaking_mode_loss(logits, functional.normalize(raw, dim=-1), vocalised, labelled)
    nats.sum().backward()
    assert logits.grad is not None
    assert raw.grad is not None
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    probabilities = logits.softmax(dim=-1).float() * labelled[:, None]
    torch.testing.assert_close(logits.grad.float(), probabilities - target)
    assert torch.isfinite(raw.grad).all()
    assert not raw.grad[2].any()


def test_a_label_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        speaking_mode_loss(torch.zeros(1, 2), _embeddings(1), torch.tensor([1.5]), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        speaking_mode_loss(torch.zeros(1, 2), _embeddings(1), torch.tensor([math.nan]), torch.tensor([True]))
