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
from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.collation import collate
from sottovoce.decoding.evaluation_config import DECODERS
from sottovoce.decoding.greedy import blank_frames, greedy_ctc
from sottovoce.decoding.lexicon import Lexicon, decode_words
from sottovoce.decoding.spelling import spelled_words
from sottovoce.decoding.transducer import beam_transducer, greedy_transducer
from sottovoce.evaluation.feasibility import infeasible_trials
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.models.speaking_mode import ModeOutput
from sottovoce.runs.trained_decoder import TrainedDecoder

TransducerPath = tuple[tuple[int, ...], float | None]
"""Symbols and log-probability; greedy search does not know the latter."""


@dataclass(frozen=True)
class TransducerSearch:
    """How the transducer's path is looked for."""

    beam_size: int
    symbols_per_frame: int


@dataclass(frozen=True)
class ModeOpinion:
    """The speaking-mode head's word on one trial."""

    vocalised: float
    """Probability."""
    pooled_E: npt.NDArray[np.float32]
    """The frames it looked at, as one vector."""


@dataclass(frozen=True)
class TrialOutput:
    """What the model made of one trial."""

    trial: Trial
    log_probs_SV: npt.NDArray[np.float32]
    """Natural logarithms, valid frames only."""
    greedy_symbols: tuple[int, ...]
    blank_frames: int
    """Frames whose best symbol is the blank."""
    transducer_paths: tuple[TransducerPath, ...] = ()
    """The transducer's, best first, where they were asked for."""
    mode: ModeOpinion | None = None
    """What the speaking-mode head says, where the model has one."""


def run_model(
    model: DecoderModel,
    pipeline: FeaturePipeline,
    trial_set: TrialSet,
    indices: Sequence[int],
    *,
    batch_size: int,
    blank: int,
    device: torch.device,
    transducer: TransducerSearch | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[TrialOutput]:
    """Outputs of the trials `indices`, longest first; the model is in evaluation mode meanwhile.

    `transducer` asks for the transducer's paths too. `autocast` gives a new context for each batch.
    """
    longest_first = sorted(indices, key=lambda i: -trial_set.trials[i].num_steps)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(longest_first), batch_size):
            chosen = longest_first[start : start + batch_size]
            with torch.no_grad(), autocast():
                batch = pipeline.evaluate(collate(trial_set, chosen).to(device))
                encoded = model.encode(batch.signal, batch.lengths_B, batch.session_B)
                logits_BSV, frames_B = model.ctc_logits(encoded), encoded.lengths_B
                paths = _transducer_paths(model, encoded, blank, transducer)
            log_probs_BSV = logits_BSV.float().log_softmax(-1)
            best = greedy_ctc(log_probs_BSV, frames_B, blank)
            blanks_B = blank_frames(log_probs_BSV, frames_B, blank).tolist()
            for row, index in enumerate(chosen):
                frames = int(frames_B[row])
                log_probs = log_probs_BSV[row, :frames].cpu().numpy()
                mode = None if encoded.mode is None else _opinion(encoded.mode, row)
                yield TrialOutput(trial_set.trials[index], log_probs, tuple(best[row]), blanks_B[row], paths[row], mode)
    finally:
        model.train(was_training)


def _opinion(mode: ModeOutput, row: int) -> ModeOpinion:
    return ModeOpinion(float(mode.posterior_B2[row, 1]), mode.pooled_BE[row].float().cpu().numpy())


def _transducer_paths(
    model: DecoderModel, encoded: Encoded, blank: int, search: TransducerSearch | None
) -> list[tuple[TransducerPath, ...]]:
    """The paths of each trial of a batch; none where nobody asks."""
    if search is None:
        return [()] * len(encoded.frames_BSE)
    head = model.transducer
    assert head is not None  # whoever asks has made sure
    projected_BSH = head.project(encoded.frames_BSE)
    if search.beam_size == 1:
        greedy = greedy_transducer(projected_BSH, encoded.lengths_B, head, blank, search.symbols_per_frame)
        return [((tuple(symbols), None),) for symbols in greedy]
    return [
        tuple(beam_transducer(frames_SH[:length], head, search.beam_size, blank, search.symbols_per_frame))
        for frames_SH, length in zip(projected_BSH, encoded.lengths_B.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class TextDecoder:
    """From a model's output to a hypothesis; `greedy`, `words` or `transducer`.

    The symbols are those of the greedy path, of CTC or of the transducer. `greedy` and `transducer` spell letters, and
    for phonemes replace each word by the lexicon's nearest pronunciation, where there is a lexicon; `words` lets the
    lexicon's words compete by exact CTC probability, and says how sure it is.
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
            return self._hypothesis(output, output.greedy_symbols, self._greedy_text(output.greedy_symbols))
        if self.decoder == "transducer":
            path, score = output.transducer_paths[0]
            candidates = [
                Candidate(symbols, self._greedy_text(symbols), nats)
                for symbols, nats in output.transducer_paths
                if nats is not None
            ]
            hypothesis = self._hypothesis(output, path, self._greedy_text(path))
            return replace(hypothesis, score=score, n_best=tuple(candidates))
        assert self.lexicon is not None
        boundary = None if self.isolated_words else self.table.boundary
        words = decode_words(output.log_probs_SV, self.lexicon, boundary, self.table.blank)
        alternatives = words[0].alternatives if self.isolated_words and words else ()
        return replace(
            self._hypothesis(output, output.greedy_symbols, " ".join(word.word for word in words)),
            score=sum(word.log_prob for word in words),
            words=tuple(Word(word.word, word.start_frame, word.end_frame, word.confidence) for word in words),
            n_best=tuple(Candidate(self.lexicon.first_pronunciation(word), word, nats) for word, nats in alternatives),
        )

    def _hypothesis(self, output: TrialOutput, symbols: tuple[int, ...], text: str | None) -> Hypothesis:
        return Hypothesis(symbols, len(output.log_probs_SV), output.blank_frames, text)

    def _greedy_text(self, symbols: Sequence[int]) -> str | None:
        words = spelled_words(symbols, self.table, self.lexicon)
        return None if words is None else " ".join(words)


def text_decoder(run: TrainedDecoder, decoder: str | None = None) -> TextDecoder:
    """The named decoder, or the one the run was configured with.

    Raises:
        ConfigurationError: it needs what the run lacks: a lexicon, or a transducer that has been trained.
    """
    if (decoder or run.evaluation.decoder) == "transducer" and "rnnt_decoder" not in run.trained:
        has_one = run.model.transducer is not None
        raise ConfigurationError(
            f"{run.run_dir}: the transducer has not been trained by step {run.checkpoint_step}; use --decoder greedy"
            if has_one
            else f"{run.run_dir}: the model has no transducer; use --decoder greedy"
        )
    return TextDecoder(
        decoder or run.evaluation.decoder,
        run.table,
        run.vocabulary.lexicon if run.vocabulary else None,
        run.vocabulary is not None and run.vocabulary.isolated_words,
    )


def outputs(
    run: TrainedDecoder,
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
    pipeline = FeaturePipeline(run.preprocessor)
    trials = [replace(trial_set.trials[i], labels=None) for i in indices]

    def frames(trial: Trial) -> int:
        return run.model.output_lengths(pipeline.shortest_length(trial.num_steps, training=False))

    if faults := infeasible_trials(trials, frames):
        raise next(iter(faults.values())).as_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = run_model(
        run.model.to(device),
        pipeline,
        trial_set,
        indices,
        batch_size=run.evaluation.batch_size,
        blank=run.table.blank,
        device=device,
        transducer=(
            TransducerSearch(run.evaluation.beam_size, run.evaluation.max_symbols_per_frame)
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
