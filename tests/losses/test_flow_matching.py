"""The flow-matching loss against loops, and each part of the corruption."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.random import torch_generator
from sottovoce.losses.flow_matching import CorruptionConfig, corrupt, draw_times, flow_matching_loss

NOTHING = CorruptionConfig(jitter_bins=0, gain_std=0, noise_std=0, offset_std=0, dead_probability=0)


def _generators(num_trials: int, seed: int = 0) -> list[torch.Generator]:
    return [torch_generator(seed, "augmentation", 7, i) for i in range(num_trials)]


def _only(**setting: float) -> CorruptionConfig:
    return CorruptionConfig(**(dict.fromkeys(NOTHING.__dataclass_fields__, 0.0) | setting))


def test_the_loss_is_the_mean_over_valid_bins_and_channels() -> None:
    clean, corrupted = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    clean[1, 3:], corrupted[1, 3:] = math.nan, 1e9
    tau, lengths = torch.tensor([0.25, 0.6]), torch.tensor([5, 3])

    def field(x: torch.Tensor, tau: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x.square() + tau[:, None, None]

    found = flow_matching_loss(field, clean, corrupted, lengths, tau)
    for b in range(2):
        total = 0.0
        for t in range(int(lengths[b])):
            for c in range(3):
                at = (1 - float(tau[b])) * float(corrupted[b, t, c]) + float(tau[b]) * float(clean[b, t, c])
                total += (at**2 + float(tau[b]) - float(clean[b, t, c] - corrupted[b, t, c])) ** 2
        assert float(found[b]) == pytest.approx(total / (3 * int(lengths[b])), rel=1e-5)
    assert found.dtype == torch.float32


def test_the_right_field_has_no_loss_and_the_gradient_is_finite() -> None:
    clean, corrupted = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    zero = flow_matching_loss(lambda *_: clean - corrupted, clean, corrupted, torch.tensor([4, 2]), torch.rand(2))
    assert zero.tolist() == [0.0, 0.0]
    weight = torch.tensor(0.3, requires_grad=True)
    loss = flow_matching_loss(lambda x, *_: weight * x, clean, corrupted, torch.tensor([4, 0]), torch.rand(2))
    assert float(loss.detach()[1]) == 0.0
    loss.sum().backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad)


def test_nothing_switched_on_changes_nothing() -> None:
    x, lengths = torch.randn(2, 30, 4), torch.tensor([30, 11])
    same = corrupt(x, lengths, NOTHING, _generators(2))
    assert torch.equal(same[0], x[0])
    assert torch.equal(same[1, :11], x[1, :11])
    assert not same[1, 11:].any()


def test_a_trial_s_corruption_depends_on_its_generator_only() -> None:
    x, lengths = torch.randn(3, 40, 4), torch.tensor([40, 23, 0])
    together = corrupt(x, lengths, CorruptionConfig(), _generators(3))
    alone = corrupt(x[1:2, :23], lengths[1:2], CorruptionConfig(), _generators(3)[1:2])
    assert torch.equal(together[1, :23], alone[0])
    assert not together[1, 23:].any()
    assert torch.equal(together, corrupt(x, lengths, CorruptionConfig(), _generators(3)))
    assert not torch.equal(together, corrupt(x, lengths, CorruptionConfig(), _generators(3, seed=1)))
    assert torch.equal(draw_times(_generators(3))[1:], draw_times(_generators(3)[1:]))
    assert 0 <= float(draw_times(_generators(3)).min()) <= float(draw_times(_generators(3)).max()) < 1


def test_noise_offset_and_gain_have_the_stated_size() -> None:
    ones, lengths = torch.ones(1, 2000, 300), torch.tensor([2000])
    noise = corrupt(ones, lengths, _only(noise_std=0.7), _generators(1)) - ones
    assert float(noise.std()) == pytest.approx(0.7, rel=0.01)
    offset = corrupt(ones, lengths, _only(offset_std=0.4), _generators(1)) - ones
    assert torch.equal(offset[0, 0], offset[0, -1])
    assert float(offset[0, 0].std()) == pytest.approx(0.4, rel=0.1)
    log_gain = corrupt(ones, lengths, _only(gain_std=0.2), _generators(1)).log()
    assert not log_gain[0, 0].any()
    assert float(log_gain[0, -1].std()) == pytest.approx(0.2, rel=0.1)
    torch.testing.assert_close(log_gain[0, 1000], log_gain[0, -1] * 1000 / 1999, atol=1e-5, rtol=1e-4)


def test_dead_channels_are_dead_throughout() -> None:
    found = corrupt(torch.ones(1, 20, 4000), torch.tensor([20]), _only(dead_probability=0.1), _generators(1))
    assert set(found.sum(dim=1).flatten().tolist()) == {0.0, 20.0}
    assert float((found[0, 0] == 0).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_jitter_moves_bins_smoothly_and_not_beyond_the_ends() -> None:
    ramp = torch.arange(200.0)[None, :, None].expand(1, 200, 2).contiguous()
    shifts = torch.cat(
        [corrupt(ramp, torch.tensor([200]), _only(jitter_bins=1.5), _generators(1, seed)) - ramp for seed in range(60)]
    )
    assert torch.equal(shifts[..., 0], shifts[..., 1])  # all channels together
    at_knots = shifts[:, 50:160:10, 0]
    assert float(at_knots.std()) == pytest.approx(1.5, rel=0.1)
    second = shifts[:, 51:59, 0] - 2 * shifts[:, 52:60, 0] + shifts[:, 53:61, 0]
    assert float(second[:, :-1].abs().max()) < 1e-3  # straight between the knots at bins 50 and 60
    moved = shifts + ramp
    assert float(moved.min()) >= 0.0
    assert float(moved.max()) <= 199.0
    one_bin = corrupt(torch.ones(1, 1, 2), torch.tensor([1]), _only(jitter_bins=3.0), _generators(1))
    assert one_bin.tolist() == [[[1.0, 1.0]]]


@pytest.mark.parametrize(
    "setting",
    [{"jitter_bins": -1}, {"gain_std": -1}, {"noise_std": -1}, {"offset_std": -1}, {"dead_probability": 1.0}],
)
def test_senseless_settings_are_rejected(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        CorruptionConfig(**setting)
