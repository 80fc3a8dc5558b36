"""How hypotheses are made from log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.core.errors import ConfigurationError

DECODERS = ("greedy", "words", "transducer")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the section `evaluation`, used for validation while training and by `evaluate` and `decode`."""

    decoder: str = "greedy"
    """`greedy`: most probable symbols, merged; `words`: the lexicon's most probable word for every stretch between
    word boundaries, by exact CTC probability; `transducer`: search of the transducer (while it is not trained yet,
    validation uses `greedy`)."""
    beam_size: int = 1
    """Hypotheses that the transducer's search keeps in a frame; 1: greedy, which is how training validates."""
    max_symbols_per_frame: int = 5
    """The transducer emits at most this many symbols before it goes on to the next frame."""
    batch_size: int = 32
    """Trials in one forward pass without gradients."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigurationError(f"evaluation.decoder={self.decoder}: choose one of {', '.join(DECODERS)}")
        for name in ("batch_size", "beam_size", "max_symbols_per_frame"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"evaluation.{name}={getattr(self, name)}: must be at least 1")
