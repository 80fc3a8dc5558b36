"""A trained run, read back from its directory: everything needed to decode, nothing of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.core.checkpoints import has_checkpoint, load_weights, read_state
from sottovoce.core.configuration import build
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import Fault
from sottovoce.core.symbols import SymbolTable, symbol_table
from sottovoce.decoding.config import DecodingConfig
from sottovoce.decoding.decoder import Decoder, DecoderParts
from sottovoce.features.config import PreprocessorConfig
from sottovoce.models.compose import DecoderModel, ModelConfig, build_model
from sottovoce.runs.directory import RunDirectory, read_config, read_sessions
from sottovoce.runs.left_out import read_left_out
from sottovoce.runs.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class TrainedDecoder:
    """A model with its weights and the settings it was trained with."""

    run_dir: Path
    config: Mapping[str, Any]
    """The run's whole configuration as plain values."""
    checkpoint_step: int
    preprocessor: PreprocessorConfig
    decoding: DecodingConfig
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
    def seed(self) -> int:
        """Of the run, for whatever is drawn about it later."""
        return int(self.config["seed"])

    @property
    def table(self) -> SymbolTable:
        """What the model's outputs stand for."""
        return symbol_table(self.config["data"]["symbols"])

    @property
    def frame_ms(self) -> float:
        """Time from one encoder frame to the next."""
        return self.preprocessor.feature_ms * self.model.bins_per_frame

    def decoder(self, name: str | None = None) -> Decoder:
        """The decoder of this name, or the one the run was configured with.

        Raises:
            ConfigurationError: as `decoders`.
        """
        (decoder,) = self.decoders(() if name is None else (name,))
        return decoder

    def decoders(self, names: Sequence[str] = (), beam_size: int | None = None) -> list[Decoder]:
        """Decoders by name; without names, the one the run was configured with.

        `beam_size` stands in for the configured beam of those that keep one.

        Raises:
            ConfigurationError: there is no such decoder, none keeps a beam, or one needs what the run lacks: a
                lexicon, or a part of the model that has been trained.
        """
        names = tuple(dict.fromkeys(names or (self.decoding.decoder,)))
        for name in names:
            self._refuse_untrained(name)
        decoding = self.decoding if beam_size is None else self.decoding.with_beam(beam_size, names)
        parts = decoder_parts(self.table, self.vocabulary, self.model)
        return [decoding.build(parts, name) for name in names]

    def _refuse_untrained(self, name: str) -> None:
        needs = self.decoding.section(name).needs
        if needs is None or needs in self.trained:
            return
        if needs not in self.model.components:
            raise ConfigurationError(f"{self.run_dir}: the model has no {name}; use the decoder greedy")
        raise ConfigurationError(
            f"{self.run_dir}: the {name} has not been trained by step {self.checkpoint_step}; use the decoder greedy"
        )


def decoder_parts(table: SymbolTable, vocabulary: Vocabulary | None, model: DecoderModel) -> DecoderParts:
    """What a run offers its decoders."""
    if vocabulary is None:
        return DecoderParts(table, transducer=model.transducer)
    return DecoderParts(table, vocabulary.lexicon, vocabulary.isolated_words, model.transducer)


def load(run_dir: Path, model: DecoderModel | None = None) -> TrainedDecoder:
    """The decoder with the weights of its best checkpoint, or of the last where no validation chose one.

    `model` takes them, where one of this configuration has been built already.

    Raises:
        CheckpointError: `run_dir` is no run directory, or has no checkpoint yet.
    """
    config = read_config(run_dir)
    folder = RunDirectory(run_dir).best
    if not has_checkpoint(folder):
        folder = RunDirectory(run_dir).last
    step, state = read_state(folder)
    model = model or build_model(build(ModelConfig, config["model"], "model"))
    load_weights(model, folder)
    model.use_flow_bridge = bool(state.get("use_flow_bridge"))
    return TrainedDecoder(
        run_dir=run_dir,
        config=config,
        checkpoint_step=step,
        preprocessor=build(PreprocessorConfig, config["preprocessor"], "preprocessor"),
        decoding=build(DecodingConfig, config["decoding"], "decoding"),
        model=model.eval(),
        vocabulary=read_vocabulary(run_dir),
        sessions=read_sessions(run_dir),
        left_out=read_left_out(run_dir),
        trained=tuple(state["progress"]["trained"]) if "progress" in state else model.components,
        validation=state.get("validation") or {},
    )
