"""A trained run, read back from its directory: everything needed to decode, nothing of its training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from sottovoce.core.checkpoints import has_checkpoint, load_weights, read_state
from sottovoce.core.configuration import build
from sottovoce.core.errors import CheckpointError, ConfigurationError, DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import Split
from sottovoce.core.symbols import SymbolTable, symbol_table
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.config import DataConfig
from sottovoce.data.loading import PreparedTrials, open_data
from sottovoce.evaluation.config import EvaluationConfig
from sottovoce.evaluation.feasibility import infeasible_trials
from sottovoce.evaluation.inference import TextDecoder, TransducerSearch, TrialOutput, run_model
from sottovoce.evaluation.left_out import read_left_out
from sottovoce.evaluation.vocabulary import Vocabulary, read_vocabulary
from sottovoce.features.config import PreprocessorConfig
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, ModelConfig, build_model

CONFIG_FILE = "config.yaml"
SESSIONS_FILE = "sessions.json"


@dataclass(frozen=True)
class LoadedRun:
    """A model with its weights and the settings it was trained with."""

    run_dir: Path
    seed: int
    checkpoint_step: int
    data: DataConfig
    preprocessor: PreprocessorConfig
    evaluation: EvaluationConfig
    model: DecoderModel
    vocabulary: Vocabulary | None
    sessions: tuple[str, ...]
    """Whose adapters the model has, in order."""
    left_out: dict[str, Fault]
    """Trials of its data set that the run cannot use."""
    trained: tuple[str, ...]
    """Components of the model that have learnt something by this checkpoint."""
    validation: Mapping[str, float]
    """What the run's validation gave at this checkpoint, by metric; empty where there was none."""

    @property
    def table(self) -> SymbolTable:
        """What the model's outputs stand for."""
        return symbol_table(self.data.symbols)

    @property
    def frame_ms(self) -> float:
        """Time from one encoder frame to the next."""
        return self.preprocessor.feature_ms * self.model.bins_per_frame

    def with_beam(self, beam_size: int | None, decoder: str | None) -> LoadedRun:
        """The same run with another beam for its transducer; None changes nothing.

        Raises:
            ConfigurationError: another decoder would be used.
        """
        if beam_size is None:
            return self
        if (decoder or self.evaluation.decoder) != "transducer":
            raise ConfigurationError(f"--beam-size {beam_size} is of the transducer's search; add --decoder transducer")
        return replace(self, evaluation=replace(self.evaluation, beam_size=beam_size))

    def text_decoder(self, decoder: str | None = None) -> TextDecoder:
        """The named decoder, or the one the run was configured with.

        Raises:
            ConfigurationError: it needs what the run lacks: a lexicon, or a transducer that has been trained.
        """
        if (decoder or self.evaluation.decoder) == "transducer" and "rnnt_decoder" not in self.trained:
            has_one = self.model.transducer is not None
            raise ConfigurationError(
                f"{self.run_dir}: the transducer has not been trained by step {self.checkpoint_step}; use "
                "--decoder greedy"
                if has_one
                else f"{self.run_dir}: the model has no transducer; use --decoder greedy"
            )
        return TextDecoder(
            decoder or self.evaluation.decoder,
            self.table,
            self.vocabulary.lexicon if self.vocabulary else None,
            self.vocabulary is not None and self.vocabulary.isolated_words,
        )

    def open(self, splits: Sequence[Split]) -> PreparedTrials:
        """Trials of the data set the run was trained on.

        Raises:
            DataError: the data cannot be used.
        """
        return self._open(self.data, splits, unlabelled=False)

    def open_other(self, data_root: Path, splits: Sequence[Split]) -> PreparedTrials:
        """Trials of another data set in the same layout; of recordings all, whatever `splits` says, without labels.

        Raises:
            DataError: the data cannot be used, or have sessions that the model has no adapter for.
        """
        return self._open(replace(self.data, data_root=str(data_root)), splits, unlabelled=True)

    def _open(self, data: DataConfig, splits: Sequence[Split], unlabelled: bool) -> PreparedTrials:
        data = replace(data, num_workers=0, cache_data=False)
        opened = open_data(data, self.preprocessor, splits, self.seed, unlabelled)
        if self.model.session_adapter is not None:
            unknown = sorted({trial.session for trial in opened.trials} - set(self.sessions))
            if unknown:
                raise DataError(
                    f"{data.data_root}: the model has no adapter for the session {unknown[0]} "
                    f"({len(unknown)} unknown); it was trained on {self.sessions[0]} … {self.sessions[-1]}. "
                    "Train with that session, or with model.session_adapter=null"
                )
            opened.sessions = self.sessions
        return opened

    def usable(self, trial_set: PreparedTrials) -> tuple[list[int], list[str]]:
        """Places of the trials that can be decoded, and a line for each that cannot."""
        pipeline, indices, faults = FeaturePipeline(self.preprocessor), [], []
        for i, trial in enumerate(trial_set.trials):
            try:
                trial_set.signal(i)
            except DataError as error:
                faults.append(str(error))
                continue
            if self.model.output_lengths(pipeline.shortest_length(trial.num_steps, training=False)) < 1:
                faults.append(f"{trial.file}:{trial.key}: too_short_for_model: {trial.num_steps} bins or samples")
            else:
                indices.append(i)
        return indices, faults

    def outputs(
        self,
        trial_set: TrialSet,
        indices: Sequence[int],
        decoder: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[TrialOutput]:
        """What the model makes of these trials, in the order of `indices`, as the named decoder needs it.

        `progress` is called with the trials done and their number.

        Raises:
            DataError: a trial is too short for the model.
        """
        pipeline = FeaturePipeline(self.preprocessor)
        trials = [replace(trial_set.trials[i], labels=None) for i in indices]

        def frames(trial: Trial) -> int:
            return self.model.output_lengths(pipeline.shortest_length(trial.num_steps, training=False))

        if faults := infeasible_trials(trials, frames):
            raise next(iter(faults.values())).as_error()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = run_model(
            self.model.to(device),
            pipeline,
            trial_set,
            indices,
            batch_size=self.evaluation.batch_size,
            blank=self.table.blank,
            device=device,
            transducer=(
                TransducerSearch(self.evaluation.beam_size, self.evaluation.max_symbols_per_frame)
                if decoder == "transducer"
                else None
            ),
        )
        by_id: dict[str, TrialOutput] = {}
        for output in found:
            by_id[output.trial.trial_id] = output
            if progress is not None:
                progress(len(by_id), len(indices))
        return [by_id[trial_set.trials[i].trial_id] for i in indices]


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as plain values.

    Raises:
        CheckpointError: `run_dir` is not a run directory, or its configuration is damaged.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a run directory: it has no {CONFIG_FILE}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it") from error
    if not isinstance(config, dict) or not {"seed", "data", "preprocessor", "model", "evaluation"} <= config.keys():
        raise CheckpointError(f"{path} is not the configuration of a run; restore it")
    return config


def write_sessions(run_dir: Path, sessions: Sequence[str]) -> None:
    """Keep the order of the session adapters with the run: another data set may hold other sessions."""
    (run_dir / SESSIONS_FILE).write_text(json.dumps(list(sessions)), encoding="utf-8")


def read_sessions(run_dir: Path) -> tuple[str, ...]:
    """What `write_sessions` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = run_dir / SESSIONS_FILE
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error


def load_run(run_dir: Path, model: DecoderModel | None = None) -> LoadedRun:
    """The run with the weights of its best checkpoint, or of the last where no validation chose one.

    `model` takes them, where one of this configuration has been built already.

    Raises:
        CheckpointError: `run_dir` is no run directory, or has no checkpoint yet.
    """
    config = read_config(run_dir)
    folder = run_dir / "checkpoints" / "best"
    if not has_checkpoint(folder):
        folder = run_dir / "checkpoints" / "last"
    step, state = read_state(folder)
    model = model or build_model(build(ModelConfig, config["model"], "model"))
    load_weights(model, folder)
    model.use_flow_bridge = bool(state.get("use_flow_bridge"))
    return LoadedRun(
        run_dir=run_dir,
        seed=config["seed"],
        checkpoint_step=step,
        data=build(DataConfig, config["data"], "data"),
        preprocessor=build(PreprocessorConfig, config["preprocessor"], "preprocessor"),
        evaluation=build(EvaluationConfig, config["evaluation"], "evaluation"),
        model=model.eval(),
        vocabulary=read_vocabulary(run_dir),
        sessions=read_sessions(run_dir),
        left_out=read_left_out(run_dir),
        trained=tuple(state["progress"]["trained"]) if "progress" in state else model.components,
        validation=state.get("validation") or {},
    )
