"""The fast recurrences against the slow ones, frame by frame in float64: values, states and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional

from sottovoce.models.ssm_mamba1 import selective_scan
from sottovoce.models.ssm_mamba2 import _GatedNorm, ssd
from sottovoce.models.ssm_parts import CausalConv, ReverseByLength, initial_dt_bias
from sottovoce.models.ssm_reference import selective_scan_by_frames, ssd_by_frames

Tensors = list[torch.Tensor]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def ssd_inputs(frames: int, dt_max: float, a_max: float) -> Tensors:
    """B 2, H 4 in 2 groups, P 3, N 5."""
    torch.manual_seed(frames)
    return [
        torch.randn(2, frames, 4, 3),
        dt_max * torch.rand(2, frames, 4),
        -a_max * torch.rand(4),
        torch.randn(2, frames, 2, 5),
        torch.randn(2, frames, 2, 5),
        torch.randn(2, 4, 3, 5),
    ]


def scan_inputs(frames: int, dt_max: float, a_max: float) -> Tensors:
    """B 2, D 6, N 5."""
    torch.manual_seed(frames)
    return [
        torch.randn(2, frames, 6),
        dt_max * torch.rand(2, frames, 6),
        -a_max * torch.rand(6, 5),
        torch.randn(2, frames, 5),
        torch.randn(2, frames, 5),
        torch.randn(2, 6, 5),
    ]


KINDS = [
    pytest.param(ssd, ssd_by_frames, ssd_inputs, id="mamba2"),
    pytest.param(selective_scan, selective_scan_by_frames, scan_inputs, id="mamba1"),
]


def with_gradients(scan: Callable[..., tuple[torch.Tensor, torch.Tensor]], inputs: Tensors) -> Tensors:
    """y, the last state, and the gradients of a fixed weighting of both with respect to every input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y, last = scan(*leaves)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    total = (y * weights[0]).sum() + (last * weights[1]).sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(total, leaves)]


def assert_equal(found: Tensors, expected: Tensors, tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.isfinite(a).all()
        scale = max(1.0, b.abs().max().item())
        assert (a.double() - b).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize(("fast", "slow", "inputs"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("frames", "chunk"), [(1, 4), (7, 16), (16, 16), (23, 8), (50, 7), (130, 32)])
def test_equal_to_the_recurrence_frame_by_frame(
    fast: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    slow: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: Callable[[int, float, float], Tensors],
    dtype: torch.dtype,
    frames: int,
    chunk: int,
) -> None:
    given = [x.to(dtype) for x in inputs(frames, 0.1, 16.0)]
    expected = with_gradients(slow, [x.double() for x in given])
    assert_equal(with_gradients(partial(fast, chunk_frames=chunk), given), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("fast", "slow", "inputs"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("dt_max", "a_max"), [(100.0, 64.0), (1.0, 16.0), (1e-4, 1.0), (0.0, 16.0)])
def test_any_step_size(
    fast: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    slow: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: Callable[[int, float, float], Tensors],
    dtype: torch.dtype,
    dt_max: float,
    a_max: float,
) -> None:
    """The cumulative-sum-and-divide scan is infinite from frame 88/(Δ·|A|), here the first."""
    given = [x.to(dtype) for x in inputs(70, dt_max, a_max)]
    expected = with_gradients(slow, [x.double() for x in given])
    assert_equal(with_gradients(fast, given), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("fast", "slow", "inputs"), KINDS)
def test_small_steps_after_an_enormous_one_keep_their_precision(
    fast: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    slow: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: Callable[[int, float, float], Tensors],
) -> None:
    """A float32 running sum at 6,400 has steps of 5e-4, so differences of it would be wrong by as much."""
    given = inputs(64, 0.01, 1.0)
    given[0][:, 3], given[1][:, 3] = 0, 1e4
    expected = with_gradients(slow, [x.double() for x in given])
    for a, b in zip(with_gradients(fast, given)[:2], expected[:2], strict=True):
        assert (a - b).abs().max().item() <= 1e-5


def test_a_constant_input_decays_as_the_closed_form_says() -> None:
    """With b = c = x = 1 the state is the geometric sum Δ (1 - e^(Δ a t)) / (1 - e^(Δ a))."""
    frames, dt, a = 200, 0.05, -2.0
    one = torch.ones(1, frames, 1, 1, dtype=torch.float64)
    y, last = ssd(
        one,
        torch.full((1, frames, 1), dt).double(),
        torch.tensor([a]).double(),
        one,
        one,
        torch.zeros(1, 1, 1, 1).double(),
    )
    t = torch.arange(1, frames + 1, dtype=torch.float64)
    exact = dt * (1 - torch.exp(dt * a * t)) / (1 - math.exp(dt * a))
    torch.testing.assert_close(y.flatten(), exact, atol=1e-8, rtol=0)
    assert last.item() == pytest.approx(exact[-1].item(), abs=1e-8)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9])
def test_the_convolution_is_pytorchs(frames: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv(5, 4).double()
    x, window = torch.randn(2, frames, 5).double().requires_grad_(), torch.randn(2, 3, 5).double().requires_grad_()
    joined = torch.cat([window, x], 1)
    y, after = conv(x, window)
    expected = functional.silu(functional.conv1d(joined.mT, conv.weight.mT[:, None], conv.bias, groups=5).mT)
    torch.testing.assert_close(y, expected)
    assert torch.equal(after, joined[:, -3:])
    weights, leaves = torch.randn_like(y), [x, window, conv.weight, conv.bias]
    torch.testing.assert_close(torch.autograd.grad(y, leaves, weights), torch.autograd.grad(expected, leaves, weights))


def test_the_gated_norm_is_pytorchs() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(*shape).double().requires_grad_() for shape in ((2, 5, 6), (2, 5, 6), (6,))]
    y, z, weight = leaves
    found, expected = _GatedNorm.apply(y, z, weight), functional.rms_norm(y * functional.silu(z), (6,), weight, 1e-5)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, weights), torch.autograd.grad(expected, leaves, weights)
    )


def test_reversal_turns_only_the_valid_frames() -> None:
    x = torch.arange(10.0).reshape(2, 5, 1).requires_grad_()
    reverse = ReverseByLength(torch.tensor([5, 3]), 5)
    y = reverse(x)
    assert y.flatten().tolist() == [4, 3, 2, 1, 0, 7, 6, 5, 8, 9]
    assert torch.equal(reverse(y), x)
    (gradient,) = torch.autograd.grad(y, x, torch.arange(10.0).reshape(2, 5, 1))
    assert gradient.flatten().tolist() == [4, 3, 2, 1, 0, 7, 6, 5, 8, 9]


def test_step_sizes_start_log_uniform() -> None:
    torch.manual_seed(0)
    dt = functional.softplus(initial_dt_bias(4000, 0.001, 0.1, 1e-4)).log10()
    assert dt.min().item() >= -3 - 1e-4
    assert dt.max().item() <= -1 + 1e-4
    assert dt.mean().item() == pytest.approx(-2, abs=0.03)
    assert dt.std().item() == pytest.approx(2 / 12**0.5, abs=0.02)
    assert functional.softplus(initial_dt_bias(500, 0.001, 0.1, 0.05)).min().item() >= 0.05 - 1e-6
