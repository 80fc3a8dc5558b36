"""The two recurrences frame by frame, as the papers write them: slow and obvious, what the fast forms are held against.

Legend: B trials, S frames, H heads, P head size, G groups, D channels, N state size.
"""

from __future__ import annotations

import torch


def ssd_by_frames(
    x_BSHP: torch.Tensor,
    dt_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGN: torch.Tensor,
    c_BSGN: torch.Tensor,
    initial_BHPN: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba-2: `h_t = exp(Δ_t a) h_{t-1} + Δ_t x_t b_tᵀ`, `y_t = h_t c_t`, for each head (Dao & Gu 2024, section 2).

    Head h uses b and c of group h // (H / G). Returns y [B, S, H, P] and the last state.
    """
    heads_a_group = a_H.shape[0] // b_BSGN.shape[2]
    state, outputs = initial_BHPN, []
    for x, dt, b, c in zip(x_BSHP.unbind(1), dt_BSH.unbind(1), b_BSGN.unbind(1), c_BSGN.unbind(1), strict=True):
        b_BHN, c_BHN = b.repeat_interleave(heads_a_group, 1), c.repeat_interleave(heads_a_group, 1)
        decay_BH = torch.exp(dt * a_H)
        state = decay_BH[..., None, None] * state + (dt[..., None] * x)[..., None] * b_BHN[:, :, None]
        outputs.append((state * c_BHN[:, :, None]).sum(-1))
    return torch.stack(outputs, 1), state


def selective_scan_by_frames(
    x_BSD: torch.Tensor,
    dt_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    initial_BDN: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba-1: `h_t = exp(Δ_t a) ⊙ h_{t-1} + Δ_t x_t b_tᵀ`, `y_t = h_t c_t` (Gu & Dao 2023, algorithm 2).

    As the paper's code does, b is discretised as Δb. Returns y [B, S, D] and the last state.
    """
    state, outputs = initial_BDN, []
    for x, dt, b, c in zip(x_BSD.unbind(1), dt_BSD.unbind(1), b_BSN.unbind(1), c_BSN.unbind(1), strict=True):
        state = torch.exp(dt[..., None] * a_DN) * state + (dt * x)[..., None] * b[:, None]
        outputs.append((state * c[:, None]).sum(-1))
    return torch.stack(outputs, 1), state
