"""Exhibits of table A: targets, lengths and lattices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from sottovoce.core.lengths import conv_length
from sottovoce.models import patching
from sottovoce.models.transducer import TransducerHead
from sottovoce.training.guard import GradientGuard, Verdict
from sottovoce.training.preparation import Prepared
from sottovoce.training.step import StepComputer
from tests.faults.scene import Exhibit, Scene, at
from tests.training.spoilt import exact_loss, spoil_loss


def infinite_losses_become_zero(scene: Scene) -> None:
    def forgiving(*arguments: Any) -> torch.Tensor:
        nats_B = exact(*arguments)
        return torch.where(nats_B.isfinite(), nats_B, torch.zeros_like(nats_B))

    exact = exact_loss("ctc_loss")
    spoil_loss(scene.patch, "ctc_loss", forgiving)


def labels_as_long_as_their_array(scene: Scene) -> None:
    def padded(prepared: Prepared) -> Prepared:
        trials = prepared.trial_set.trials
        longest = max(len(trial.labels or ()) for trial in trials)
        prepared.trial_set.trials = tuple(
            replace(trial, labels=(*(trial.labels or ()), *[0] * (longest - len(trial.labels or ()))))
            for trial in trials
        )
        return prepared

    scene.prepared.append(padded)


def one_frame_short(scene: Scene) -> None:
    """The formula of neural_seq_decoder: (T - k) // s, without the + 1."""
    scene.patch.setattr(patching, "conv_length", lambda lengths, size, stride: (lengths - size) // stride)


def one_frame_long(scene: Scene) -> None:
    scene.patch.setattr(patching, "conv_length", lambda lengths, size, stride: conv_length(lengths, size, stride) + 1)


def weights_are_lost(scene: Scene) -> None:
    def poison(computer: StepComputer) -> None:
        with torch.no_grad():
            computer.model.head.weight[2, 3] = math.nan

    scene.after_step.append(at(60, poison))


def unguarded_step(scene: Scene) -> None:
    """One NaN in one gradient, and nobody who looks: what `clip_grad_norm_` makes of it."""

    def clip_only(guard: GradientGuard, parameters: Any, losses: Any, *rest: Any, **more: Any) -> Verdict:
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), guard.max_norm or math.inf)
        return Verdict(float(norm))

    def poison(computer: StepComputer) -> None:
        computer.model.head.weight.register_hook(
            lambda gradient: gradient * math.nan if computer.progress.step == 60 else None
        )

    def begin(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        scene.patch.setattr(GradientGuard, "inspect", clip_only)
        poison(computer)

    scene.begin.append(begin)


def minus_infinity_as_padding(scene: Scene) -> None:
    """A log-sum over frames in which a short trial's rows are all -inf: finite loss, NaN gradient."""

    def with_padding(encoder_BSH: torch.Tensor, *rest: Any) -> torch.Tensor:
        return exact(encoder_BSH, *rest) + _nothing(encoder_BSH, rest[4])

    exact = exact_loss("fused_transducer_loss")
    spoil_loss(scene.patch, "fused_transducer_loss", with_padding)


def minus_infinity_in_ctc(scene: Scene) -> None:
    def with_padding(logits_BSV: torch.Tensor, targets: torch.Tensor, frames_B: torch.Tensor, *rest: Any) -> Any:
        return exact(logits_BSV, targets, frames_B, *rest) + _nothing(logits_BSV, frames_B)

    exact = exact_loss("ctc_loss")
    spoil_loss(scene.patch, "ctc_loss", with_padding)


def _nothing(frames_BSX: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """0 for every trial, with a gradient that is NaN behind the end of the short ones."""
    inside_BS1 = torch.arange(frames_BSX.shape[1])[None, :, None] < lengths_B[:, None, None]
    padded_BSX = frames_BSX + torch.where(inside_BS1, 0.0, -math.inf)
    lse_BS = padded_BSX.logsumexp(-1)
    return torch.where(inside_BS1[..., 0], lse_BS, torch.zeros_like(lse_BS)).sum(1) * 0


def one_row_too_few(scene: Scene) -> None:
    exact = TransducerHead.predict
    scene.patch.setattr(TransducerHead, "predict", lambda *arguments: exact(*arguments)[:, :-1])


EXHIBITS = (
    Exhibit("stride that leaves too few frames", "A1", "ctc_infeasible",
            overrides=("model.patch.size=40", "model.patch.stride=40")),
    Exhibit("cut that leaves too few frames", "A1", "ctc_infeasible", overrides=("augmentation.random_cut_bins=200",)),
    Exhibit("infinite losses become 0", "A2", "zero_infinity", infinite_losses_become_zero),
    Exhibit("labels as long as their array", "A3", "label_padding", labels_as_long_as_their_array),
    Exhibit("frame formula without + 1", "A4", "frame_length_off_by_one", one_frame_short),
    Exhibit("frame formula that reads padding", "A4", "frame_length_off_by_one", one_frame_long),
    Exhibit("a weight becomes NaN", "A5", "poisoned_weights", weights_are_lost),
    Exhibit("one unguarded step with a NaN gradient", "A5", "poisoned_weights", unguarded_step,
            slow=True),
    Exhibit("minus infinity as padding of the transducer", "A6", "infinite_padding", minus_infinity_as_padding,
            "curriculum"),
    Exhibit("minus infinity as padding of CTC", "A6", "infinite_padding", minus_infinity_in_ctc),
    Exhibit("one predictor row too few", "A7", "transducer_lengths", one_row_too_few, "curriculum"),
)  # fmt: skip
