"""Everything a run needs before its first step: data, model, feature pipeline, vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.faults import Fault
from sottovoce.core.random import seed_for
from sottovoce.core.symbols import symbol_table
from sottovoce.core.trial import Trial
from sottovoce.data.loading import PreparedTrials, open_data
from sottovoce.evaluation.feasibility import infeasible_trials
from sottovoce.evaluation.vocabulary import Vocabulary, find_vocabulary
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, build_model
from sottovoce.training.config import RunConfig


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
    """Trials left out because of `data.on_fault=skip`."""


def prepare(config: RunConfig) -> Prepared:
    """Open the data, build the model, and make sure that every trial can be trained on.

    Raises:
        DataError: no training trials, or one that cannot be used.
        ConfigurationError: settings that contradict the data.
    """
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    table = symbol_table(config.data.symbols)
    trial_set = open_data(config.data, config.preprocessor, ("train", "val"), config.seed)
    config = _filled_in(config, num_sessions=len(trial_set.sessions), num_symbols=len(table))
    torch.manual_seed(seed_for(config.seed, "init"))
    model = build_model(config.model)
    pipeline = FeaturePipeline(config.preprocessor, config.augmentation)
    faults = _infeasible(trial_set.trials, model, pipeline)
    if faults and config.data.on_fault == "raise":
        first, more = next(iter(faults.values())), len(faults) - 1
        raise DataError(f"{first}" + (f" ({more} more such trials)" if more else ""))
    usable = {
        split: [i for i in trial_set.indices(split) if trial_set.trials[i].trial_id not in faults]
        for split in ("train", "val")
    }
    if not usable["train"]:
        raise DataError(f"{config.data.data_root} has no usable training trial")
    vocabulary = find_vocabulary(config.data, table, (trial_set.trials[i] for i in usable["train"]))
    return Prepared(
        config, trial_set, vocabulary, model, pipeline, usable["train"], usable["val"], tuple(faults.values())
    )


def _filled_in(config: RunConfig, num_sessions: int, num_symbols: int) -> RunConfig:
    """The configuration with the model's sizes, which the data dictate."""
    model = replace(
        config.model,
        num_channels=config.preprocessor.num_channels,
        num_sessions=num_sessions,
        num_symbols=num_symbols,
    )
    for name in ("num_channels", "num_sessions", "num_symbols"):
        given, size = getattr(config.model, name), getattr(model, name)
        if given is not None and given != size:
            raise ConfigurationError(
                f"model.{name}={given}, but the data and the other settings make it {size}; leave it out"
            )
    return replace(config, model=model)


def _infeasible(trials: tuple[Trial, ...], model: DecoderModel, pipeline: FeaturePipeline) -> dict[str, Fault]:
    def frames(trial: Trial) -> int:
        return model.output_lengths(pipeline.shortest_length(trial.num_steps, trial.split == "train"))

    return infeasible_trials(trials, frames, " at most shortened by augmentation")
