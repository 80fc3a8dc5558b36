"""What a branch of the training is: one loss, as one record, and what it may look at.

Legend: B trials, S frames, U labels, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from sottovoce.core.trial import Batch
from sottovoce.features.augmentation import Draws
from sottovoce.losses.combine import normalised_sum
from sottovoce.models.compose import DecoderModel, Encoded, ModelConfig
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.teachers import Teachers, TeacherTargets

Functions = Mapping[str, Callable[..., torch.Tensor]]


@dataclass(frozen=True)
class PartInputs:
    """One part of an optimiser step as the model has heard it; what several losses need is computed once."""

    model: DecoderModel
    batch: Batch
    """Its features, augmented."""
    encoded: Encoded
    blank: int
    positions: tuple[int, ...]
    """Place of each trial in the step's global batch."""
    draws: Draws
    recorded: Batch | None = None
    """The features without augmentation, where a loss asks for them (`Branch.needs_recorded`)."""
    modes: ModeTargets | None = None
    teachers: Teachers | None = None

    @property
    def targets(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels [B, U], valid frames [B] and numbers of labels [B]."""
        return self.batch.labels_BU, self.encoded.lengths_B, self.batch.label_lengths_B

    @cached_property
    def ctc_logits_BSV(self) -> torch.Tensor:
        """Logits of the CTC head; it is not run where nobody asks."""
        return self.model.ctc_logits(self.encoded)

    @cached_property
    def teacher_targets(self) -> TeacherTargets:
        """What the teachers say of these features; they are not run where nobody asks."""
        assert self.teachers is not None  # only a run with teachers gives the loss a weight
        return self.teachers.targets(self.batch, self.positions)

    def computed(self, name: str) -> Any:
        """The value of the cached property `name`, None where nobody has asked for it."""
        return self.__dict__.get(name)


@dataclass(frozen=True)
class Branch:
    """A loss and everything that the rest of the program has to know of it.

    A new loss is a file beside this one with such a record, and its place in `BRANCHES`.
    """

    name: str
    """As `training.stages` weighs it, and as records call it."""
    component: str
    """The part of the model that it trains, beside the encoder: the one is on exactly when the other is."""
    metric: str
    """Name of its mean in nats a trial, in `metrics.jsonl`."""
    compute: Callable[[PartInputs, Any, Functions], torch.Tensor]
    """Nats [B] of each trial, from the inputs, the settings (`section`) and `functions`."""
    unit: Literal["token", "trial"] = "token"
    """What the normalisation by length divides by: the labels of a trial, or nothing, for a single target a trial."""
    functions: Functions = field(default_factory=lambda: MappingProxyType({}))
    """The loss functions that `compute` calls, by name; preflight puts questions with known answers to them."""
    section: str = ""
    """Dotted key of its settings in the run's configuration; empty: it has none."""
    weight_of: str = ""
    """The loss whose weight it shares, for one that has none of its own; empty: its own."""
    default_weight: float = 0.0
    """In a stage that does not mention it."""
    held_back: bool = False
    """It is switched on late and gradually (`training.rnnt_warmup_batches`, `training.rnnt_ramp_steps`)."""
    needs_recorded: bool = False
    """It looks at the features as recorded, too."""
    on_uniform_logits: Callable[[int, int, int], float] | None = None
    """Of -ln p(labels): the nats of labels without repeats where every symbol is as likely, from numbers of frames,
    labels and symbols. None: it is no likelihood, so that it may be exactly 0."""
    available: Callable[[ModelConfig], bool] = lambda model: True
    """A model of this configuration has the part that the loss trains."""
    own_part: Callable[[DecoderModel], nn.Module | None] = lambda model: None
    """The part of the model that is run for this loss alone in training, where there is one."""
    output: Callable[[DecoderModel], nn.Module | None] = lambda model: None
    """The layer that gives the logits of a likelihood."""
    adjust: Callable[[torch.Tensor, torch.Tensor, PartInputs, Any], tuple[torch.Tensor, torch.Tensor]] = (
        lambda nats_B, tokens_B, inputs, settings: (nats_B, tokens_B)
    )
    """What is counted of each trial's nats, and by how many tokens it is divided; what is recorded stays as it is."""

    @property
    def is_likelihood(self) -> bool:
        """It is -ln p of a whole target, which is never exactly 0."""
        return self.on_uniform_logits is not None

    def nats(self, inputs: PartInputs, settings: Any) -> torch.Tensor:
        """The loss of each trial [B], in nats."""
        return self.compute(inputs, settings, self.functions)

    def share(
        self, nats_B: torch.Tensor, inputs: PartInputs, settings: Any, normalisation: str, global_batch: int
    ) -> torch.Tensor:
        """The loss as this part's share of the step's, normalised and before its weight."""
        tokens_B = inputs.batch.label_lengths_B
        if self.unit == "trial":
            tokens_B = torch.ones_like(tokens_B)
        nats_B, tokens_B = self.adjust(nats_B, tokens_B, inputs, settings)
        return normalised_sum(nats_B, tokens_B, normalisation, global_batch)
