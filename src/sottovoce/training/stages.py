"""The curriculum: stages as data, and what a step of each computes and moves.

A stage weighs the losses and says which components of the model learn and how fast. Nothing is ever rebuilt between
stages: one optimiser serves the whole run, and a frozen component keeps its moments. A loss of weight 0 is not
computed at all, so that no branch that is off can send a gradient into the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from sottovoce.core.configuration import nearest
from sottovoce.core.errors import ConfigurationError
from sottovoce.evaluation.scoring import METRICS
from sottovoce.models.compose import COMPONENTS
from sottovoce.training.branches import BRANCHES


@dataclass(frozen=True)
class StageConfig:
    """One stage of `training.stages`."""

    name: str = "train"
    """Unique; `joint_train`, `mode_train` and `denoise_train` mean `joint`, `mode` and `denoise`."""
    epochs: int | None = None
    """Length in passes over the training trials; give this or `steps`."""
    steps: int | None = None
    """Length in optimiser steps."""
    components: tuple[str, ...] = COMPONENTS
    """Which parts of the model learn; the others are frozen."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """How much each loss counts, after its normalisation, by name (`ctc`, `rnnt`, `mode`, `denoise`); 0: not computed.
    Absent: 1 for CTC, 0 for the others. Where teachers are asked (`training.distillation`), labels and teachers share
    CTC's."""
    learning_rate: dict[str, float] = field(default_factory=dict)
    """Factor on the learning rate of each component, on top of the schedule; absent: 1. `preprocessor` has the session
    adapters, `mode_head` what turns the mode into a modulation of the encoder too."""
    patience: int | None = None
    """End the stage early after this many validations of it without a better metric."""
    metric: str | None = None
    """Which validation rate patience and the stage's best checkpoint go by: `per`, `wer`, `cer` or `wra`; absent:
    `training.selection_metric`."""

    @property
    def canonical_name(self) -> str:
        """The name without the `_train` that the source's configuration appends."""
        return self.name.removesuffix("_train") or self.name

    def weight_of(self, loss: str) -> float:
        """The weight that the loss of this name, one of `BRANCHES`, comes under."""
        owner = BRANCHES[BRANCHES[loss].weight_of or loss]
        return self.loss_weights.get(owner.name, owner.default_weight)

    def rate_of(self, component: str) -> float:
        """Factor on the learning rate of one of its components."""
        return self.learning_rate.get(component, 1.0)

    @property
    def waits(self) -> bool:
        """It weighs a loss that is held back at first."""
        return any(branch.held_back and self.weight_of(name) > 0 for name, branch in BRANCHES.items())

    def __post_init__(self) -> None:
        where = f"training.stages ({self.name})"
        if (self.epochs is None) == (self.steps is None):
            raise ConfigurationError(f"{where}: give exactly one of epochs and steps")
        for name in ("epochs", "steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{where}: {name}={value} must be at least 1")
        if self.metric is not None and self.metric not in METRICS:
            raise ConfigurationError(f"{where}: metric={self.metric}: choose one of {', '.join(METRICS)}")
        for component in self.components:
            if component not in COMPONENTS:
                raise ConfigurationError(f"{where}: no component {component!r}; choose of {', '.join(COMPONENTS)}")
        of_their_own = [name for name, branch in BRANCHES.items() if not branch.weight_of]
        for section, known in (("loss_weights", of_their_own), ("learning_rate", COMPONENTS)):
            for name, value in getattr(self, section).items():
                if name not in known:
                    raise ConfigurationError(f"{where}: unknown {section}.{name}{nearest(name, known, section)}")
                if not 0 <= value < math.inf:
                    raise ConfigurationError(f"{where}: {name}={value} must be finite and must not be negative")
        if len(set(self.components)) < len(self.components):
            raise ConfigurationError(f"{where}: components names one of {', '.join(self.components)} twice")
        self._refuse_contradictions(where)
        for component, factor in self.learning_rate.items():
            if factor != 1 and component not in self.components:
                raise ConfigurationError(
                    f"{where}: learning_rate.{component}={factor:g} has no effect, {component} is not one of its "
                    "components"
                )

    def _refuse_contradictions(self, where: str) -> None:
        moving = [c for c in self.components if self.rate_of(c) > 0]
        if not moving:
            raise ConfigurationError(f"{where} trains nothing: no component has a learning rate above 0")
        if not any(self.weight_of(loss) for loss in BRANCHES):
            raise ConfigurationError(f"{where}: all loss weights are 0; nothing can be learnt")
        for loss, branch in BRANCHES.items():
            weight, component = self.weight_of(loss), branch.component
            if weight and component not in moving:
                raise ConfigurationError(
                    f"{where}: loss_weights.{loss}={weight:g}, but {component} is frozen, so its random weights would "
                    f"send gradient into the encoder; add {component} to components or set the weight to 0"
                )
            reached = any(self.weight_of(name) for name, other in BRANCHES.items() if other.component == component)
            if not reached and component in self.components:
                raise ConfigurationError(
                    f"{where}: {component} shall learn, but loss_weights.{loss} is 0, so nothing would reach it; "
                    f"take it out of components or give the loss a weight"
                )


@dataclass(frozen=True)
class Stage:
    """A stage with its length in optimiser steps."""

    config: StageConfig
    steps: int

    @property
    def name(self) -> str:
        """As events and messages call it."""
        return self.config.canonical_name


@dataclass(frozen=True)
class StagePosition:
    """Where a run stands in its curriculum; saved in every checkpoint."""

    index: int = 0
    first_step: int = 0
    """Step at which the stage began."""
    rnnt_steps: int = 0
    """Optimiser steps so far, over all stages, in which the stage gave the transducer a weight."""
    best: tuple[float, ...] | None = None
    """Selection metric (smaller is better) and loss of the stage's best validation, which patience goes by."""
    waited: int = 0
    """Validations of this stage since its best one; none count while the transducer is held back."""

    def after_update(self, stage: Stage) -> StagePosition:
        """The position after a step that moved the weights."""
        return replace(self, rnnt_steps=self.rnnt_steps + stage.config.waits)

    def next_stage(self, step: int) -> StagePosition:
        """The position at the start of the following stage, which begins at `step`."""
        return replace(self, index=self.index + 1, first_step=step, best=None, waited=0)

    def validated(self, now: tuple[float, ...], counts: bool) -> StagePosition:
        """The position after a validation; one that does not count starts the search for the best anew."""
        if not counts:
            return replace(self, best=None, waited=0)
        if self.best is None or now < tuple(self.best):
            return replace(self, best=now, waited=0)
        return replace(self, waited=self.waited + 1)


@dataclass(frozen=True)
class Activity:
    """What one optimiser step computes and moves."""

    weights: dict[str, float]
    """Weight of each loss that is computed."""
    rates: dict[str, float]
    """Learning-rate factor of each component that learns."""


def planned(
    stages: Sequence[StageConfig], steps: int, steps_per_epoch: int, present: Collection[str]
) -> tuple[Stage, ...]:
    """The stages of a run, in order; without any, one stage of `steps` steps with the CTC loss alone.

    Stages whose loss needs a component that the model can do without (`flow_bridge`) are left out when it is off.

    Args:
        present: components the model has.

    Raises:
        ConfigurationError: a stage needs a component that the model lacks, or two have the same name.
    """
    if not stages:
        components = tuple(c for c in COMPONENTS if c in present and c in ("preprocessor", "encoder", "ctc_decoder"))
        return (Stage(StageConfig(steps=steps, components=components), steps),)
    names = [stage.canonical_name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"training.stages: {names.count(name)} stages are called {name}; rename one")
    kept = [stage for stage in stages if "flow_bridge" in present or "flow_bridge" not in stage.components]
    if not kept:
        raise ConfigurationError(
            f"training.stages: only {stages[0].name} is given, and model.flow_bridge.enabled=false leaves it out"
        )
    for stage in kept:
        for component in stage.components:
            if component not in present and component != "preprocessor":
                raise ConfigurationError(
                    f"training.stages ({stage.name}): the model has no {component}; set its section under model, or "
                    "take it out of the stage"
                )
    return tuple(Stage(stage, stage.steps or (stage.epochs or 0) * steps_per_epoch) for stage in kept)


def activity(
    stage: StageConfig, rnnt_steps: int, warmup_steps: int, ramp_steps: int, distillation: float = 0.0
) -> Activity:
    """What a step of `stage` does after `rnnt_steps` earlier steps with a transducer weight.

    For the first `warmup_steps` of those the transducer is off: no forward pass, no gradient, no update. Then its
    weight rises linearly over `ramp_steps`. Of CTC's weight the share `distillation` goes to the teachers.

    >>> joint = StageConfig("joint", epochs=1, components=("encoder", "ctc_decoder", "rnnt_decoder"),
    ...                     loss_weights={"ctc": 0.3, "rnnt": 1.0})
    >>> [activity(joint, n, 100, 100).weights for n in (99, 100, 149, 500)]
    [{'ctc': 0.3}, {'ctc': 0.3, 'rnnt': 0.01}, {'ctc': 0.3, 'rnnt': 0.5}, {'ctc': 0.3, 'rnnt': 1.0}]
    """
    weights, rates = {}, {name: stage.rate_of(name) for name in stage.components}
    for name, branch in BRANCHES.items():
        weights[name] = stage.weight_of(name)
        if branch.weight_of:
            weights[branch.weight_of] *= 1 - distillation
            weights[name] *= distillation
        if not branch.held_back or not weights[name]:
            continue
        if rnnt_steps < warmup_steps:
            weights[name] = 0.0
            rates.pop(branch.component, None)
        elif ramp_steps:
            weights[name] *= min(1.0, (rnnt_steps - warmup_steps + 1) / ramp_steps)
    return Activity({n: w for n, w in weights.items() if w}, {n: rate for n, rate in rates.items() if rate})


@dataclass(frozen=True)
class Curriculum:
    """The stages of a run and the gradual switching-on of the transducer."""

    stages: tuple[Stage, ...]
    rnnt_warmup_steps: int = 100
    rnnt_ramp_steps: int = 100
    distillation: float = 0.0
    """Share of CTC's weight that the teachers have; 0 without any."""

    @property
    def total_steps(self) -> int:
        """Steps of a run in which no stage ends early."""
        return sum(stage.steps for stage in self.stages)

    @property
    def transducer_steps(self) -> int:
        """Steps of stages that give the transducer a weight, those in which it is held back included."""
        return sum(stage.steps for stage in self.stages if stage.config.waits)

    def stage(self, position: StagePosition) -> Stage:
        """The stage that a run is in."""
        return self.stages[position.index]

    def finished(self, position: StagePosition) -> bool:
        """True once the last stage has ended."""
        return position.index == len(self.stages)

    def holds_back(self, position: StagePosition) -> bool:
        """True while the stage's transducer is still switched off."""
        return self.stage(position).config.waits and position.rnnt_steps < self.rnnt_warmup_steps

    def activity(self, position: StagePosition) -> Activity:
        """What the next step does."""
        return self._activity(self.stage(position), position.rnnt_steps)

    def weights(self, stage: Stage) -> dict[str, float]:
        """Weight of each loss that the stage computes once nothing is held back any more."""
        return self._activity(stage, self.rnnt_warmup_steps + self.rnnt_ramp_steps).weights

    def _activity(self, stage: Stage, rnnt_steps: int) -> Activity:
        return activity(stage.config, rnnt_steps, self.rnnt_warmup_steps, self.rnnt_ramp_steps, self.distillation)
