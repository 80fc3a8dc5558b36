"""The product that never writes the patches out, against the one that does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from sottovoce.models.patch_projection import project_patches
from sottovoce.models.patching import PatchConfig, patches


def _inputs(config: PatchConfig, bins: int, channels: int = 3, size: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(bins)
    shapes = [(2, bins, channels), (size, config.size * channels), (size,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    "config", [PatchConfig(14, 4), PatchConfig(12, 4), PatchConfig(7, 1), PatchConfig(5, 2)], ids=str
)
@pytest.mark.parametrize("extra", [0, 1, 3, 4, 8, 21])
def test_values_and_gradients_are_those_of_the_patches(config: PatchConfig, extra: int) -> None:
    signal, weight, bias = _inputs(config, config.size + extra)
    found = []
    for output in (project_patches(signal, config, weight, bias), linear(patches(signal, config), weight, bias)):
        torch.manual_seed(9)
        grads = torch.autograd.grad((output * torch.randn_like(output)).sum(), (signal, weight, bias))
        found.append((output, *grads))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    config = PatchConfig(7, 2)
    signal, weight, bias = _inputs(config, 13, channels=2, size=2)
    assert torch.autograd.gradcheck(lambda *x: project_patches(x[0], config, x[1], x[2]), (signal, weight, bias))


def test_float32_rounds_as_finely_as_the_plain_product() -> None:
    """Against float64, at the official patch: the sums that F(2, 3) forms must not cost digits."""
    torch.manual_seed(0)
    config = PatchConfig(14, 4)
    signal, weight, bias = torch.randn(4, 313, 128), torch.randn(96, 14 * 128) / 40, torch.randn(96)
    exact = linear(patches(signal.double(), config), weight.double(), bias.double())
    ours = (project_patches(signal, config, weight, bias) - exact).square().mean().sqrt()
    plain = (linear(patches(signal, config), weight, bias) - exact).square().mean().sqrt()
    assert ours < 2 * plain
    assert ours < 1e-6 * exact.square().mean().sqrt()


def test_a_frame_sees_its_own_bins_only() -> None:
    config = PatchConfig(14, 4)
    signal, weight, bias = (x.detach() for x in _inputs(config, 40))
    changed = signal.clone()
    changed[:, 26:30] += 1  # the first bins that frame 3 (bins 12 to 25) does not see
    before, after = (project_patches(x, config, weight, bias) for x in (signal, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=1e-12, atol=1e-12)
    assert (before[:, 4:] - after[:, 4:]).abs().min() > 0
