"""What teachers cost: a step's forward and backward pass with none, one, two and four of them, of the student's size.

The contestants take turns in one process. "Ours" is the step without teachers here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from sottovoce.bench.rows import Row
from sottovoce.bench.train_step import SHAPES, WARM_UP_STEPS, Shape, model_of, prepared_run
from sottovoce.core.configuration import plain
from sottovoce.core.symbols import PHONEMES
from sottovoce.data.collation import StepPart, collate
from sottovoce.runs.trained_decoder import TrainedDecoder
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared
from sottovoce.training.step import StepComputer
from sottovoce.training.teachers import Teacher, Teachers

NUM_TEACHERS: Final = (0, 1, 2, 4)


def bench_distillation(rounds: int = 20) -> list[Row]:
    """One row a number of teachers and shape; every round takes one step of each."""
    return [row for shape in SHAPES for row in _compare(shape, rounds)]


def _compare(shape: Shape, rounds: int) -> list[Row]:
    prepared = prepared_run(shape, rounds)
    computers = {count: _computer(prepared, count) for count in NUM_TEACHERS}
    times: dict[int, list[float]] = {count: [] for count in NUM_TEACHERS}
    batch = collate(prepared.trial_set, range(shape.batch))
    for step in range(WARM_UP_STEPS + rounds):
        for count, computer in computers.items():
            part = StepPart(step, 0, tuple(range(len(batch))), batch)
            start = time.perf_counter()
            computer.begin()
            computer.add(part).loss.backward()  # type: ignore[no-untyped-call]
            times[count].append(time.perf_counter() - start)
            computer.model.zero_grad()
    kept = {count: seconds[WARM_UP_STEPS:] for count, seconds in times.items()}
    return [
        Row(
            "labels alone" if not count else f"labels and {count} teacher{'s' * (count > 1)}",
            str(shape),
            seconds,
            kept[0],
        )
        for count, seconds in kept.items()
    ]


def _computer(prepared: Prepared, count: int) -> StepComputer:
    """What trains a student with `count` teachers; a model of its own."""
    config, trial_set = prepared.config, prepared.trial_set
    teachers = [_teacher(prepared, k) for k in range(count)]
    asked = replace(config.training.distillation, teachers=tuple(teacher.name for teacher in teachers))
    student = replace(
        prepared,
        model=model_of(config, len(trial_set.sessions)),
        config=replace(config, training=replace(config.training, distillation=asked)),
        curriculum=replace(prepared.curriculum, distillation=asked.share),
        teachers=Teachers(teachers, asked, trial_set, PHONEMES.blank) if count else None,
    )
    computer = RunLoop(student, Path()).computer
    computer.model.train()
    return computer


def _teacher(prepared: Prepared, number: int) -> Teacher:
    """A run that was never trained: what it says does not matter here."""
    config, sessions = prepared.config, prepared.trial_set.sessions
    run = TrainedDecoder(
        run_dir=Path(f"teacher {number}"),
        config=plain(config),
        checkpoint_step=0,
        preprocessor=config.preprocessor,
        decoding=config.decoding,
        model=model_of(config, len(sessions)).eval().requires_grad_(False),
        vocabulary=None,
        sessions=sessions,
        left_out={},
        trained=(),
        validation={},
    )
    return Teacher(run, trained_on=None, digest="")
