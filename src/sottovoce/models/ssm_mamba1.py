"""The Mamba-1 block, and its selective scan as in-place passes over chunks of frames.

Source: Gu & Dao 2023, "Mamba": algorithm 2 and figure 3. The paper's names: A_log, D, Δ (`dt`), B, C, state size N.

Legend: B trials, S frames, E width, D inner channels, N state size, R rank of Δ, Q frames of a chunk.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_parts import BlockState, CausalConv, Scan, full_precision, initial_dt_bias

CHUNK_FRAMES = 8
"""Measured on a CPU: a chunk's decays and states should fit its caches."""
CHANNELS_PER_RANK = 16


class Mamba1(nn.Module):
    """`out_proj(y ⊙ SiLU(z))`, where y is the selective scan over the convolved input; causal."""

    def __init__(self, config: SSMConfig, width: int) -> None:
        super().__init__()
        inner, states = config.expansion * width, config.state_size
        rank = -(-width // CHANNELS_PER_RANK)
        self.map_sizes = (rank, states, states)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.conv_kernel)
        self.x_proj = nn.Linear(inner, sum(self.map_sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # Not the linear layer's own bias, so that nothing that sets biases of linear layers finds it.
        self.dt_bias = nn.Parameter(initial_dt_bias(inner, config.dt_min, config.dt_max, config.dt_floor))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.scan: Scan = partial(selective_scan, chunk_frames=config.chunk_size or CHUNK_FRAMES)

    def start(self, batch_size: int) -> BlockState:
        """What comes before the first frame: zeros."""
        return BlockState(self.conv.start(batch_size), self.A_log.new_zeros(batch_size, *self.A_log.shape))

    def forward(
        self, u_BSE: torch.Tensor, state: BlockState, time_scale_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, BlockState]:
        """Outputs [B, S, E] and the state after the last frame; Δ is multiplied by `time_scale_B`."""
        projected = self.in_proj(u_BSE)
        with full_precision(u_BSE):
            conv_in, z_BSD = projected.to(self.A_log.dtype).chunk(2, -1)
            x_BSD, window = self.conv(conv_in, state.window_BKD)
            dt_BSR, b_BSN, c_BSN = self.x_proj(x_BSD).split(self.map_sizes, -1)
            dt_BSD = functional.softplus(functional.linear(dt_BSR, self.dt_proj.weight, self.dt_bias))
            if time_scale_B is not None:
                dt_BSD = dt_BSD * time_scale_B[:, None, None]
            y_BSD, hidden = self.scan(x_BSD, dt_BSD, -self.A_log.exp(), b_BSN, c_BSN, state.hidden)
            gated_BSD = torch.addcmul(y_BSD, x_BSD, self.D) * functional.silu(z_BSD)
        return self.out_proj(gated_BSD), BlockState(window, hidden)


def selective_scan(
    x_BSD: torch.Tensor,
    dt_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    initial_BDN: torch.Tensor,
    chunk_frames: int = CHUNK_FRAMES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence of `ssm_reference.selective_scan_by_frames`: y [B, S, D] and the last state [B, D, N].

    States are multiplied by decays exp(Δ·A) ≤ 1 and never divided, so nothing overflows for any step size. Only the
    states between chunks are kept; the gradient, worked out by hand, recomputes those within.
    """
    y_SBD, final_BND = _ChunkedScan.apply(  # type: ignore[no-untyped-call]
        (x_BSD * dt_BSD).transpose(0, 1).contiguous(),
        dt_BSD.transpose(0, 1).contiguous(),
        a_DN.mT.contiguous(),
        b_BSN.transpose(0, 1).contiguous(),
        c_BSN.transpose(0, 1).contiguous(),
        initial_BDN.mT.contiguous(),
        chunk_frames,
    )
    return y_SBD.transpose(0, 1), final_BND.mT


class _Chunk:
    """Buffers [Q, B, N, D] for the decays and states of one chunk, filled anew for each."""

    def __init__(self, frames: int, like_BND: torch.Tensor) -> None:
        self.decay = like_BND.new_empty(frames, *like_BND.shape)
        self.states = torch.empty_like(self.decay)

    def fill(
        self,
        start_BND: torch.Tensor,
        v_QBD: torch.Tensor,
        dt_QBD: torch.Tensor,
        a_ND: torch.Tensor,
        b_QBN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decays of the chunk's frames and the states after each, from the state before the first."""
        decay, states = self.decay[: len(v_QBD)], self.states[: len(v_QBD)]
        torch.mul(dt_QBD[:, :, None], a_ND, out=decay).exp_()
        torch.mul(v_QBD[:, :, None], b_QBN[..., None], out=states)
        before = start_BND
        for decay_BND, state_BND in zip(decay, states, strict=True):
            before = state_BND.addcmul_(decay_BND, before)
        return decay, states


class _ChunkedScan(torch.autograd.Function):
    """`h_t = exp(Δ_t a) h_{t-1} + v_t b_tᵀ`, `y_t = h_t c_t` from v, Δ, a, b, c and the first state; frames first."""

    @staticmethod
    def forward(
        ctx: Any,
        v: torch.Tensor,
        dt: torch.Tensor,
        a_ND: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        initial_BND: torch.Tensor,
        chunk_frames: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, starts, state_BND = torch.empty_like(v), [], initial_BND
        buffers = _Chunk(min(chunk_frames, len(v)), initial_BND)
        for first in range(0, len(v), chunk_frames):
            chunk = slice(first, first + chunk_frames)
            starts.append(state_BND)
            _, states = buffers.fill(state_BND, v[chunk], dt[chunk], a_ND, b[chunk])
            y[chunk] = (c[chunk][:, :, None] @ states)[:, :, 0]
            state_BND = states[-1].clone()
        ctx.save_for_backward(v, dt, a_ND, b, c, *starts)
        ctx.chunk_frames = chunk_frames
        return y, state_BND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dfinal: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        v, dt, a_ND, b, c, *starts = ctx.saved_tensors
        frames: int = ctx.chunk_frames
        dv, ddt, db, dc = (torch.empty_like(x) for x in (v, dt, b, c))
        da_BND = torch.zeros_like(dfinal)
        dstate_BND = dfinal
        buffers = _Chunk(min(frames, len(v)), dfinal)
        dstates_buffer = torch.empty_like(buffers.states)
        for first in reversed(range(0, len(v), frames)):
            chunk = slice(first, first + frames)
            start = starts[first // frames]
            decay, states = buffers.fill(start, v[chunk], dt[chunk], a_ND, b[chunk])
            dstates = dstates_buffer[: len(states)]
            torch.mul(dy[chunk][:, :, None], c[chunk][..., None], out=dstates)
            dstates[-1] += dstate_BND
            for q in reversed(range(1, len(states))):
                dstates[q - 1].addcmul_(decay[q], dstates[q])
            dc[chunk] = (states @ dy[chunk][..., None])[..., 0]
            dv[chunk] = (b[chunk][:, :, None] @ dstates)[:, :, 0]
            db[chunk] = (dstates @ v[chunk][..., None])[..., 0]
            dexponent = decay.mul_(dstates)  # times the state before: the gradient of Δ·a
            dstate_BND = dexponent[0].clone()
            dexponent[0] *= start
            dexponent[1:] *= states[:-1]
            ddt[chunk] = torch.mul(dexponent, a_ND, out=states).sum(2)
            for dexponent_BND, dt_BD in zip(dexponent, dt[chunk], strict=True):
                da_BND.addcmul_(dexponent_BND, dt_BD[:, None])
        return dv, ddt, da_BND.sum(0), db, dc, dstate_BND, None
