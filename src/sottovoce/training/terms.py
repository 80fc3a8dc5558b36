"""The losses of one forward pass: which are computed, and how they are scaled against each other.

Legend: B trials, S frames, E encoder size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.trial import Batch
from sottovoce.losses.ctc import ctc_loss
from sottovoce.losses.distillation import distillation_loss
from sottovoce.losses.flow_matching import CorruptionConfig, corrupt, draw_times, flow_matching_loss
from sottovoce.losses.fused_joint import fused_transducer_loss
from sottovoce.losses.speaking_mode import speaking_mode_loss
from sottovoce.losses.transducer import transducer_loss
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.teachers import Lesson

METRIC_NAMES: Final = {
    "ctc": "train/ctc_loss",
    "distillation": "train/distillation_loss",
    "rnnt": "train/transducer_loss",
    "mode": "train/mode_loss",
    "denoise": "train/flow_loss",
}
TOKEN_LOSSES: Final = ("ctc", "rnnt")
"""Losses of a lattice, with one token for each label."""
WHOLE_TRIAL_LOSSES: Final = ("mode", "denoise")
"""Losses with a single target for each trial, which its number of labels does not divide."""
SMALLEST_LENGTH_SCALE: Final = 5.0


@dataclass(frozen=True)
class Terms:
    """What one forward pass of a step computed."""

    nats: dict[str, torch.Tensor]
    """Each loss by name, [B] in nats."""
    ctc_logits_BSV: torch.Tensor | None
    """Where the CTC loss or the teachers have a weight."""
    encoded: Encoded


def compute_terms(
    model: DecoderModel,
    batch: Batch,
    encoded: Encoded,
    weights: Mapping[str, float],
    blank: int,
    modes: ModeTargets | None,
) -> Terms:
    """The losses that have a weight, each for every trial of the batch; a branch without one is not run."""
    nats, logits_BSV = {}, None
    targets = (batch.labels_BU, encoded.lengths_B, batch.label_lengths_B)
    if "ctc" in weights or "distillation" in weights:
        logits_BSV = model.ctc_logits(encoded)
    if "ctc" in weights:
        assert logits_BSV is not None
        nats["ctc"] = ctc_loss(logits_BSV, *targets, blank)
    if "rnnt" in weights:
        nats["rnnt"] = _transducer(model, encoded, *targets, blank)
    if "mode" in weights:
        assert modes is not None and encoded.mode is not None  # the plan refuses such a stage
        targets_B = modes.of(batch.trial_ids, encoded.lengths_B.device)
        settings = model.config.speaking_mode
        assert settings is not None
        nats["mode"] = speaking_mode_loss(
            encoded.mode.logits_B2, encoded.mode.embedding_BD, *targets_B, settings.contrastive_weight
        )
    return Terms(nats, logits_BSV, encoded)


def distillation_term(terms: Terms, lesson: Lesson, temperature: float) -> torch.Tensor:
    """How far the CTC head is from what the teachers say, [B] in nats.

    Raises:
        ConfigurationError: they have other frames or symbols.
    """
    assert terms.ctc_logits_BSV is not None
    own, theirs = terms.ctc_logits_BSV.shape, lesson.log_q_BSV.shape
    if own != theirs:
        raise ConfigurationError(
            f"training.distillation.teachers give logits of {list(theirs)}, this run's are {list(own)} (trials, "
            "frames, symbols); take teachers with the same symbols and bins per frame"
        )
    return distillation_loss(terms.ctc_logits_BSV, lesson.log_q_BSV, lesson.weights_BS, temperature)


def flow_term(
    model: DecoderModel, clean: Batch, corruption: CorruptionConfig, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """The flow bridge's squared error [B] on the way from corrupted to these features; each trial draws for itself."""
    assert model.flow_bridge is not None  # the plan leaves the stage out
    corrupted_BTC = corrupt(clean.signal, clean.lengths_B, corruption, generators)
    tau_B = draw_times(generators, clean.signal.device)
    return flow_matching_loss(model.flow_bridge, clean.signal, corrupted_BTC, clean.lengths_B, tau_B)


def _transducer(
    model: DecoderModel,
    encoded: Encoded,
    labels_BU: torch.Tensor,
    frames_B: torch.Tensor,
    label_lengths_B: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    head = model.transducer
    assert head is not None  # the plan refuses such a stage
    encoder_BSH = head.project(encoded.frames_BSE)
    predictor_BUH = head.predict(labels_BU, label_lengths_B)
    if head.config.joint == "additive":
        return fused_transducer_loss(
            encoder_BSH,
            predictor_BUH,
            head.output.weight,
            head.output.bias,
            labels_BU,
            frames_B,
            label_lengths_B,
            blank,
        )
    return transducer_loss(head.logits(encoder_BSH, predictor_BUH), labels_BU, frames_B, label_lengths_B, blank)


def length_scaled(
    nats_B: torch.Tensor, frames_B: torch.Tensor, label_lengths_B: torch.Tensor, scaling: str
) -> torch.Tensor:
    """The transducer's loss divided by lengths of its own trial.

    `length`: by √(frames · labels), at least 5; `frames`: by half its frames, at least 1. The source divides by the
    batch's means (mode-ssm, its third and second scaling), so that a trial's weight depends on its batch mates; here it
    does not, and the two agree where all trials are of one length.
    """
    if scaling == "frames":
        return nats_B / (frames_B.float() / 2).clamp(min=1)
    return nats_B / (frames_B * label_lengths_B).float().sqrt().clamp(min=SMALLEST_LENGTH_SCALE)


@dataclass
class GradientBalance:
    """Running sizes of the gradients that the CTC and the transducer loss send into the encoder.

    The factor stays the same throughout a step: what a step measures, over all its micro-batches and processes, counts
    from the next step on, and only if the guard let the step pass.
    """

    decay: float = 0.9
    norms: dict[str, float] = field(default_factory=dict)
    """Saved in checkpoints."""
    squares: dict[str, float] = field(default_factory=dict)
    """Measured in the step in progress: sums of squares over its micro-batches."""

    def measure(self, name: str, squares: float) -> None:
        """Add one micro-batch's sum of squares."""
        self.squares[name] = self.squares.get(name, 0.0) + squares

    def settle(self, step_is_good: bool) -> None:
        """At the end of a step: take its measurements into the running means, or forget them."""
        if step_is_good:
            for name, squares in self.squares.items():
                norm, before = math.sqrt(squares), self.norms.get(name)
                self.norms[name] = norm if before is None else self.decay * before + (1 - self.decay) * norm
        self.squares = {}

    @property
    def transducer_factor(self) -> float:
        """What gives the transducer's loss a gradient as large as CTC's; 1 until both have been measured."""
        if not self.norms.get("rnnt") or not self.norms.get("ctc"):
            return 1.0
        return self.norms["ctc"] / self.norms["rnnt"]
