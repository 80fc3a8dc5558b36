"""A capsule read back: everything in it is checked first (`contents.py`), so that a replay never meets damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from sottovoce.core.checkpoints import has_checkpoint, read_state, read_tensors
from sottovoce.core.configuration import build
from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.diagnosis.capsules import contents
from sottovoce.diagnosis.capsules.capsule import (
    BATCH_TENSORS,
    BEFORE,
    FORMAT,
    TEACHER_TENSORS,
    Capsule,
    ProcessPart,
    is_capsule,
)
from sottovoce.training.balance import BALANCED
from sottovoce.training.branches import BRANCHES, SPEAKING_MODE
from sottovoce.training.config import RunConfig
from sottovoce.training.stages import Curriculum, Stage, StageConfig
from sottovoce.training.state import progress_from
from sottovoce.training.step import Progress
from sottovoce.training.teachers import TeacherTargets
from sottovoce.training.verdict import Action, Cause, GradientSummary, Verdict


def read_capsule(folder: Path) -> Capsule:
    """The capsule in `folder`.

    Raises:
        CheckpointError: it is no capsule, incomplete, damaged, or of another version.
    """
    step, state = _state_before(folder)
    with _damage_in_one_line(folder):
        environment = contents.environment(state)
        config = _config(folder, state, environment)
        run_state, training = contents.held(state, "state", dict), config.training
        held, ramp = training.rnnt_warmup_batches, training.rnnt_ramp_steps
        curriculum = Curriculum(_stages(state), held, ramp, training.distillation.share)
        progress = _progress(state, run_state)
        contents.check_curriculum(curriculum, progress.position.index, config)
        blank = contents.whole(state, "blank", 0, (config.model.num_symbols or 1) - 1)
        balance = contents.numbers(run_state, "balance")
        contents.check_names(balance, BALANCED, "balance")
        random = read_tensors(folder / BEFORE, "random")
        contents.check_random(random)
        return Capsule(
            folder=folder,
            step=step,
            verdict=_verdict(contents.held(state, "verdict", dict)),
            config=config,
            curriculum=curriculum,
            progress=progress,
            blank=blank,
            bfloat16=contents.held(state, "bfloat16", bool),
            device=contents.chosen(state, "device", ("cpu", "cuda")),
            environment=environment,
            balance=balance,
            use_flow_bridge=contents.held(run_state, "use_flow_bridge", bool),
            owned=contents.texts(state, "owned"),
            trainable=contents.texts(state, "trainable"),
            metrics=contents.texts(state, "metrics"),
            model=read_tensors(folder / BEFORE, "model"),
            optimizer=read_tensors(folder / BEFORE, "optimizer"),
            random=random,
            processes=_read_processes(folder, step, state, config, curriculum, blank),
        )


def read_processes(folder: Path) -> tuple[ProcessPart, ...]:
    """The batches of the capsule in `folder` and their losses alone, without weights.

    Raises:
        CheckpointError: as `read_capsule`.
    """
    step, state = _state_before(folder)
    with _damage_in_one_line(folder):
        config = _config(folder, state, contents.environment(state))
        curriculum = Curriculum(_stages(state))
        blank = contents.whole(state, "blank", 0, (config.model.num_symbols or 1) - 1)
        return _read_processes(folder, step, state, config, curriculum, blank)


@contextmanager
def _damage_in_one_line(folder: Path) -> Iterator[None]:
    """What is missing or wrong in a capsule's contents, as the error that the user sees."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{folder} does not hold what a capsule must: {reason}; it is damaged, use another capsule"
        ) from error


def _state_before(folder: Path) -> tuple[int, dict[str, Any]]:
    if not is_capsule(folder):
        raise CheckpointError(f"{folder} is not a capsule: it holds neither {BEFORE} nor process-0")
    if not has_checkpoint(folder / BEFORE):
        raise CheckpointError(f"{folder} is incomplete: the run ended while it was written; use another capsule")
    step, state = read_state(folder / BEFORE)
    if state.get("capsule") != FORMAT:
        raise CheckpointError(
            f"{folder} has capsule format {state.get('capsule')}, this version reads {FORMAT}; update sottovoce"
        )
    return step, state


def _config(folder: Path, state: Mapping[str, Any], environment: Mapping[str, Any]) -> RunConfig:
    try:
        config = build(RunConfig, contents.held(state, "config", dict))
    except ConfigurationError as error:
        raise CheckpointError(
            f"{folder}: its configuration is not one of this version ({error}); replay it with sottovoce "
            f"{environment.get('sottovoce')}"
        ) from error
    if config.model.num_channels != config.preprocessor.num_channels:
        raise ValueError(
            f"model.num_channels is {config.model.num_channels}, preprocessor.num_channels "
            f"{config.preprocessor.num_channels}"
        )
    return config


def _stages(state: Mapping[str, Any]) -> tuple[Stage, ...]:
    stages = []
    for entry in contents.held(state, "stages", list):
        try:
            config = build(StageConfig, contents.held(entry, "config", dict), "training.stages")
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        stages.append(Stage(config, contents.whole(entry, "steps", 1)))
    return tuple(stages)


def _progress(state: Mapping[str, Any], run_state: Mapping[str, Any]) -> Progress:
    kept = contents.held(run_state, "progress", dict)
    position = contents.held(kept, "position", dict)
    for section, keys in ((kept, ("updates",)), (position, ("index", "first_step", "rnnt_steps", "waited"))):
        for key in keys:
            contents.whole(section, key)
    trained = list(contents.texts(kept, "trained"))
    return progress_from(kept | {"step": contents.whole(state, "step_before"), "trained": trained})


def _verdict(state: dict[str, Any]) -> Verdict:
    summaries = contents.held(state, "gradients", dict)
    known = tuple(asdict(GradientSummary(0, 0, 0)))
    gradients = {}
    for name in summaries:
        summary = contents.numbers(summaries, name)
        contents.check_names(summary, known, name)
        gradients[name] = GradientSummary(**summary)
    return Verdict(
        gradient_norm=contents.number(state["gradient_norm"], "gradient_norm"),
        action=contents.chosen(state, "action", get_args(Action)),
        cause=contents.chosen(state, "cause", get_args(Cause)),
        evidence=contents.held(state, "evidence", str),
        group_norms=contents.numbers(state, "group_norms"),
        limit=contents.number(state["limit"], "limit"),
        gradients=gradients,
    )


def _read_processes(
    folder: Path, step: int, state: Mapping[str, Any], config: RunConfig, curriculum: Curriculum, blank: int
) -> tuple[ProcessPart, ...]:
    count = contents.whole(state, "num_processes", 1, contents.MOST_PROCESSES)
    processes = tuple(_read_process(folder / f"process-{rank}", rank, step, config, blank) for rank in range(count))
    if any(stage.config.weight_of(SPEAKING_MODE.name) for stage in curriculum.stages) and not all(
        p.modes for p in processes
    ):
        raise ValueError("modes is empty, but a stage learns the speaking mode")
    return processes


def _read_process(folder: Path, rank: int, step: int, config: RunConfig, blank: int) -> ProcessPart:
    if not has_checkpoint(folder):
        raise CheckpointError(f"{folder.parent} is incomplete: {folder.name} is missing; copy the whole folder")
    its_step, state = read_state(folder)
    if its_step != step:
        raise CheckpointError(f"{folder.parent} mixes the steps {its_step} and {step}; it is damaged")
    tensors = read_tensors(folder, "batch")
    parts = []
    for i, part in enumerate(contents.held(state, "parts", list)):
        batch = Batch(
            **{name: tensors[f"{i}.{name}"] for name in BATCH_TENSORS}, trial_ids=contents.texts(part, "trial_ids")
        )
        positions = [contents.whole({"positions": p}, "positions") for p in contents.held(part, "positions", list)]
        contents.check_batch(batch, positions, config, blank)
        numbered = (contents.whole(part, "step"), contents.whole(part, "micro_batch"))
        parts.append(StepPart(*numbered, tuple(positions), batch))
    targets = []
    if config.training.distillation.share:
        for i, part in enumerate(parts):
            targets.append(TeacherTargets(**{name: tensors[f"{i}.{name}"] for name in TEACHER_TENSORS}))
            contents.check_teacher_targets(targets[-1], len(part.batch), config)
    trials = list(dict.fromkeys(trial for part in parts for trial in part.batch.trial_ids))
    losses = {}
    for loss, trial, nats in contents.held(state, "losses", list):
        contents.check_names([loss], tuple(BRANCHES), "losses")
        contents.check_names([trial], trials, "losses")
        losses[loss, trial] = contents.number(nats, "losses")
    modes = {}
    for trial, (vocalised, known) in contents.held(state, "modes", dict).items():
        modes[trial] = (contents.number(vocalised, "modes"), contents.held({"modes": known}, "modes", bool))
    if modes and (missing := [trial for trial in trials if trial not in modes]):
        raise ValueError(f"modes has none of {missing[0]}")
    return ProcessPart(rank, tuple(parts), losses, modes, tuple(targets))
