"""The Mamba-2 block, and its recurrence as matrix products over chunks of frames (SSD).

Source: Dao & Gu 2024, "Transformers are SSMs": section 6 (chunks) and figure 6 (the block). The paper's names: A_log,
D, Δ (`dt`), B, C, state size N, head size P.

Legend: B trials, S frames, E width, D inner channels, H heads, P head size, G groups, J heads of a group, N state size,
Z = B·G, C chunks, Q (and R) frames of a chunk, F = J·P.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_cuda import check_installed, mamba_ssm_scan
from sottovoce.models.ssm_parts import BlockState, CausalConv, Scan, full_precision, initial_dt_bias

CHUNK_FRAMES = 64
"""Measured on a CPU: from 25 to 64 frames take the same time, and longer chunks less memory."""
A_RANGE = (1.0, 16.0)
NORM_EPS = 1e-5


class Mamba2(nn.Module):
    """`out_proj(RMSNorm(y ⊙ SiLU(z)))`, where y is the recurrence over the convolved input; causal."""

    def __init__(self, config: SSMConfig, width: int) -> None:
        super().__init__()
        inner = config.expansion * width
        self.head_size, self.groups, self.state_size = config.head_size, config.groups, config.state_size
        self.num_heads = inner // config.head_size
        maps = config.groups * config.state_size
        self.conv_sizes = (inner, maps, maps)
        self.in_sizes = (inner, inner + 2 * maps, self.num_heads)
        self.in_proj = nn.Linear(width, sum(self.in_sizes), bias=False)
        self.conv = CausalConv(inner + 2 * maps, config.conv_kernel)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.num_heads, config.dt_min, config.dt_max, config.dt_floor))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        if config.backend == "mamba_ssm":
            check_installed()
        scan = mamba_ssm_scan if config.backend == "mamba_ssm" else ssd
        self.scan: Scan = partial(scan, chunk_frames=config.chunk_size or CHUNK_FRAMES)

    def start(self, batch_size: int) -> BlockState:
        """What comes before the first frame: zeros."""
        hidden = self.A_log.new_zeros(batch_size, self.num_heads, self.head_size, self.state_size)
        return BlockState(self.conv.start(batch_size), hidden)

    def forward(
        self, u_BSE: torch.Tensor, state: BlockState, time_scale_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, BlockState]:
        """Outputs [B, S, E] and the state after the last frame; Δ is multiplied by `time_scale_B`."""
        projected = self.in_proj(u_BSE)
        with full_precision(u_BSE):
            z_BSD, conv_in, dt_BSH = projected.to(self.A_log.dtype).split(self.in_sizes, -1)
            mapped, window = self.conv(conv_in, state.window_BKD)
            x_BSD, b, c = mapped.split(self.conv_sizes, -1)
            dt_BSH = functional.softplus(dt_BSH + self.dt_bias)
            if time_scale_B is not None:
                dt_BSH = dt_BSH * time_scale_B[:, None, None]
            x_BSHP = x_BSD.unflatten(-1, (self.num_heads, self.head_size))
            maps = (self.groups, self.state_size)
            y_BSHP, hidden = self.scan(
                x_BSHP, dt_BSH, -self.A_log.exp(), b.unflatten(-1, maps), c.unflatten(-1, maps), state.hidden
            )
            y_BSD = torch.addcmul(y_BSHP, x_BSHP, self.D[:, None]).flatten(-2)
            gated_BSD = _GatedNorm.apply(y_BSD, z_BSD, self.norm_weight)  # type: ignore[no-untyped-call]
        return self.out_proj(gated_BSD), BlockState(window, hidden)


def ssd(
    x_BSHP: torch.Tensor,
    dt_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGN: torch.Tensor,
    c_BSGN: torch.Tensor,
    initial_BHPN: torch.Tensor,
    chunk_frames: int = CHUNK_FRAMES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence of `ssm_reference.ssd_by_frames`, a chunk at a time: y [B, S, H, P] and the last state.

    Only exponentials of sums of Δ·A ≤ 0 are taken, and the sums are float64, so that nothing overflows or cancels for
    any step size. The gradient is worked out by hand and recomputes whatever is larger than the inputs.
    """
    num_trials, num_frames = x_BSHP.shape[:2]
    groups, state_size = b_BSGN.shape[2:]
    num_chunks = -(-num_frames // chunk_frames)
    length = -(-num_frames // num_chunks)

    def chunks(x_BSHX: torch.Tensor) -> torch.Tensor:
        """[Z, C, Q, J, …], or [Z, C, Q, …] of what a group has once; frames that fill the last chunk are zeros."""
        padding = (0, 0) * (x_BSHX.dim() - 2) + (0, length * num_chunks - num_frames)
        padded = functional.pad(x_BSHX, padding)
        by_group = padded.view(*padded.shape[:2], groups, -1, *padded.shape[3:]).transpose(1, 2)
        return by_group.reshape(num_trials * groups, num_chunks, length, *by_group.shape[3:])

    y_ZCQJP, final_ZNF = _ChunkedScan.apply(  # type: ignore[no-untyped-call]
        chunks(x_BSHP * dt_BSH[..., None]),
        chunks(dt_BSH * a_H),
        chunks(b_BSGN).squeeze(3),
        chunks(c_BSGN).squeeze(3),
        initial_BHPN.reshape(num_trials * groups, -1, state_size).mT,
    )
    y_BSHP = y_ZCQJP.flatten(1, 2).unflatten(0, (num_trials, groups)).transpose(1, 2).flatten(2, 3)
    return y_BSHP[:, :num_frames], final_ZNF.mT.reshape(initial_BHPN.shape)


class _GatedNorm(torch.autograd.Function):
    """`w ⊙ g / rms(g)` with `g = y ⊙ SiLU(z)`; only y and z are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, y_BSD: torch.Tensor, z_BSD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        gated = functional.silu(z_BSD).mul_(y_BSD)
        scale_BS1 = (gated.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        ctx.save_for_backward(y_BSD, z_BSD, weight_D, scale_BS1)
        return gated.mul_(scale_BS1).mul_(weight_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout_BSD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y_BSD, z_BSD, weight_D, scale_BS1 = ctx.saved_tensors
        silu = functional.silu(z_BSD)
        normed = (y_BSD * silu).mul_(scale_BS1)
        dweight_D = (dout_BSD * normed).sum((0, 1))
        dnormed = dout_BSD * weight_D
        along_BS1 = (dnormed * normed).mean(-1, keepdim=True)
        dgated = dnormed.sub_(normed.mul_(along_BS1)).mul_(scale_BS1)
        dz_BSD = torch.ops.aten.silu_backward(dgated * y_BSD, z_BSD)
        return dgated.mul_(silu), dz_BSD, dweight_D


class _Decays(NamedTuple):
    """Factors by which a state shrinks; all in [0, 1]."""

    within_ZCJQR: torch.Tensor
    """From frame r to frame q of a chunk; 1 where r comes after q."""
    since_start_ZCQJ1: torch.Tensor
    """From the chunk before to frame q."""
    to_end_ZCQJ1: torch.Tensor
    """From frame q to the chunk's last."""


def _decays(log_decay_ZCQJ: torch.Tensor) -> _Decays:
    total = log_decay_ZCQJ.double().cumsum(2)
    by_head, dtype = total.transpose(2, 3), log_decay_ZCQJ.dtype
    within = (by_head[..., :, None] - by_head[..., None, :]).to(dtype).clamp_(max=0).exp_()
    to_end = (total[:, :, -1:] - total).exp()
    return _Decays(within, total.exp().to(dtype)[..., None], to_end.to(dtype)[..., None])


def _by_head(x_ZCQJP: torch.Tensor) -> torch.Tensor:
    return x_ZCQJP.transpose(2, 3)


def _flat(x_ZCQJP: torch.Tensor) -> torch.Tensor:
    return x_ZCQJP.flatten(3)


class _ChunkedScan(torch.autograd.Function):
    """`h_t = exp(l_t) h_{t-1} + b_t v_tᵀ`, `y_t = c_t h_t` from v, l ≤ 0, b, c and the first state.

    A chunk's outputs are `(c bᵀ ∘ decay) v`, an attention within the chunk, and what the chunk's first state adds.
    """

    @staticmethod
    def forward(
        ctx: Any, v: torch.Tensor, log_decay: torch.Tensor, b: torch.Tensor, c: torch.Tensor, initial_ZNF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        decays = _decays(log_decay)
        mix_ZCJQR = (c @ b.mT).tril_()[:, :, None] * decays.within_ZCJQR
        states_ZCNF = b.mT @ _flat(v * decays.to_end_ZCQJ1)
        whole_ZC1F = _whole(decays, v.shape)
        final_ZNF = initial_ZNF
        for i in range(v.shape[1]):  # from what a chunk adds to the state before it
            after = torch.addcmul(states_ZCNF[:, i], whole_ZC1F[:, i], final_ZNF)
            states_ZCNF[:, i] = final_ZNF
            final_ZNF = after
        from_start = (c @ states_ZCNF).view(v.shape).mul_(decays.since_start_ZCQJ1)
        ctx.save_for_backward(v, b, c, states_ZCNF, from_start, *decays)
        return _by_head(mix_ZCJQR @ _by_head(v)) + from_start, final_ZNF

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, dfinal_ZNF: torch.Tensor) -> tuple[torch.Tensor, ...]:
        v, b, c, starts_ZCNF, from_start, *factors = ctx.saved_tensors
        decays = _Decays(*factors)
        dy_decayed = _flat(dy * decays.since_start_ZCQJ1)
        dends_ZCNF = c.mT @ dy_decayed
        whole_ZC1F = _whole(decays, v.shape)
        dinitial_ZNF, through = dfinal_ZNF, []
        for i in reversed(range(v.shape[1])):  # from a chunk's own use of its first state to the gradient of its last
            before = torch.addcmul(dends_ZCNF[:, i], whole_ZC1F[:, i], dinitial_ZNF)
            dends_ZCNF[:, i] = dinitial_ZNF
            through.append((dinitial_ZNF * starts_ZCNF[:, i]).sum(1))
            dinitial_ZNF = before

        cb = (c @ b.mT).tril_()
        dmix = (_by_head(dy) @ _by_head(v).mT).mul_(decays.within_ZCJQR)
        dcb = dmix.sum(2).tril_()
        dv_of_end = (b @ dends_ZCNF).view(v.shape).mul_(decays.to_end_ZCQJ1)
        dv = _by_head((cb[:, :, None] * decays.within_ZCJQR).mT @ _by_head(dy)) + dv_of_end
        db = dcb.mT @ c + _flat(v * decays.to_end_ZCQJ1) @ dends_ZCNF.mT
        dc = dcb @ b + dy_decayed @ starts_ZCNF.mT

        # Frame t's decay acts on every pair (q, r) with q ≥ t > r, where r may be the start and q the end of the chunk.
        pairs = dmix.mul_(cb.tril_(-1)[:, :, None])
        of_start, of_end = (dy * from_start).sum(-1), (dv_of_end * v).sum(-1)
        through_ZCF = torch.stack(through[::-1], 1) * whole_ZC1F[:, :, 0]
        through_ZC1J = through_ZCF.view(*through_ZCF.shape[:2], *v.shape[3:]).sum(-1)[:, :, None]
        at_q = (pairs.sum(-1) - pairs.sum(-2)).transpose(2, 3) + of_start
        dlog_decay = at_q.flip(2).cumsum(2).flip(2) + (of_end.cumsum(2) - of_end) + through_ZC1J
        return dv, dlog_decay, db, dc, dinitial_ZNF


def _whole(decays: _Decays, shape_ZCQJP: torch.Size) -> torch.Tensor:
    """Decay over each whole chunk, for every column of the state: [Z, C, 1, F]."""
    return decays.since_start_ZCQJ1[:, :, -1].expand(-1, -1, -1, shape_ZCQJP[4]).flatten(2)[:, :, None]
