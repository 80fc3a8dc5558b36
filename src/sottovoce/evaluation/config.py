"""How hypotheses are made from log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.core.errors import ConfigurationError

DECODERS = ("greedy", "words")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the section `evaluation`, used for validation while training and by `evaluate` and `decode`."""

    decoder: str = "greedy"
    """`greedy`: most probable symbols, merged; `words`: the lexicon's most probable word for every stretch between
    word boundaries, by exact CTC probability."""
    batch_size: int = 32
    """Trials in one forward pass without gradients."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigurationError(f"evaluation.decoder={self.decoder}: choose one of {', '.join(DECODERS)}")
        if self.batch_size < 1:
            raise ConfigurationError(f"evaluation.batch_size={self.batch_size}: must be at least 1")
