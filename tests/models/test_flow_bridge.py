"""The flow bridge: size, padding, norms, sampling, and that it learns to denoise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.random import torch_generator
from sottovoce.core.trial import valid_mask
from sottovoce.losses.flow_matching import CorruptionConfig, corrupt, draw_times, flow_matching_loss
from sottovoce.models.flow_bridge import FlowBridge, FlowBridgeConfig, MaskedGroupNorm, time_embedding

SMALL = FlowBridgeConfig(width=16, blocks=2, groups=4, heads=2, dropout=0.0)


def _bridge(config: FlowBridgeConfig = SMALL, num_channels: int = 5, awake: bool = True) -> FlowBridge:
    torch.manual_seed(0)
    bridge = FlowBridge(config, num_channels).eval()
    if awake:  # the last layer starts at 0, which would hide everything before it
        nn.init.normal_(bridge.output.weight, std=0.5)
    return bridge


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_size_of_the_source_network_is_the_published_one() -> None:
    bridge = FlowBridge(FlowBridgeConfig(width=512), 512)
    assert bridge.middle is not None
    assert _size(bridge.time) == 5_246_976
    assert _size(bridge.input) == _size(bridge.output) == 262_656
    assert [_size(block) for block in (*bridge.before, *bridge.after)] == [2_887_680] * 6
    assert _size(bridge.middle) == 1_051_648
    assert _size(bridge) == 24_150_016


def test_an_untrained_bridge_changes_nothing() -> None:
    x, lengths = torch.randn(2, 9, 5), torch.tensor([9, 4])
    bridge = _bridge(awake=False)
    assert not bridge(x, torch.tensor([0.0, 0.7]), lengths).any()
    assert torch.equal(bridge.sample(x, lengths), x * valid_mask(lengths, 9)[:, :, None])


@pytest.mark.parametrize("attention", [True, False])
def test_a_trial_alone_equals_the_trial_padded(attention: bool) -> None:
    bridge = _bridge(FlowBridgeConfig(width=16, blocks=2, groups=4, heads=2, attention=attention))
    lengths, tau = torch.tensor([30, 17, 1]), torch.tensor([0.2, 0.9, 0.5])
    x = torch.randn(3, 30, 5)
    x[1, 17:], x[2, 1:] = 1e6, math.nan
    together, sampled = bridge(x, tau, lengths), bridge.sample(x, lengths, steps=3)
    for row, length in enumerate(lengths.tolist()):
        part = x[row : row + 1, :length], tau[row : row + 1], lengths[row : row + 1]
        torch.testing.assert_close(together[row, :length], bridge(*part)[0], atol=1e-5, rtol=1e-4)
        alone = bridge.sample(part[0], part[2], steps=3)
        torch.testing.assert_close(sampled[row, :length], alone[0], atol=1e-5, rtol=1e-4)
        assert not together[row, length:].any()
        assert not sampled[row, length:].any()


def test_the_norm_of_a_whole_trial_is_pytorch_s() -> None:
    x, ours, theirs = torch.randn(3, 12, 20) * 3 + 1, MaskedGroupNorm(4, 12), nn.GroupNorm(4, 12)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, torch.ones(3, 1, 20, dtype=torch.bool)), theirs(x), atol=1e-5, rtol=1e-4)


def test_sampling_takes_euler_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, lengths = _bridge(), torch.tensor([6])
    x = torch.randn(1, 6, 5)
    by_hand = x
    with torch.no_grad():
        for tau in (0.0, 0.25, 0.5, 0.75):
            by_hand = by_hand + 0.25 * bridge(by_hand, torch.tensor([tau]), lengths)
    torch.testing.assert_close(bridge.sample(x, lengths), by_hand)
    # a field of straight lines is followed exactly, whatever the number of steps
    target = torch.randn(1, 6, 5)
    monkeypatch.setattr(bridge, "forward", lambda now, tau, _: (target - now) / (1 - tau)[:, None, None])
    for steps in (1, 3):
        torch.testing.assert_close(bridge.sample(x, lengths, steps), target)
    with pytest.raises(ValueError, match="steps=0"):
        bridge.sample(x, lengths, 0)


def test_the_time_embedding_tells_times_apart() -> None:
    embedded = time_embedding(torch.tensor([0.0, 0.001, 0.5]), 8)
    assert embedded.shape == (3, 8)
    assert embedded[0].tolist() == [0.0] * 4 + [1.0] * 4
    assert float(embedded[1, 0]) == pytest.approx(math.sin(1.0), abs=1e-5)
    assert float(embedded[1, 5]) == pytest.approx(math.cos(1.0 / 10), abs=1e-5)


def test_gradients_are_finite_and_reach_every_parameter() -> None:
    bridge = _bridge().train()
    x = torch.randn(3, 12, 5)
    bridge(x, torch.rand(3), torch.tensor([12, 5, 0])).square().sum().backward()
    for name, parameter in bridge.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def _smooth_signals(num_trials: int, seed: int) -> torch.Tensor:
    """Two slow oscillations of random phase, mixed into 12 channels the same way for all trials."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, 12, generator=torch.Generator().manual_seed(99))
    phase = 6.28 * torch.rand(num_trials, 1, 2, generator=generator)
    time = torch.arange(40.0)[:, None] * torch.tensor([0.25, 0.4])
    return (time + phase).sin() @ mixing


@pytest.mark.slow
def test_training_lowers_the_error_of_noisy_jittered_features() -> None:
    """The corrupted input's mean squared error falls to less than half of itself in 200 small steps."""
    torch.manual_seed(0)
    bridge = FlowBridge(FlowBridgeConfig(width=32, blocks=1, groups=4, heads=2, dropout=0.0), 12)
    optimiser = torch.optim.Adam(bridge.parameters(), lr=3e-3)
    corruption = CorruptionConfig(jitter_bins=1.0, noise_std=0.8, offset_std=0.3, gain_std=0.1, dead_probability=0.05)

    def pairs(step: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Generator]]:
        generators = [torch_generator(seed, "augmentation", step, i) for i in range(16)]
        clean, lengths = _smooth_signals(16, 1000 * seed + step), torch.full((16,), 40)
        return clean, corrupt(clean, lengths, corruption, generators), lengths, generators

    for step in range(200):
        clean, corrupted, lengths, generators = pairs(step, seed=1)
        loss = flow_matching_loss(bridge, clean, corrupted, lengths, draw_times(generators)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    clean, corrupted, lengths, _ = pairs(0, seed=2)
    before = float((corrupted - clean).square().mean())
    after = float((bridge.eval().sample(corrupted, lengths) - clean).square().mean())
    assert before > 0.8
    assert after < 0.5 * before, (before, after)


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 0},
        {"blocks": 0},
        {"steps": 0},
        {"width": 130},
        {"width": 96, "heads": 5},
        {"width": 9, "groups": 3, "heads": 3},
        {"dropout": 1.0},
    ],
)
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.flow_bridge\.{next(iter(setting))}="):
        FlowBridgeConfig(**setting)
