"""The preprocessor of the state-space model: values, padding, lengths, statistics and size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.stem import MaskedBatchNorm, Stem, StemConfig, standardised


def stem_of(**settings: Any) -> Stem:
    torch.manual_seed(0)
    stem = Stem(StemConfig(width=8, gate_reduction=2, dropout=0.0, **settings), 6)
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stem


def test_size_is_the_published_one() -> None:
    # normalisation, gate 512·32 + 32 + 32·512 + 512, convolution 512·8, projection, LayerNorm
    expected = 1_024 + 33_312 + 4_096 + 262_656 + 1_024
    sizes = {
        name: sum(p.numel() for p in Stem(StemConfig(normalisation=name), 512).parameters())
        for name in ("batch", "trial", "none")
    }
    assert sizes == {"batch": expected, "trial": expected - 1_024, "none": expected - 1_024}
    assert expected == 302_112


def test_initial_values() -> None:
    torch.manual_seed(0)
    stem = Stem(StemConfig(), 512)
    assert stem.conv.weight.std().item() == pytest.approx((2 / (512 * 7)) ** 0.5, rel=0.05)
    bound = (6 / 1024) ** 0.5
    assert 0.99 * bound < stem.projection.weight.abs().max().item() <= bound
    assert not stem.conv.bias.any()
    assert not stem.projection.bias.any()


@pytest.mark.parametrize("normalisation", ["trial", "batch", "none"])
def test_forward_is_the_formula(normalisation: str) -> None:
    """Normalise, gate by the mean, convolution with ReLU and skip, linear map, LayerNorm: with PyTorch's own parts."""
    stem = stem_of(normalisation=normalisation).double()
    x = 3 + 2 * torch.randn(1, 20, 6).double()
    h = x
    if normalisation == "trial":
        h = functional.instance_norm(x.mT).mT
    elif stem.batch_norm is not None:
        norm = nn.BatchNorm1d(6).double()
        norm.load_state_dict(stem.batch_norm.state_dict(), strict=False)
        h = norm(x.mT).mT
    gate = stem.gate.expand(torch.relu(stem.gate.contract(h.mean(1)))).sigmoid()
    h = h * gate[:, None]
    conv = functional.conv1d(h.mT, stem.conv.weight.mT[:, None], stem.conv.bias, padding=3, groups=6).mT
    expected = stem.norm(stem.projection(h + conv.relu()))
    found, lengths = stem(x, torch.tensor([20]))
    torch.testing.assert_close(found, expected)
    assert lengths.tolist() == [20]


@pytest.mark.parametrize("normalisation", ["trial", "batch", "none"])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_trial_alone_equals_the_trial_padded(normalisation: str, stride: int) -> None:
    stem = stem_of(normalisation=normalisation, stride=stride)
    lengths = torch.tensor([40, 23, 1, 8, 0])
    x = torch.randn(5, 40, 6)
    stem(x, lengths)  # running statistics other than 0 and 1
    stem.eval()
    x[1, 23:], x[3, 8:] = 1e3, torch.nan
    padded, frames = stem(x, lengths)
    assert frames.tolist() == [-(-n // stride) for n in lengths.tolist()]
    for row, length in enumerate(lengths.tolist()):
        assert not padded[row, frames[row] :].any()
        if length:
            alone, _ = stem(x[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(padded[row, : frames[row]], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_output_lengths_are_those_of_the_tensor(stride: int) -> None:
    stem = stem_of(stride=stride).eval()
    for num_bins in range(1, 20):
        y, frames = stem(torch.randn(1, num_bins, 6), torch.tensor([num_bins]))
        assert y.shape == (1, -(-num_bins // stride), 8)
        assert int(frames[0]) == stem.output_lengths(num_bins) == y.shape[1]
    assert stem.output_lengths(0) == 0


def test_stacked_bins_are_time_major() -> None:
    stem = stem_of(stride=2, normalisation="none").double().eval()
    with torch.no_grad():
        stem.conv.weight.zero_()
        stem.conv.bias.zero_()
    x = torch.randn(1, 4, 6).double()
    gated = stem.gate(x, torch.tensor([4]))
    second = torch.cat([gated[0, 2], gated[0, 3]])
    torch.testing.assert_close(stem(x, torch.tensor([4]))[0][0, 1], stem.norm(stem.projection(second)))


def test_batch_statistics_are_pytorchs_on_the_valid_bins() -> None:
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    for seed in range(3):
        torch.manual_seed(seed)
        x, mask = torch.randn(2, 9, 4) * 3 + 1, torch.ones(2, 9, 1, dtype=torch.bool)
        mask[1, 5:] = False
        found = ours(x * mask, mask)
        expected = theirs(torch.cat([x[0], x[1, :5]]))
        torch.testing.assert_close(torch.cat([found[0], found[1, :5]]), expected)
        assert not found[1, 5:].any()
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x[:1], mask[:1])[0], theirs(x[0]))


def test_constant_channels_and_single_bins_become_zero() -> None:
    x = torch.full((2, 5, 3), 7.0)
    x[1, 1:] = 0
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])[:, :, None]
    assert not standardised(x, mask).any()


def test_gradients_reach_every_parameter() -> None:
    stem = stem_of(normalisation="batch", stride=2)
    y, _ = stem(torch.randn(3, 30, 6), torch.tensor([30, 12, 1]))
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in stem.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 0},
        {"normalisation": "session"},
        {"gate_reduction": 0},
        {"conv_kernel": 4},
        {"conv_kernel": -1},
        {"stride": 0},
        {"dropout": 1.0},
    ],
)
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.stem"):
        StemConfig(**setting)


def test_a_bad_batch_leaves_the_running_statistics_alone() -> None:
    torch.manual_seed(0)
    stem = Stem(StemConfig(width=8, normalisation="batch"), 4).train()
    assert stem.batch_norm is not None
    stem(torch.randn(2, 9, 4), torch.tensor([9, 7]))
    before = stem.batch_norm.running_mean.clone(), stem.batch_norm.running_var.clone()
    bad = torch.randn(2, 9, 4)
    bad[1, 3] = float("nan")
    stem(bad, torch.tensor([9, 7]))
    assert torch.equal(stem.batch_norm.running_mean, before[0])
    assert torch.equal(stem.batch_norm.running_var, before[1])
