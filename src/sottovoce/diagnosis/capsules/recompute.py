"""A step computed again from its capsule, whole or in part: other terms, other trials, other weights, other dtypes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.core.random import seed_for
from sottovoce.core.trial import Batch, Trial
from sottovoce.data.collation import StepPart
from sottovoce.data.speaking_modes import BlockModes
from sottovoce.diagnosis.capsules.capsule import Capsule, Losses, ModeLabels, ProcessPart
from sottovoce.features.augmentation import Draws
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, build_model
from sottovoce.training.balance import GradientBalance
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.processes import OneProcess
from sottovoce.training.step import ComputedPart, StepComputer
from sottovoce.training.teachers import DistillationConfig, Teachers, TeacherTargets
from sottovoce.training.verdict import GradientSummary

LARGEST_NORM: Final = math.sqrt(torch.finfo(torch.float32).max)
"""The square of a larger norm is infinite in float32."""
Item = tuple[int, int, int]
"""A trial of the step: process, part, row."""


@dataclass(frozen=True)
class Outcome:
    """What a step, or a part of it, gave."""

    losses: Losses
    gradients: dict[str, GradientSummary]
    parts: tuple[ComputedPart, ...] = field(repr=False, default=())
    """Features and outputs of each forward pass."""

    @property
    def bad_losses(self) -> list[tuple[str, str]]:
        """(Loss, trial id) of those that are not finite."""
        return [key for key, nats in self.losses.items() if not math.isfinite(nats)]

    @property
    def bad_gradients(self) -> list[str]:
        """Parameters with a gradient that is not finite somewhere."""
        return [name for name, summary in self.gradients.items() if summary.nonfinite]

    @property
    def norm(self) -> float:
        """L2 norm of the finite part of all gradients."""
        return math.sqrt(sum(summary.norm**2 for summary in self.gradients.values()))

    @property
    def norm_overflows(self) -> bool:
        """All gradients may be finite, but their squares, which the guard sums in float32, are not."""
        return self.norm > LARGEST_NORM

    @property
    def is_bad(self) -> bool:
        """Something is not finite."""
        return bool(self.bad_losses or self.bad_gradients) or self.norm_overflows


def kept_modes(labels: ModeLabels) -> ModeTargets:
    """The labels that a capsule holds for its own trials, each as a block of its own."""
    trials = [Trial(name, "train", name, 0, None, None, Path(), block=0) for name in labels]
    known = {(name, 0): vocalised for name, (vocalised, is_known) in labels.items() if is_known}
    return ModeTargets(trials, BlockModes(known, "file"), None)


class _KeptTeachers(Teachers):
    """What the capsule holds of the teachers of its own trials, who need not be there any more."""

    def __init__(self, process: ProcessPart, config: DistillationConfig) -> None:
        self.config = config
        self._targets = [
            (dict(zip(part.positions, range(len(part.batch)), strict=True)), targets)
            for part, targets in zip(process.parts, process.teacher_targets, strict=True)
        ]

    def targets(self, batch: Batch, positions: Sequence[int]) -> TeacherTargets:
        """What they said of the trials at `positions` of the step, all of one part."""
        rows, whole = next(entry for entry in self._targets if entry[0].keys() >= set(positions))
        index = torch.tensor([rows[position] for position in positions])
        device = batch.signal.device
        return TeacherTargets(whole.log_q_BSV[index].to(device), whole.weights_BS[index].to(device))


class _CastPipeline(FeaturePipeline):
    """The same features in another dtype."""

    def __init__(self, like: FeaturePipeline, dtype: torch.dtype) -> None:
        super().__init__(like.preprocessor, like.augmentation)
        self.dtype = dtype

    def train(self, batch: Batch, draws: Draws) -> Batch:
        """The batch with augmentation, features [B, T, C]."""
        features = super().train(batch, draws)
        return replace(features, signal=features.signal.to(self.dtype))

    def evaluate(self, batch: Batch) -> Batch:
        """The batch as the model sees it outside training, features [B, T, C]."""
        features = super().evaluate(batch)
        return replace(features, signal=features.signal.to(self.dtype))


def step_again(capsule: Capsule, process: ProcessPart, model: DecoderModel, dtype: torch.dtype) -> StepComputer:
    """What makes the step of one process once more, without a trainer and without the others."""
    config = capsule.config
    pipeline = FeaturePipeline(config.preprocessor, config.augmentation)
    distillation = config.training.distillation
    return StepComputer(
        replace(config, training=replace(config.training, compile=False)),
        model,
        pipeline if dtype == torch.float32 else _CastPipeline(pipeline, dtype),
        capsule.blank,
        capsule.curriculum,
        kept_modes(process.modes) if process.modes else None,
        _KeptTeachers(process, distillation) if process.teacher_targets else None,
        OneProcess(process.rank, len(capsule.processes)),
        progress=replace(capsule.progress),
        balance=GradientBalance(norms=dict(capsule.balance)),
    )


def device_of(capsule: Capsule) -> torch.device:
    """Where the capsule is computed again: where it was, if this machine can."""
    return torch.device("cuda" if capsule.device == "cuda" and torch.cuda.is_available() else "cpu")


def kept_model(capsule: Capsule) -> DecoderModel:
    """The model with the weights before the step.

    Raises:
        CheckpointError: the configuration does not give a model that these weights fit.
    """
    model = fresh_model(capsule)
    try:
        model.load_state_dict(capsule.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[:2][-1].strip()  # the first tensor; of another model there may be hundreds
        raise CheckpointError(f"{capsule.folder}: its weights do not fit its configuration ({reason})") from error
    return model


def fresh_model(capsule: Capsule) -> DecoderModel:
    """The model with the weights that the run began with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(capsule.config.seed, "init"))
        model = build_model(capsule.config.model)
    model.use_flow_bridge = capsule.use_flow_bridge
    return model


def every_item(capsule: Capsule) -> list[Item]:
    """All trials of the step."""
    return [
        (process.rank, i, row)
        for process in capsule.processes
        for i, part in enumerate(process.parts)
        for row in range(len(part.batch))
    ]


def trial_of(capsule: Capsule, item: Item) -> str:
    """The id of a trial of the step."""
    rank, part, row = item
    return capsule.processes[rank].parts[part].batch.trial_ids[row]


def recompute(
    capsule: Capsule,
    model: DecoderModel,
    *,
    dtype: torch.dtype = torch.float32,
    bfloat16: bool | None = None,
    terms: Collection[str] | None = None,
    items: Collection[Item] | None = None,
    watching: contextlib.AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Forward and backward of the step.

    Args:
        dtype: of weights and features.
        bfloat16: autocast, as the run did; absent: as the run did.
        terms: the losses to compute; absent: all.
        items: the trials to compute, in batches padded as the original; absent: all. With some only, dropout and
            batch statistics differ from the original.
        watching: entered around each forward and backward pass.
    """
    device = device_of(capsule)
    model = model.to(device, dtype).train()
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    autocast = (capsule.bfloat16 if bfloat16 is None else bfloat16) and dtype == torch.float32
    losses: Losses = {}
    computed: list[ComputedPart] = []
    with _random_state(capsule):
        for process in capsule.processes:
            computer = step_again(capsule, process, model, dtype)
            record = computer.begin()
            if terms is not None:
                weights = {name: weight for name, weight in record.activity.weights.items() if name in terms}
                record.activity = replace(record.activity, weights=weights)
            for i, whole in enumerate(process.parts):
                part = whole if items is None else _rows(whole, [r for p, j, r in items if (p, j) == (process.rank, i)])
                if not len(part.batch):
                    continue
                with watching or contextlib.nullcontext():
                    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                        computed.append(computer.add(replace(part, batch=part.batch.to(device))))
                    if computed[-1].loss.requires_grad:
                        computed[-1].loss.backward()  # type: ignore[no-untyped-call]
            losses |= record.losses
    gradients = {n: GradientSummary.of(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    return Outcome(losses, gradients, tuple(computed))


def _rows(part: StepPart, rows: Sequence[int]) -> StepPart:
    """Those trials of a part, padded as they were."""
    index = torch.tensor(rows, dtype=torch.int64)
    batch = part.batch.map_tensors(lambda x: x[index])
    batch = replace(batch, trial_ids=tuple(part.batch.trial_ids[row] for row in rows))
    return replace(part, positions=tuple(part.positions[row] for row in rows), batch=batch)


@contextlib.contextmanager
def _random_state(capsule: Capsule) -> Iterator[None]:
    """The capsule's random state and number of threads; the caller's afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.set_rng_state(capsule.random["cpu"])
        torch.set_num_threads(int(capsule.environment["num_threads"]))
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def same_losses(a: Mapping[Any, float], b: Mapping[Any, float]) -> bool:
    """The same numbers, bit for bit; NaN equals NaN."""
    return a.keys() == b.keys() and all(x == b[k] or (math.isnan(x) and math.isnan(b[k])) for k, x in a.items())
