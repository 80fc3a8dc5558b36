"""Everything a run needs before its first step: data, model, feature pipeline, vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.faults import Fault
from sottovoce.core.random import seed_for
from sottovoce.core.symbols import SymbolTable, symbol_table
from sottovoce.core.trial import Trial
from sottovoce.data.checks import CheckReport, check_data_set, fatal_faults, unusable_trials
from sottovoce.data.layout import DataSet
from sottovoce.data.loading import PreparedTrials, open_data, read_data_set
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.purpose import Patching, Purpose
from sottovoce.data.quality import filtered_trials
from sottovoce.evaluation.feasibility import infeasible_trials
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, build_model
from sottovoce.models.patching import PatchConfig
from sottovoce.runs.vocabulary import Vocabulary
from sottovoce.training.branches import SPEAKING_MODE
from sottovoce.training.config import RunConfig
from sottovoce.training.mode_targets import ModeTargets, find_mode_targets
from sottovoce.training.stages import Curriculum, planned
from sottovoce.training.teachers import Teachers, find_teachers
from sottovoce.training.vocabulary import find_vocabulary


class NoUsableTrials(DataError):
    """Nothing is left to train on."""

    def __init__(self, data_root: str, faults: Sequence[Fault]) -> None:
        """`faults`: why each trial or file was left out; none of a data set that has no training trial at all."""
        why, code = "", None
        errors = [fault for fault in faults if fault.severity == "error"] or list(faults)
        if errors:
            counts = Counter(fault.fault for fault in errors).most_common()
            code = counts[0][0]
            often = next(fault for fault in errors if fault.fault == code)
            why = f" ({', '.join(f'{count} × {code}' for code, count in counts)}); {often}"
        super().__init__(f"{data_root} has no {'usable ' if why else ''}training trial{why}", code=code)
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Prepared:
    """Everything a run is made of before its first step."""

    config: RunConfig
    trial_set: PreparedTrials
    vocabulary: Vocabulary | None
    model: DecoderModel
    pipeline: FeaturePipeline
    train_indices: list[int]
    val_indices: list[int]
    skipped: tuple[Fault, ...]
    """Why trials or files were left out (`data.on_fault=skip`)."""
    left_out: dict[str, Fault]
    """Those of them that only a look at every trial, or at the model's frames, has found, by trial id."""
    curriculum: Curriculum
    modes: ModeTargets | None = None
    """Where a stage learns the speaking mode."""
    teachers: Teachers | None = None
    """Where other runs teach this one."""
    data_warnings: Mapping[str, int] = field(default_factory=dict)
    """How often the check of the data found what does not stop a run, by code."""


def prepare(
    config: RunConfig,
    known: Mapping[str, Fault] | None = None,
    progress: Callable[[int, int], None] | None = None,
    data_set: DataSet | None = None,
) -> Prepared:
    """Open the data, build the model, and make sure that every trial can be trained on.

    Every trial is read first (`data.check`). A run that continues has done so before: `known` are the trials that it
    leaves out. `progress` is called with the trials read and their number. `data_set` is what a check has read already.

    Raises:
        DataError: a trial that cannot be used (`NoUsableTrials`: none that can).
        ConfigurationError: settings that contradict the data.
    """
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    table = symbol_table(config.data.symbols)
    config = _with_absolute_paths(config)
    data_warnings: Counter[str] = Counter()
    if known is None:
        known = {}
        if config.data.check:
            report = check_data(config, progress)
            if config.data.on_fault == "raise":
                _raise_first(fatal_faults(report))
            known, data_set = unusable_trials(report), report.data_set
            data_warnings.update(fault.fault for fault in report.faults if fault.severity == "warning")
    trial_set = open_data(config.data, config.preprocessor, ("train", "val"), config.seed, data_set=data_set)
    known = {**filtered_trials(trial_set, config.data, config.preprocessor.step_ms), **known}
    config = _filled_in(config, len(trial_set.sessions), table)
    torch.manual_seed(seed_for(config.seed, "init"))
    model = build_model(config.model)
    pipeline = FeaturePipeline(config.preprocessor, config.augmentation)
    infeasible = _infeasible(trial_set.trials, model, pipeline)
    if config.data.on_fault == "raise":
        _raise_first(list(infeasible.values()))
    left_out = {**known, **infeasible}
    train_indices, val_indices = trial_set.indices("train", left_out), trial_set.indices("val", left_out)
    unopened = {fault.trial_id for fault in trial_set.skipped}
    skipped = (*trial_set.skipped, *(fault for trial_id, fault in left_out.items() if trial_id not in unopened))
    if not train_indices:
        raise NoUsableTrials(config.data.data_root, skipped)
    vocabulary = find_vocabulary(config.data, table, (trial_set.trials[i] for i in train_indices))
    curriculum = curriculum_of(config, model, len(train_indices))
    learns_modes = any(stage.config.weight_of(SPEAKING_MODE.name) for stage in curriculum.stages)
    return Prepared(
        config=config,
        trial_set=trial_set,
        vocabulary=vocabulary,
        model=model,
        pipeline=pipeline,
        train_indices=train_indices,
        val_indices=val_indices,
        skipped=skipped,
        left_out=left_out,
        curriculum=curriculum,
        data_warnings=data_warnings,
        modes=find_mode_targets(config.data, trial_set, train_indices, config.seed) if learns_modes else None,
        teachers=find_teachers(config.training.distillation, trial_set, table.blank),
    )


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration as it can be read from any other folder."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else str(Path(name).absolute())

    data, distillation = config.data, config.training.distillation
    distillation = replace(distillation, teachers=tuple(str(Path(name).absolute()) for name in distillation.teachers))
    return replace(
        config,
        data=replace(
            data,
            data_root=str(Path(data.data_root).absolute()),
            lexicon=absolute(data.lexicon),
            mode_file=absolute(data.mode_file),
        ),
        training=replace(config.training, distillation=distillation),
    )


def steps_per_epoch(config: RunConfig, num_trials: int) -> int:
    """Optimiser steps that show as many trials as there are for training."""
    processes = config.trainer.devices * config.trainer.num_nodes
    return math.ceil(
        num_trials / (config.training.batch_size * config.training.gradient_accumulation_steps * processes)
    )


def curriculum_of(config: RunConfig, model: DecoderModel, num_trials: int) -> Curriculum:
    """The run's stages with their lengths in steps.

    Raises:
        ConfigurationError: a stage does not fit the model, or nothing is left of the run after the warm-up.
    """
    training = config.training
    stages = planned(training.stages, training.steps or 0, steps_per_epoch(config, num_trials), model.components)
    held, ramp = training.rnnt_warmup_batches, training.rnnt_ramp_steps
    curriculum = Curriculum(stages, held, ramp, training.distillation.share)
    if (training.scheduler.max_steps or curriculum.total_steps) <= training.scheduler.warmup_steps:
        raise ConfigurationError(
            f"training.scheduler.warmup_steps={training.scheduler.warmup_steps} leaves nothing of the "
            f"{curriculum.total_steps} steps of the run after the warm-up; lower it"
        )
    if 0 < curriculum.transducer_steps <= training.rnnt_warmup_batches:
        raise ConfigurationError(
            f"training.rnnt_warmup_batches={training.rnnt_warmup_batches} holds the transducer back for all "
            f"{curriculum.transducer_steps} steps of its stages; lower it, or make the stages longer"
        )
    needs, decoder = config.decoding.section().needs, config.decoding.decoder
    if needs is not None and not any(needs in stage.config.components for stage in stages):
        raise ConfigurationError(
            f"decoding.decoder={decoder}, but no stage trains the {decoder}; choose greedy, or give it a loss weight"
        )
    return curriculum


def check_data(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """What a look at every trial of a configuration's data shows.

    Raises:
        DataError: there is no data set to read.
    """
    data, table, patch = config.data, symbol_table(config.data.symbols), config.model.patch or PatchConfig(1, 1)
    purpose = Purpose(
        symbols=table,
        lexicon=read_lexicon(Path(data.lexicon), table) if data.lexicon else None,
        patching=Patching(patch.size, patch.stride),
        num_channels=config.preprocessor.num_channels if data.channel_stride == 1 else None,
        front_end=config.preprocessor.log_mel,
        audio_channel=data.audio_channel,
    )
    layout, data_set = read_data_set(data, config.preprocessor.signal)
    return check_data_set(layout, data_set, purpose, progress)


def _raise_first(faults: Sequence[Fault]) -> None:
    if faults:
        others = f" ({len(faults) - 1} more: see sottovoce check)" if len(faults) > 1 else ""
        raise faults[0].as_error(others)


def _filled_in(config: RunConfig, num_sessions: int, table: SymbolTable) -> RunConfig:
    """The configuration with the model's sizes, which the data dictate."""
    model = replace(
        config.model,
        num_channels=config.preprocessor.num_channels,
        num_sessions=num_sessions,
        num_symbols=len(table),
        blank=table.blank,
    )
    for name in ("num_channels", "num_sessions", "num_symbols", "blank"):
        given, size = getattr(config.model, name), getattr(model, name)
        if given is not None and given != size:
            raise ConfigurationError(
                f"model.{name}={given}, but the data and the other settings make it {size}; leave it out"
            )
    return replace(config, model=model)


def _infeasible(trials: tuple[Trial, ...], model: DecoderModel, pipeline: FeaturePipeline) -> dict[str, Fault]:
    def frames(trial: Trial) -> int:
        return model.output_lengths(pipeline.shortest_length(trial.num_steps, trial.split == "train"))

    return _without_labels(trials) | infeasible_trials(trials, frames, " at most shortened by augmentation")


def _without_labels(trials: tuple[Trial, ...]) -> dict[str, Fault]:
    """Training trials in which nothing was said, by id: all that they teach is to stay silent."""
    message = (
        "a training trial without a single label; leave it out (data.on_fault=skip) or correct its label. "
        "Validation and test trials may be empty"
    )
    return {
        trial.trial_id: Fault(str(trial.file), trial.key, "empty_label", "error", message, trial.trial_id)
        for trial in trials
        if trial.split == "train" and not trial.labels
    }
