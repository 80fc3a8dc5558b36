"""Running a model over trials: log-probabilities, then hypotheses.

The same code validates while training and serves `evaluate` and `decode`. Legend: B trials, S frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.collation import collate
from sottovoce.decoding.greedy import blank_frames, greedy_ctc
from sottovoce.decoding.lexicon import Lexicon, decode_words, nearest_word
from sottovoce.evaluation.config import DECODERS
from sottovoce.evaluation.scoring import Candidate, Hypothesis, spelled_text
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel


@dataclass(frozen=True)
class TrialOutput:
    """What the model made of one trial."""

    trial: Trial
    log_probs_SV: npt.NDArray[np.float32]
    """Natural logarithms, valid frames only."""
    greedy_symbols: tuple[int, ...]
    blank_frames: int
    """Frames whose best symbol is the blank."""


def run_model(
    model: DecoderModel,
    pipeline: FeaturePipeline,
    trial_set: TrialSet,
    indices: Sequence[int],
    *,
    batch_size: int,
    blank: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[TrialOutput]:
    """Outputs of the trials `indices`, longest first; the model is in evaluation mode meanwhile.

    `autocast` gives a new context for each batch.
    """
    longest_first = sorted(indices, key=lambda i: -trial_set.trials[i].num_steps)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(longest_first), batch_size):
            chosen = longest_first[start : start + batch_size]
            with torch.no_grad(), autocast():
                batch = pipeline.evaluate(collate(trial_set, chosen).to(device))
                logits_BSV, frames_B = model(batch.signal, batch.lengths_B, batch.session_B)
            log_probs_BSV = logits_BSV.float().log_softmax(-1)
            best = greedy_ctc(log_probs_BSV, frames_B, blank)
            blanks_B = blank_frames(log_probs_BSV, frames_B, blank).tolist()
            for row, index in enumerate(chosen):
                frames = int(frames_B[row])
                log_probs = log_probs_BSV[row, :frames].cpu().numpy()
                yield TrialOutput(trial_set.trials[index], log_probs, tuple(best[row]), blanks_B[row])
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class TextDecoder:
    """From a model's output to a hypothesis; `greedy` or `words`.

    The symbols are those of the greedy path. `greedy` spells letters, and for phonemes replaces each word by the
    lexicon's nearest pronunciation, where there is a lexicon; `words` lets the lexicon's words compete by exact CTC
    probability, and says how sure it is.
    """

    decoder: str
    table: SymbolTable
    lexicon: Lexicon | None
    isolated_words: bool
    """Every trial is one word: the frames are not cut at word boundaries."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigurationError(f"there is no decoder {self.decoder!r}; choose one of {', '.join(DECODERS)}")
        if self.decoder == "words" and self.lexicon is None:
            raise ConfigurationError("the decoder 'words' needs a lexicon: train with data.lexicon=FILE, or use greedy")

    def __call__(self, output: TrialOutput) -> Hypothesis:
        """The hypothesis of one trial."""
        if self.decoder == "greedy":
            return self._hypothesis(output, self._greedy_text(output.greedy_symbols))
        assert self.lexicon is not None
        boundary = None if self.isolated_words else self.table.boundary
        words = decode_words(output.log_probs_SV, self.lexicon, boundary, self.table.blank)
        alternatives = words[0].alternatives if self.isolated_words and words else ()
        return replace(
            self._hypothesis(output, " ".join(word.word for word in words)),
            score=sum(word.log_prob for word in words),
            word_confidences=tuple(word.confidence for word in words),
            n_best=tuple(Candidate(output.greedy_symbols, word, score) for word, score in alternatives),
        )

    def _hypothesis(self, output: TrialOutput, text: str | None) -> Hypothesis:
        return Hypothesis(output.trial, output.greedy_symbols, len(output.log_probs_SV), output.blank_frames, text)

    def _greedy_text(self, symbols: Sequence[int]) -> str | None:
        if self.lexicon is None or self.table.name == "letters":
            return spelled_text(symbols, self.table)
        return " ".join(nearest_word(word, self.lexicon) for word in self.table.words(symbols))
