"""A run from start to end: its directory, its trainer, its continuation.

configuration → `preparation.py` → Lightning Trainer (`module.py`) ─ after every step → `loop.py`
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from sottovoce.core.checkpoints import has_checkpoint, read_tensors
from sottovoce.core.configuration import build, plain
from sottovoce.core.errors import ConfigurationError, SottovoceError, TrainingAborted
from sottovoce.data.collation import StepParts, step_loader
from sottovoce.data.sampling import BatchPlan
from sottovoce.runs.directory import (
    read_config,
    write_config,
    write_environment,
    write_sessions,
)
from sottovoce.runs.left_out import read_left_out, write_left_out
from sottovoce.runs.lock import Holder, locked
from sottovoce.runs.taught_by import write_taught_by
from sottovoce.runs.trained_on import TrainedOn, write_trained_on
from sottovoce.runs.vocabulary import read_vocabulary, write_vocabulary
from sottovoce.training.composition import changed_for_resume
from sottovoce.training.config import RunConfig
from sottovoce.training.environment import describe_environment
from sottovoce.training.loop import RunLoop, last_checkpoint
from sottovoce.training.module import DecoderTraining
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.teachers import refuse_changed_teachers
from sottovoce.training.watch import NoWatch, Watch


def new_run_dir(config: RunConfig) -> Path:
    """Create the run's folder: `runs_dir/run_name`, or the recipe's name and the next free number.

    Raises:
        ConfigurationError: the named run exists already, or the folder cannot be made.
    """
    parent = Path(config.runs_dir)
    run_dir = parent / (config.run_name or "")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if config.run_name is not None:
            run_dir.mkdir()
            return run_dir
        for number in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                run_dir = parent / f"{config.recipe}-{number:03d}"
                run_dir.mkdir()
                break
        return run_dir
    except FileExistsError:
        raise ConfigurationError(
            f"{run_dir} exists already; continue it with resume={run_dir} or choose another run_name"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{parent} cannot hold a run ({error.strerror}); choose another runs_dir") from error


def start(prepared: Prepared, watch: Watch | None = None, quiet: bool = False) -> Path:
    """Train from the first step on; returns the run's directory. `watch` looks on (`diagnosis.RunWatch`)."""
    trainer = build_trainer(prepared.config)
    run_dir = Path()
    if is_main_process():
        run_dir = new_run_dir(prepared.config)
    with _locked_by_main_process(run_dir):
        if is_main_process():
            write_run_files(run_dir, prepared)
        loop = RunLoop(prepared, run_dir, watch, quiet=quiet)
        try:
            fit(prepared, loop, trainer)
        except TrainingAborted:
            raise
        except SottovoceError:
            if is_main_process() and loop.computer.progress.step == 0 and not has_checkpoint(loop.last_checkpoint):
                shutil.rmtree(run_dir)  # it holds nothing, and is not what the corrected command will continue
            raise
    return run_dir


def _locked_by_main_process(run_dir: Path) -> AbstractContextManager[Holder | None]:
    """The lock of a run; its other processes, which are there only because the main one is, pass."""
    return locked(run_dir) if is_main_process() else nullcontext()


def write_run_files(run_dir: Path, prepared: Prepared) -> None:
    """What a new run's directory holds before its first step."""
    write_vocabulary(run_dir, prepared.vocabulary)
    write_sessions(run_dir, prepared.trial_set.sessions)
    write_left_out(run_dir, prepared.left_out)
    trained_on = TrainedOn.of(prepared.trial_set.trials[i] for i in prepared.train_indices)
    if prepared.teachers is None:
        write_trained_on(run_dir, trained_on)
    elif (of_teachers := prepared.teachers.trained_on) is not None:
        write_trained_on(run_dir, trained_on | of_teachers)
    write_taught_by(run_dir, prepared.teachers.taught_by if prepared.teachers is not None else ())
    write_environment(run_dir, describe_environment(prepared.config.seed))
    write_config(run_dir, plain(prepared.config))


def resume(
    run_dir: Path,
    overrides: Sequence[str] = (),
    watch: Callable[[Prepared], Watch] = lambda prepared: NoWatch(),
    quiet: bool = False,
) -> Path:
    """Continue a run from its last checkpoint, or from its first step if it was killed before there was one.

    `watch` makes what looks on (`diagnosis.RunWatch`). It is given the run as it began, with fresh weights: what can be
    wrong with those of the checkpoint has been looked at by then. `quiet` shows nothing.

    Raises:
        CheckpointError: `run_dir` is not a run directory, its checkpoint is damaged, or another process trains it.
        ConfigurationError: an override that would make it another run, or a teacher has changed.
        TrainingAborted: the checkpoint's weights or moments are not finite. Nothing has been changed.
    """
    config = changed_for_resume(read_run_config(run_dir), overrides)
    with _locked_by_main_process(run_dir) as ended:
        _continue(run_dir, config, watch, ended, quiet)
    return run_dir


def _continue(
    run_dir: Path, config: RunConfig, watch: Callable[[Prepared], Watch], ended: Holder | None, quiet: bool
) -> None:
    """Train on; `ended` is the process that has left the run locked."""
    prepared = prepare(config, known=read_left_out(run_dir))
    refuse_changed_teachers(run_dir, prepared.teachers)
    _refuse_changed_dictionary(run_dir, prepared)
    trainer = build_trainer(prepared.config)
    last = last_checkpoint(run_dir)
    if has_checkpoint(last):
        _refuse_lost(run_dir)
    loop = RunLoop(prepared, run_dir, watch(prepared), ended, quiet)
    if has_checkpoint(last):
        loop.restore()
    if is_main_process():
        write_config(run_dir, plain(prepared.config))
    fit(prepared, loop, trainer)


def _refuse_changed_dictionary(run_dir: Path, prepared: Prepared) -> None:
    """Raise where a run that continues would get other targets or words than before."""
    if prepared.config.data.lexicon is None:
        return
    began_with, now = read_vocabulary(run_dir), prepared.vocabulary
    if began_with is not None and now is not None and began_with.lexicon != now.lexicon:
        raise ConfigurationError(
            f"data.lexicon={prepared.config.data.lexicon} holds other words or pronunciations than the dictionary "
            f"that {run_dir} began with ({began_with.source}); name that one, or start a new run"
        )


def _refuse_lost(run_dir: Path) -> None:
    """Raise where weights, buffers or moments of the last checkpoint are not finite."""
    last = last_checkpoint(run_dir)
    tensors = read_tensors(last, "model") | read_tensors(last, "optimizer")
    lost = {name: int((~t.isfinite()).sum()) for name, t in tensors.items() if not bool(t.isfinite().all())}
    if not lost:
        return
    named = ", ".join(f"{name} ({count} of {tensors[name].numel()} numbers)" for name, count in list(lost.items())[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    best = last.with_name("best")
    other = f"; sottovoce evaluate {run_dir} uses {best}" if has_checkpoint(best) else ""
    raise TrainingAborted(
        f"not finite in {last}: {named}{more}; nothing was changed. The guard saves no such weights: "
        f"the file was altered or damaged. Put an older copy of {last} in its place, or remove it to begin at step 0"
        f"{other}",
        code="poisoned_weights",
    )


def is_main_process() -> bool:
    """True in the one process that writes files."""
    return int(rank_zero_only.rank or 0) == 0  # type: ignore[attr-defined]


def read_run_config(run_dir: Path) -> RunConfig:
    """The configuration a run was started with.

    Raises:
        CheckpointError: `run_dir` is not a run directory.
    """
    return build(RunConfig, read_config(run_dir))


def fit(prepared: Prepared, loop: RunLoop, trainer: lightning.Trainer) -> None:
    """Train from where `loop` stands to the last step.

    Raises:
        TrainingAborted: the guard gave up, or somebody asked the run to stop; the last checkpoint is good.
    """
    progress = loop.computer.progress
    if prepared.curriculum.finished(progress.position):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # asked for with data.num_workers
        with loop:
            try:
                parts = step_parts(prepared, progress.step, trainer.global_rank, trainer.world_size)
                loader = step_loader(parts, prepared.config.data.num_workers, pin_memory=torch.cuda.is_available())
                trainer.fit(DecoderTraining(loop.computer, loop), train_dataloaders=loader)
            except TrainingAborted as error:
                loop.aborted(error)
                error.run_dir = loop.run_dir
                raise
    if loop.signals.received:
        where = f"stopped at step {progress.step}"
        raise TrainingAborted(f"{where}; continue with: sottovoce train resume={loop.run_dir}")


def batch_plan(prepared: Prepared, world_size: int = 1) -> BatchPlan:
    """Which trials make up which step, over `world_size` processes."""
    config, trials = prepared.config, prepared.trial_set.trials
    place = {session: i for i, session in enumerate(prepared.trial_set.sessions)}
    training = config.training
    return BatchPlan(
        lengths=np.array([trials[i].num_steps for i in prepared.train_indices]),
        sessions=np.array([place[trials[i].session] for i in prepared.train_indices]),
        trials=np.array(prepared.train_indices),
        batch_size=training.batch_size * training.gradient_accumulation_steps * world_size,
        sessions_per_batch=config.data.sessions_per_batch,
        bucketing=config.data.use_length_bucketing,
        seed=config.seed,
    )


def step_parts(prepared: Prepared, first_step: int, rank: int = 0, world_size: int = 1) -> StepParts:
    """What one of `world_size` processes reads from `first_step` on."""
    return StepParts(
        prepared.trial_set,
        batch_plan(prepared, world_size),
        first_step,
        prepared.curriculum.total_steps,
        prepared.config.training.gradient_accumulation_steps,
        rank,
        world_size,
    )


def build_trainer(config: RunConfig) -> lightning.Trainer:
    """Lightning's Trainer for this configuration.

    Raises:
        ConfigurationError: the machine does not have what is asked for.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer, training = config.trainer, config.training
    on_gpu = torch.cuda.is_available() and trainer.accelerator != "cpu"
    bfloat16 = training.precision == "bfloat16" or (
        training.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    several = trainer.devices * trainer.num_nodes > 1
    # A batch holds some sessions only: the adapters of the others get no gradient in that step.
    strategy = "ddp_find_unused_parameters_true" if several and trainer.strategy == "auto" else trainer.strategy
    try:
        return lightning.Trainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=strategy,
            precision="bf16-mixed" if bfloat16 else "32-true",
            accumulate_grad_batches=training.gradient_accumulation_steps,
            max_epochs=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
        raise ConfigurationError(f"trainer: {error}") from error
