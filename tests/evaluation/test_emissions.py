"""A model run over trials: once for all decoders, the same in a padded batch as alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.core.configuration import plain
from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.trial import TrialSet
from sottovoce.decoding.transducer_decoder import TransducerConfig, TransducerDecoder
from sottovoce.evaluation.emissions import decoded
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.runs.trained_decoder import TrainedDecoder
from tests.diagnosis.untrained_runs import untrained_ssm

RunAndTrials = tuple[TrainedDecoder, TrialSet, list[int]]


@pytest.fixture(scope="module")
def run_and_trials(tiny_t15: Path) -> RunAndTrials:
    """A model with a transducer, its weights as drawn, and its validation trials."""
    torch.manual_seed(0)
    prepared = untrained_ssm(tiny_t15).prepared
    config, model = prepared.config, prepared.model
    run = TrainedDecoder(
        run_dir=Path("runs/one"),
        config=plain(config),
        checkpoint_step=7,
        preprocessor=config.preprocessor,
        decoding=replace(config.decoding, batch_size=3),
        model=model.eval(),
        vocabulary=prepared.vocabulary,
        sessions=prepared.trial_set.sessions,
        left_out={},
        trained=model.components,
        validation={},
    )
    return run, prepared.trial_set, list(prepared.val_indices)


def test_the_model_runs_once_for_several_decoders(
    run_and_trials: RunAndTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trial_set, indices = run_and_trials
    decoders = [*run.decoders(["greedy", "transducer"]), *run.decoders(["transducer"], beam_size=2)]
    alone = [[one.hypotheses[0] for one in decoded(run, trial_set, indices, [decoder])] for decoder in decoders]
    exact, calls = DecoderModel.encode, 0

    def counting(*arguments: Any) -> Encoded:
        nonlocal calls
        calls += 1
        return exact(*arguments)

    monkeypatch.setattr(DecoderModel, "encode", counting)
    together = decoded(run, trial_set, indices, decoders)
    assert calls == math.ceil(len(indices) / run.decoding.batch_size)
    assert [one.trial.trial_id for one in together] == [trial_set.trials[i].trial_id for i in indices]
    assert [list(hypotheses) for hypotheses in zip(*(one.hypotheses for one in together), strict=True)] == alone


def test_a_trial_of_a_padded_batch_is_decoded_as_alone(run_and_trials: RunAndTrials) -> None:
    run, trial_set, indices = run_and_trials
    assert len({trial_set.trials[i].num_steps for i in indices}) > 1
    one_by_one = replace(run, decoding=replace(run.decoding, batch_size=1))
    for name in ("greedy", "transducer"):
        batched = decoded(run, trial_set, indices, [run.decoder(name)])
        single = decoded(one_by_one, trial_set, indices, [run.decoder(name)])
        assert [one.hypotheses for one in batched] == [one.hypotheses for one in single]
        for a, b in zip(batched, single, strict=True):
            np.testing.assert_allclose(a.log_probs_SV, b.log_probs_SV, atol=2e-5)


def test_nan_is_refused_with_the_trials_name(run_and_trials: RunAndTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trial_set, indices = run_and_trials
    exact = DecoderModel.ctc_logits
    monkeypatch.setattr(DecoderModel, "ctc_logits", lambda *arguments: exact(*arguments) * math.nan)
    with pytest.raises(DataError, match=r"trial t15\.2023.*: the model gives NaN in \d+ of \d+ frames"):
        decoded(run, trial_set, indices[:1], [run.decoder("greedy")])


def test_what_the_run_lacks_is_said(run_and_trials: RunAndTrials) -> None:
    run, _, _ = run_and_trials
    untrained = replace(run, trained=("encoder", "ctc_decoder"))
    with pytest.raises(
        ConfigurationError, match="runs/one: the transducer has not been trained by step 7; use the dec"
    ):
        untrained.decoder("transducer")
    assert untrained.decoder("greedy").name == "greedy"
    with pytest.raises(ConfigurationError, match="'words' needs a lexicon"):
        replace(run, vocabulary=None).decoder("words")
    assert run.decoders(["greedy", "transducer"], beam_size=2)[1].name == "transducer_beam_2"
    (beam,) = run.decoders(["transducer"], beam_size=2)
    assert isinstance(beam, TransducerDecoder)
    assert beam.config == TransducerConfig(beam_size=2)
