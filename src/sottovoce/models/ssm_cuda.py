"""Mamba-2's recurrence by the CUDA kernels of the package `mamba_ssm`, where a user has installed it and asks for it.

The call is that of `mamba_ssm/ops/triton/ssd_combined.py` (state-spaces/mamba). Legend: as in `ssm_mamba2`.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch

from sottovoce.core.errors import ConfigurationError


def check_installed() -> None:
    """Raise ConfigurationError where the package is missing: no other back end takes its place unasked."""
    if find_spec("mamba_ssm") is None:
        raise ConfigurationError(
            "model.ssm.backend=mamba_ssm: the package mamba_ssm is not installed; install it or set "
            "model.ssm.backend=torch"
        )


def mamba_ssm_scan(
    x_BSHP: torch.Tensor,
    dt_BSH: torch.Tensor,
    a_H: torch.Tensor,
    b_BSGN: torch.Tensor,
    c_BSGN: torch.Tensor,
    initial_BHPN: torch.Tensor,
    chunk_frames: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `ssm_mamba2.ssd`.

    Raises:
        ConfigurationError: the tensors are not on a CUDA device.
    """
    if x_BSHP.device.type != "cuda":
        raise ConfigurationError(f"model.ssm.backend=mamba_ssm runs on CUDA devices only, not on {x_BSHP.device}")
    kernels = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    y_BSHP, final_BHPN = kernels.mamba_chunk_scan_combined(
        x_BSHP, dt_BSH, a_H, b_BSGN, c_BSGN, chunk_frames, initial_states=initial_BHPN, return_final_states=True
    )
    return y_BSHP, final_BHPN
