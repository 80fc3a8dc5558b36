"""The recurrence of one GRU layer for training on a CPU.

PyTorch's own layer records every operation of every frame, and its backward pass multiplies a small matrix for each
frame to get the weights' gradient. Here the backward pass is written out: four operations a frame, and the weights'
gradient of all frames is one matrix product at the end. Values and gradients are those of `torch.nn.GRU`.

Legend: B trials, S frames, H units, G = 3·H gates in PyTorch's order r, z, n.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


class _Recurrence(torch.autograd.Function):
    """`r, z = σ(x + U h)`, `n = tanh(x_n + r ⊙ U_n h)`, `h' = n + z ⊙ (h − n)`, with `U h` standing for `U h + b`."""

    @staticmethod
    def forward(ctx: Any, input_SBG: Tensor, weight_GH: Tensor, bias_G: Tensor, initial_BH: Tensor) -> Tensor:
        num_frames, num_trials, _ = input_SBG.shape
        size = weight_GH.shape[1]
        states = input_SBG.new_empty(num_frames + 1, num_trials, size)
        states[0] = initial_BH
        recurrent, gates = torch.empty_like(input_SBG), input_SBG.new_empty(num_frames, num_trials, 2 * size)
        candidates = input_SBG.new_empty(num_frames, num_trials, size)
        weight_HG = weight_GH.t().contiguous()
        frames = zip(
            states.unbind(),
            states[1:].unbind(),
            recurrent.unbind(),
            gates.unbind(),
            candidates.unbind(),
            *_split(input_SBG, 2 * size),
            *_split(recurrent, 2 * size),
            *_split(gates, size),
            strict=False,  # one state more than frames
        )
        for before, after, u, rz, n, x_rz, x_n, u_rz, u_n, r, z in frames:
            torch.addmm(bias_G, before, weight_HG, out=u)
            torch.add(x_rz, u_rz, out=rz).sigmoid_()
            torch.addcmul(x_n, r, u_n, out=n).tanh_()
            torch.lerp(n, before, z, out=after)
        ctx.save_for_backward(gates, candidates, recurrent[..., 2 * size :], states, weight_GH)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, n, u_n, states, weight_GH = ctx.saved_tensors
        num_frames, num_trials, size = n.shape
        r, z, before = gates[..., :size], gates[..., size:], states[:-1]
        to_n = (1 - z) * (1 - n * n)  # d h' / d (argument of tanh)
        factors = n.new_empty(num_frames, num_trials, 3, size)  # d h' / d (U h + b), gate by gate
        torch.mul(to_n * u_n, r * (1 - r), out=factors[:, :, 0])
        torch.mul((before - n) * z, 1 - z, out=factors[:, :, 1])
        torch.mul(to_n, r, out=factors[:, :, 2])
        grad_states = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        grad_gates = torch.empty_like(factors)
        flat = grad_gates.view(num_frames, num_trials, 3 * size)
        for frame in range(num_frames - 1, -1, -1):
            grad = grad_states[frame]
            torch.mul(factors[frame], grad[:, None], out=grad_gates[frame])
            if frame:
                grad_states[frame - 1].addcmul_(grad, z[frame]).addmm_(flat[frame], weight_GH)
        grad_initial = torch.addmm(grad_states[0] * z[0], flat[0], weight_GH)
        grad_weight = flat.flatten(0, 1).t() @ before.flatten(0, 1)
        grad_bias = flat.sum((0, 1))
        torch.mul(grad_states, to_n, out=grad_gates[:, :, 2])  # the input's share of n has no factor r
        return flat, grad_weight, grad_bias, grad_initial


def _split(x: Tensor, at: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The frames of the columns before and from `at` on."""
    return x[..., :at].unbind(), x[..., at:].unbind()


def recurrence(gates_BSG: Tensor, initial_BH: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
    """States [B, S, H] of one layer of `torch.nn.GRU` from its inputs' share of the gates, `W x + b`."""
    gates_SBG = gates_BSG.transpose(0, 1).contiguous()
    states_SBH: Tensor = _Recurrence.apply(gates_SBG, weight_hh, bias_hh, initial_BH)  # type: ignore[no-untyped-call]
    return states_SBH.transpose(0, 1)
