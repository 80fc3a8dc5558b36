"""The speaking-mode head and its conditioner: size, pooling, padding, bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.speaking_mode import ModeConditioner, Pool, SpeakingModeConfig, SpeakingModeHead


def _head(pool: str = "mean", size: int = 16) -> SpeakingModeHead:
    torch.manual_seed(0)
    return SpeakingModeHead(SpeakingModeConfig(pool=pool), size).eval()


def test_size_is_the_published_one() -> None:
    head = SpeakingModeHead(SpeakingModeConfig(), 512)
    assert sum(p.numel() for p in head.parameters()) == 131_328 + 32_896 + 258 + 33_024 == 197_506
    # attention: 512·512 + 512 and 512 more
    attentive = SpeakingModeHead(SpeakingModeConfig(pool="attention"), 512)
    assert sum(p.numel() for p in attentive.parameters()) == 197_506 + 263_168


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_padding_changes_nothing_whatever_it_holds(pool: str) -> None:
    head = _head(pool)
    x, lengths = torch.randn(3, 9, 16), torch.tensor([9, 4, 1])
    x[1, 4:], x[2, 1:] = 1e9, math.nan
    together = head(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together.logits_B2[row], alone.logits_B2[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.embedding_BD[row], alone.embedding_BD[0], atol=1e-6, rtol=1e-5)


def test_pools_by_hand() -> None:
    x, lengths = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]]), torch.tensor([2])
    assert Pool("mean", 2)(x, lengths).tolist() == [[2.0, -3.0]]
    assert Pool("max", 2)(x, lengths).tolist() == [[3.0, -2.0]]
    pool = Pool("attention", 2)
    assert pool.attention is not None
    inner, _, outer = pool.attention
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    with torch.no_grad():
        scores = outer.weight @ (inner.weight @ x[0, :2].T + inner.bias[:, None]).tanh()
    torch.testing.assert_close(pool(x, lengths), scores.softmax(dim=1) @ x[0, :2])


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_gradients_are_finite_beside_a_trial_of_one_frame(pool: str) -> None:
    head = _head(pool, size=64)
    x = torch.randn(4, 5, 64, requires_grad=True)
    output = head(x, torch.tensor([5, 3, 2, 1]))
    assert torch.allclose(output.embedding_BD.norm(dim=1), torch.ones(4))
    assert torch.allclose(output.posterior_B2.sum(dim=1), torch.ones(4))
    (output.logits_B2.square().sum() + output.embedding_BD[:, 0].sum()).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[3, 1:].any()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_conditioner_starts_without_effect_and_learns() -> None:
    conditioner = ModeConditioner(6)
    posterior = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    modulation = conditioner(posterior)
    assert modulation.log_time_scale_B.tolist() == [0.0, 0.0]
    assert modulation.gain_BE.tolist() == [[0.0] * 6] * 2
    (modulation.log_time_scale_B.sum() + modulation.gain_BE.sum()).backward()
    assert conditioner.by_mode.weight.grad is not None
    # d(ln 2 · tanh(w·p))/dw = ln 2 · p at w = 0, summed over the trials
    torch.testing.assert_close(conditioner.by_mode.weight.grad[0], math.log(2) * posterior.sum(dim=0))
    torch.testing.assert_close(conditioner.by_mode.weight.grad[1], 0.5 * posterior.sum(dim=0))


def test_the_modulation_is_bounded_and_depends_on_the_mode() -> None:
    conditioner = ModeConditioner(3)
    with torch.no_grad():
        conditioner.by_mode.weight.copy_(torch.tensor([[-1e4, 1e4], [0.0, 1.0], [0.0, 0.0], [1e4, -1e4]]))
    modulation = conditioner(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(modulation.log_time_scale_B.exp(), torch.tensor([0.5, 2.0, 1.0]))
    torch.testing.assert_close(modulation.gain_BE[1], torch.tensor([0.5 * math.tanh(1.0), 0.0, -0.5]))
    assert modulation.gain_BE.abs().max() <= 0.5


def test_the_posterior_gets_no_gradient_from_the_modulation() -> None:
    conditioner = ModeConditioner(2)
    torch.nn.init.ones_(conditioner.by_mode.weight)
    logits = torch.randn(3, 2, requires_grad=True)
    modulation = conditioner(logits.softmax(dim=-1))
    modulation.gain_BE.sum().backward()
    assert logits.grad is None


@pytest.mark.parametrize("setting", [{"pool": "median"}, {"dropout": 1.0}, {"contrastive_size": 0}])
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.speaking_mode\.{next(iter(setting))}="):
        SpeakingModeConfig(**setting)
