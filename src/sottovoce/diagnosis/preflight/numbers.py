"""Number formats: the losses against float64, and what a model holds in half precision.

Legend: S frames, U labels, W = U+1 rows of the lattice, V symbols, H joint units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.exact_losses import ctc_nats, log_probabilities, transducer_nats
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.training.branches import CTC, TRANSDUCER

FRAMES: Final = 500
LABELS: Final = 60
"""Size of the lattice on which the losses are held against float64."""
LARGEST_ERROR: Final = 1e-5
"""Relative; float32 lattices of this size err by 1e-6 (catalogue row C5: 1e-3 of 1,760 nats)."""
ANOTHER_LOSS: Final = 1e-2
"""A relative error above this is no matter of rounding but of reduction or target, which have their own checks."""
ROUNDED: Final = 0.1
"""The error counts as that of a low-precision softmax if redoing it exactly but for that leaves this share of it."""
SMALLEST_NORMAL_HALF: Final = 2.0**-14
"""About 6.1e-5: float16 holds less with fewer digits, and nothing below 6e-8 (catalogue row C2)."""
UNLIKELY: Final = 20.0
"""Nats of a symbol whose probability, 2e-9, float16 cannot hold."""
DECAYS: Final = ("A_log", "dt_bias")
"""Parameters whose precision is a matter of its own (`ssm_low_precision`)."""
HALF: Final = (torch.float16, torch.bfloat16)
SEED: Final = 1


def loss_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """Where the run's lattice losses are not those of float64: because they underflow, or round too early, or drift."""
    blank, num_symbols = untrained.computer.blank, untrained.computer.model.head.out_features
    generator = torch.Generator().manual_seed(SEED)
    labels = [i for i in range(num_symbols) if i != blank]
    target = [labels[i] for i in torch.randint(len(labels), (LABELS,), generator=generator).tolist()]
    logits_SV = 2 * torch.randn(FRAMES, num_symbols, generator=generator)
    branches = untrained.computer.branches
    loss = branches[CTC.name].functions["ctc_loss"]
    yield from _underflow("ctc_loss", loss, blank, num_symbols)
    yield from _ctc_error("ctc_loss", loss, logits_SV, target, blank)
    head = untrained.computer.model.transducer
    if head is None:
        return
    name = "fused_transducer_loss" if head.config.joint == "additive" else "transducer_loss"
    yield from _transducer_error(name, branches[TRANSDUCER.name].functions[name], name, target, blank, num_symbols)


def _underflow(place: str, loss: Callable[..., Any], blank: int, num_symbols: int) -> Iterator[Finding]:
    """Improbable is not impossible: half-precision logits that leave the target one chance in 5e8 a frame."""
    label = (blank + 1) % num_symbols
    logits_13V = torch.zeros(1, 3, num_symbols)
    logits_13V[..., blank] = UNLIKELY
    try:
        nats = float(_of_one(loss, logits_13V.half(), [label], blank))
    except ValueError:
        return  # a loss that refuses float16 cannot be wrong with it
    if not math.isfinite(nats):
        yield found(
            "fp16_underflow",
            f"A label of probability 2e-9 in every frame has a CTC loss of {nats} where the logits are float16, not of "
            f"{ctc_nats(log_probabilities(logits_13V[0]), [label], blank):.1f} nats ({place}).",
            "preflight",
        )


def _ctc_error(
    place: str, loss: Callable[..., Any], logits_SV: torch.Tensor, target: Sequence[int], blank: int
) -> Iterator[Finding]:
    for dtype in (torch.float32, torch.bfloat16):
        given_SV = logits_SV.to(dtype)
        exact = ctc_nats(log_probabilities(given_SV), target, blank)
        nats = float(_of_one(loss, given_SV[None], target, blank))
        error = abs(nats - exact)
        if not LARGEST_ERROR * exact < error < ANOTHER_LOSS * exact:
            continue
        for low in HALF:
            softmax_SV = given_SV.to(low).log_softmax(-1)
            rounded = ctc_nats(softmax_SV.double().numpy(), target, blank)
            if abs(nats - rounded) < ROUNDED * error:
                yield found(
                    "low_precision_loss",
                    f"The CTC loss of {FRAMES} frames and {LABELS} labels is {nats:.4f} nats in {place} and "
                    f"{exact:.4f} in float64; with a softmax in {_name(low)} it is {rounded:.4f}.",
                    "preflight",
                )
                return
        yield _drift("CTC", nats, exact, place)
        return


def _transducer_error(
    place: str, loss: Callable[..., Any], name: str, target: Sequence[int], blank: int, num_symbols: int
) -> Iterator[Finding]:
    generator = torch.Generator().manual_seed(SEED)
    encoder_SH, predictor_WH, weight_VH = (
        torch.randn(size, 8, generator=generator) for size in (FRAMES, LABELS + 1, num_symbols)
    )
    joint_SWH = (encoder_SH[:, None] + predictor_WH).tanh()
    logits_SWV = joint_SWH @ weight_VH.T
    lengths = torch.tensor([FRAMES]), torch.tensor([LABELS])
    if name == "fused_transducer_loss":
        exact_SWV = (encoder_SH.double()[:, None] + predictor_WH.double()).tanh() @ weight_VH.double().T
        inputs = encoder_SH[None], predictor_WH[None], weight_VH, torch.zeros(num_symbols)
        nats = float(loss(*inputs, torch.tensor([target]), *lengths, blank)[0])
    else:
        exact_SWV = logits_SWV.double()
        nats = float(loss(logits_SWV[None], torch.tensor([target]), *lengths, blank)[0])
    exact = transducer_nats(log_probabilities(exact_SWV), target, blank)
    error = abs(nats - exact)
    if not LARGEST_ERROR * exact < error < ANOTHER_LOSS * exact:
        return
    for low in HALF:
        rounded = transducer_nats(logits_SWV.to(low).log_softmax(-1).double().numpy(), target, blank)
        if abs(nats - rounded) < ROUNDED * error:
            yield found(
                "low_precision_loss",
                f"The transducer loss of {FRAMES} frames and {LABELS} labels is {nats:.4f} nats in {place} and "
                f"{exact:.4f} in float64; with a softmax in {_name(low)} it is {rounded:.4f}.",
                "preflight",
            )
            return
    yield _drift("transducer", nats, exact, place)


def _drift(which: str, nats: float, exact: float, place: str) -> Finding:
    return found(
        "lattice_drift",
        f"The {which} loss of {FRAMES} frames and {LABELS} labels is {nats:.4f} nats in {place} and {exact:.4f} in "
        f"float64: a relative error of {abs(nats - exact) / exact:.1e}.",
        "preflight",
    )


def half_precision_parts(untrained: UntrainedRun) -> Iterator[Finding]:
    """Parameters in bfloat16, and constants that float16 swallows beside parameters in float16."""
    model = untrained.computer.model
    low = {
        dtype: [n for n, p in model.named_parameters() if p.dtype == dtype and n.split(".")[-1] not in DECAYS]
        for dtype in HALF
    }
    if names := low[torch.bfloat16]:
        yield found(
            "bf16_parameters",
            f"{len(names)} of {len(list(model.parameters()))} parameters are bfloat16, for example {names[0]}: an "
            "update below 1/256 of a weight leaves it as it is.",
            "preflight",
        )
    if low[torch.float16]:
        yield from _half_constants(untrained, low[torch.float16])


def _half_constants(untrained: UntrainedRun, names: Sequence[str]) -> Iterator[Finding]:
    small = {
        f"{name}.eps": module.eps
        for name, module in untrained.computer.model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d)
        and any(p.dtype == torch.float16 for p in module.parameters(recurse=False))
    }
    small["training.optimizer.eps"] = untrained.prepared.config.training.optimizer.eps
    swallowed = {name: eps for name, eps in small.items() if eps < SMALLEST_NORMAL_HALF}
    if swallowed:
        name, eps = next(iter(swallowed.items()))
        held = float(torch.tensor(eps, dtype=torch.float16))
        yield found(
            "fp16_underflow",
            f"{len(names)} parameters are float16 ({names[0]}), and {name}={eps:g} beside them is {held:g} in float16.",
            "preflight",
        )


def _of_one(loss: Callable[..., Any], logits_1SV: torch.Tensor, target: Sequence[int], blank: int) -> torch.Tensor:
    lengths = torch.tensor([logits_1SV.shape[1]]), torch.tensor([len(target)])
    nats: torch.Tensor = loss(logits_1SV, torch.tensor([list(target)]), *lengths, blank)[0]
    return nats


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
