"""What preflight looks at: the run's own objects as the first step will find them, left as they were.

Everything is made by the code that trains (`RunLoop`, `StepComputer`, its `build_optimizer`), so that what is
examined is what will run. Two liberties: the model is not compiled, and no other process reads data ahead.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart, collate
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared
from sottovoce.training.stages import Activity, StagePosition
from sottovoce.training.step import Progress, StepComputer

NUM_TRIALS: Final = 2
"""Trials of the batch that is run; two of unequal length show what padding does."""
EXCERPT_FRAMES: Final = 9
"""Encoder frames of the longest excerpt: a recurrence of 44 million parameters takes 10 ms a frame on two cores."""
EXCERPT_LABELS: Final = 4


@dataclass(frozen=True)
class StepKind:
    """A kind of step that the curriculum will come to."""

    position: StagePosition
    trained: tuple[str, ...]
    """Components that have learnt in some earlier kind of step."""
    stage: str
    activity: Activity

    def __str__(self) -> str:
        return f"stage {self.stage} ({' + '.join(self.activity.weights)})"


@dataclass(frozen=True)
class UntrainedRun:
    """A run before its first step."""

    prepared: Prepared
    loop: RunLoop
    optimizer: torch.optim.Optimizer
    indices: tuple[int, ...]
    """The trials of `whole` and `batch` in the trial set: the shortest of training with labels, of unequal length."""
    whole: Batch
    """Their signals as read, before augmentation."""
    batch: Batch
    """Excerpts of them, of unequal length: the first bins and the first few labels, enough to run every loss on. Take a
    copy with `part`: the pipeline overwrites signals."""
    step_kinds: tuple[StepKind, ...]
    """Each stage of the curriculum, one that holds the transducer back twice: without it and with it."""

    @classmethod
    def of(cls, prepared: Prepared, num_trials: int = NUM_TRIALS) -> UntrainedRun:
        """What a prepared run is before its first step; `num_trials` make its batch, fewer where there are not as many.

        Leaves the random state as it was; everything else is only read.
        """
        config = prepared.config
        training, data = replace(config.training, compile=False), replace(config.data, num_workers=0)
        prepared = replace(prepared, config=replace(config, training=training, data=data))
        with _random_state():
            loop = RunLoop(prepared, Path())
            optimizer = loop.computer.build_optimizer()
            indices = shortest_trials(prepared, num_trials)
            whole = collate(prepared.trial_set, indices)
        return cls(prepared, loop, optimizer, indices, whole, excerpts(prepared, whole), _moments(loop.computer))

    @property
    def computer(self) -> StepComputer:
        """What makes the steps (`enter`, then `computer.add(untrained.part())`)."""
        return self.loop.computer

    def part(self, batch: Batch | None = None, step: int = 0) -> StepPart:
        """A copy of `batch` (absent: its own) as one part of an optimiser step."""
        copied = (batch or self.batch).map_tensors(torch.Tensor.clone)
        return StepPart(step, 0, tuple(range(len(copied))), copied)

    def enter(self, step_kind: StepKind | None = None) -> None:
        """Begin a step of `step_kind` (absent: the last one), without any gradients."""
        step_kind, computer = step_kind or self.step_kinds[-1], self.computer
        computer.progress = Progress(position=step_kind.position, trained=list(step_kind.trained))
        computer.balance.norms, computer.balance.squares = {}, {}
        computer.record = None
        computer.model.train()
        self.clear_gradients()
        computer.begin()

    def clear_gradients(self) -> None:
        """No parameter of the model has a gradient, owned or not."""
        for parameter in self.computer.model.parameters():
            parameter.grad = None

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever happens inside, bit for bit the same afterwards: weights, gradients, buffers, `requires_grad`,
        training flags, the optimiser's groups, the run's progress, PyTorch's random state.

        Costs a copy of the weights. The optimiser must not be stepped inside.
        """
        model, computer = self.computer.model, self.computer
        tensors = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
        parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        modes = [(m, m.training) for m in model.modules()]
        rates = [(group, {k: v for k, v in group.items() if k != "params"}) for group in self.optimizer.param_groups]
        kept = (
            computer.progress,
            computer.record,
            computer.balance.norms,
            computer.balance.squares,
            model.use_flow_bridge,
        )
        self.clear_gradients()
        with _random_state():
            try:
                yield
            finally:
                with torch.no_grad():
                    for tensor, before in tensors:
                        tensor.copy_(before)
                for parameter, gradient, learns in parameters:
                    parameter.requires_grad_(learns)
                    parameter.grad = gradient
                for part, training in modes:
                    part.training = training
                for group, values in rates:
                    group.update(values)
                computer.progress, computer.record, norms, squares, model.use_flow_bridge = kept
                computer.balance.norms, computer.balance.squares = norms, squares


def shortest_trials(prepared: Prepared, count: int) -> tuple[int, ...]:
    """Places of the `count` shortest training trials that have labels; their lengths differ where the data allow."""
    trials = prepared.trial_set.trials
    ordered = sorted(prepared.train_indices, key=lambda i: (not trials[i].labels, trials[i].num_steps, i))
    lengths: set[int] = set()
    first: list[int] = []
    rest: list[int] = []
    for i in ordered:
        (rest if trials[i].num_steps in lengths else first).append(i)
        lengths.add(trials[i].num_steps)
    return tuple((first + rest)[:count])


def excerpts(prepared: Prepared, whole: Batch) -> Batch:
    """The first bins (or samples) of each trial, a few frames less of each further one, and as many labels as fit."""
    lengths, label_lengths = [], []
    for row, (length, num_labels) in enumerate(
        zip(whole.lengths_B.tolist(), whole.label_lengths_B.tolist(), strict=True)
    ):
        frames = max(EXCERPT_FRAMES - 2 * row, 2)
        cut = bisect.bisect_left(range(length), frames, key=lambda n: shortest_frames(prepared, n))
        labels = whole.labels_BU[row, :num_labels].tolist()
        fitting = [u for u in range(EXCERPT_LABELS + 1) if 2 * ctc_frames_needed(labels[:u]) <= frames]
        lengths.append(cut)
        label_lengths.append(min(num_labels, fitting[-1]))
    return replace(
        whole,
        signal=_cut(whole.signal, lengths),
        lengths_B=torch.tensor(lengths),
        labels_BU=_cut(whole.labels_BU, label_lengths),
        label_lengths_B=torch.tensor(label_lengths),
    )


def shortest_frames(prepared: Prepared, num_steps: int, training: bool = True) -> int:
    """The fewest frames that a trial of `num_steps` bins or samples can come out with."""
    return prepared.model.output_lengths(prepared.pipeline.shortest_length(num_steps, training))


def _cut(values_BT: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Rows cut to their lengths, zeros behind."""
    cut = torch.zeros_like(values_BT[:, : max(lengths)])
    for row, values, length in zip(cut, values_BT, lengths, strict=True):
        row[:length] = values[:length]
    return cut


def _moments(computer: StepComputer) -> tuple[StepKind, ...]:
    curriculum, found = computer.curriculum, []
    trained: set[str] = set()
    on = curriculum.rnnt_warmup_steps + curriculum.rnnt_ramp_steps
    rnnt_steps, first_step = 0, 0
    for index, stage in enumerate(curriculum.stages):
        waits = stage.config.waits
        for steps in (0, on) if waits and not rnnt_steps and curriculum.rnnt_warmup_steps else (on,):
            position = StagePosition(index, first_step, steps if waits else rnnt_steps)
            activity = curriculum.activity(position)
            found.append(StepKind(position, tuple(sorted(trained)), stage.name, activity))
            trained |= activity.rates.keys()
        rnnt_steps = on if waits else rnnt_steps
        first_step += stage.steps
    return tuple(found)


@contextlib.contextmanager
def _random_state() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        yield
