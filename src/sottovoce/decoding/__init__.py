"""From log-probabilities to symbols and text, as pure functions."""

from sottovoce.decoding.greedy import greedy_ctc

__all__ = ["greedy_ctc"]
