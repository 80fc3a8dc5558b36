"""What both kinds of state-space block are made of.

Legend: B trials, S frames, D channels, E width, K taps. Sources: Gu & Dao 2023 (Mamba), Dao & Gu 2024 (Mamba-2) and
the initialisation their public code documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

NEVER_DECAYED: Final = ("A_log", "D", "dt_bias")
"""Parameters that weight decay would harm: decay rates, skips and step sizes."""
Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""A recurrence: inputs, Δ, A, B, C and the first state → outputs and the last state (see `ssm_reference`)."""


class BlockState(NamedTuple):
    """What a block carries from one piece of a stream to the next."""

    window_BKD: torch.Tensor
    """The last taps - 1 inputs of the convolution."""
    hidden: torch.Tensor
    """The recurrence's state: [B, heads, head size, N] or [B, channels, N]."""


def initial_dt_bias(size: int, dt_min: float, dt_max: float, dt_floor: float) -> torch.Tensor:
    """Biases b with softplus(b) = Δ, Δ drawn log-uniformly from [dt_min, dt_max] and not below the floor."""
    dt = torch.exp(torch.empty(size).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=dt_floor)
    return dt + torch.log(-torch.expm1(-dt))


def full_precision(x: torch.Tensor) -> torch.autocast:
    """A context without autocast. Recurrences run in float32: bfloat16 would round a decay of 0.999 to 1."""
    return torch.autocast(x.device.type, enabled=False)


class CausalConv(nn.Module):
    """Depthwise convolution along time that sees the frame and the `taps - 1` before it; then SiLU."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def start(self, batch_size: int) -> torch.Tensor:
        """The window before the first frame: zeros [B, K-1, D]."""
        taps, channels = self.weight.shape
        return self.weight.new_zeros(batch_size, taps - 1, channels)

    def forward(self, x_BSD: torch.Tensor, window_BKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """SiLU of the convolution's outputs [B, S, D], and the window that the next frames need."""
        y_BSD = functional.silu(depthwise_conv(x_BSD, window_BKD, self.weight, self.bias))
        kept = len(self.weight) - 1
        joined = torch.cat([window_BKD, x_BSD[:, max(x_BSD.shape[1] - kept, 0) :]], 1)
        return y_BSD, joined[:, joined.shape[1] - kept :]


def depthwise_conv(
    x_BSD: torch.Tensor, window_BKD: torch.Tensor, weight_KD: torch.Tensor, bias_D: torch.Tensor
) -> torch.Tensor:
    """Each channel's causal convolution [B, S, D] of the frames after a window of the `taps - 1` frames before them.

    One multiply-add a tap: on a CPU 30 times as fast as `conv1d` with as many groups as channels.
    """
    y_BSD: torch.Tensor = _DepthwiseConv.apply(x_BSD, window_BKD, weight_KD, bias_D)  # type: ignore[no-untyped-call]
    return y_BSD


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BSD: torch.Tensor, window_BKD: torch.Tensor, weight_KD: torch.Tensor, bias_D: torch.Tensor
    ) -> torch.Tensor:
        y_BSD = torch.addcmul(bias_D, x_BSD, weight_KD[-1])
        for tap_D, now, then, early, remembered in _lags(x_BSD, window_BKD, weight_KD):
            y_BSD[:, now].addcmul_(x_BSD[:, then], tap_D)
            y_BSD[:, early].addcmul_(window_BKD[:, remembered], tap_D)
        ctx.save_for_backward(x_BSD, window_BKD, weight_KD)
        return y_BSD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_BSD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_BSD, window_BKD, weight_KD = ctx.saved_tensors
        dx_BSD, dwindow_BKD = dy_BSD * weight_KD[-1], torch.zeros_like(window_BKD)
        dtaps = [(dy_BSD * x_BSD).sum((0, 1))]
        for tap_D, now, then, early, remembered in _lags(x_BSD, window_BKD, weight_KD):
            dx_BSD[:, then].addcmul_(dy_BSD[:, now], tap_D)
            dwindow_BKD[:, remembered].addcmul_(dy_BSD[:, early], tap_D)
            dtap_D = (dy_BSD[:, now] * x_BSD[:, then]).sum((0, 1))
            dtaps.append(dtap_D + (dy_BSD[:, early] * window_BKD[:, remembered]).sum((0, 1)))
        return dx_BSD, dwindow_BKD, torch.stack(dtaps[::-1]), dy_BSD.sum((0, 1))


def _lags(
    x_BSD: torch.Tensor, window_BKD: torch.Tensor, weight_KD: torch.Tensor
) -> Iterator[tuple[torch.Tensor, slice, slice, slice, slice]]:
    """For every lag above 0: its tap, the frames that see the input and which, those that see the window and which."""
    num_frames, kept = x_BSD.shape[1], window_BKD.shape[1]
    for lag in range(1, kept + 1):
        early = min(lag, num_frames)
        first = kept - lag
        yield weight_KD[first], slice(early, None), slice(num_frames - early), slice(early), slice(first, first + early)


class ReverseByLength:
    """Turns each trial's valid frames round and leaves its padding where it is; twice gives the original."""

    def __init__(self, lengths_B: torch.Tensor, num_frames: int) -> None:
        frame_S = torch.arange(num_frames, device=lengths_B.device)
        mirrored_BS = lengths_B[:, None] - 1 - frame_S
        source_BS = torch.where(mirrored_BS >= 0, mirrored_BS, frame_S)
        first_B1 = torch.arange(len(lengths_B), device=lengths_B.device)[:, None] * num_frames
        self.rows = (source_BS + first_B1).flatten()

    def __call__(self, x_BSE: torch.Tensor) -> torch.Tensor:
        """[B, S, E], reversed."""
        reversed_BSE: torch.Tensor = _Involution.apply(x_BSE, self.rows)  # type: ignore[no-untyped-call]
        return reversed_BSE


class _Involution(torch.autograd.Function):
    """A permutation of rows that is its own inverse, so the gradient needs no scatter."""

    @staticmethod
    def forward(ctx: Any, x_BSE: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        return x_BSE.flatten(0, 1).index_select(0, rows).view(x_BSE.shape)

    @staticmethod
    def backward(ctx: Any, dy_BSE: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _Involution.apply(dy_BSE, rows), None  # type: ignore[no-untyped-call]
