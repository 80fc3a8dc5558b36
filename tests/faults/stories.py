"""The wrong stories of this field's public training reports: what was blamed, and the exhibit that re-creates each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Story:
    """A failure that was explained wrongly."""

    told: str
    """What the report blames."""
    exhibit: str
    """The exhibit in which the same thing happens."""
    code: str
    """The true cause."""


STORIES = (
    Story("random weights and one update explode", "optimiser goes stale at the stage change", "stale_optimizer"),
    Story("the joint stage needs a lower learning rate", "clip norm counts what nobody owns", "unowned_gradients"),
    Story("tiny CTC losses are fast convergence", "labels as long as their array", "label_padding"),
    Story("the learning rate was too high, the clip too weak", "epsilon 0.1, clip 0.5", "adam_eps_regime"),
    Story("the lattice makes the transducer a hundred times as large", "CTC divided by its labels, the transducer not",
          "reduction_mismatch"),
    Story("the frozen predictor makes this a CTC-only phase", "held transducer still sends gradient",
          "frozen_branch_leaks"),
    Story("a word error rate of 1.0 %", "a fraction with a percent sign", "unit_mismatch"),
    Story("the feature spaces of teacher and student do not match", "decoded symbols shifted by one",
          "tokenizer_offset"),
)  # fmt: skip
