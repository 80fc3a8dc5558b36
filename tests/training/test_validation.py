"""What validation says beside the error rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sottovoce.core.records import read_json_lines
from sottovoce.diagnosis.preflight.known_outputs import labels_of, rehearsal_trials, rehearsed
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import start
from tests.diagnosis.untrained_runs import untrained_gru, untrained_ssm
from tests.training.small_runs import overrides


def prepared(data: Path, runs: Path) -> Prepared:
    return prepare(compose_config(overrides(data, runs, "run", "training.steps=5")))


def gains(run_dir: Path) -> list[float]:
    lines = read_json_lines(run_dir / "metrics.jsonl")
    return [line["value"] for line in lines if line["name"] == "val/pairing_gain"]


def test_each_trials_labels_have_those_of_another_as_partner(tiny_t15: Path, tmp_path: Path) -> None:
    """The next longer ones, the longest the shortest."""
    partners = RunLoop(prepared(tiny_t15, tmp_path), Path()).validation.other_labels()
    assert len(partners) > 2
    assert set(partners) == set(partners.values())
    ordered = sorted(partners, key=lambda labels: (len(labels), labels))
    assert [partners[labels] for labels in ordered] == [*ordered[1:], ordered[0]]


def test_a_model_that_says_its_labels_gains_by_them_and_one_that_says_anothers_loses(tiny_t15: Path) -> None:
    subject = untrained_gru(tiny_t15)
    places = rehearsal_trials(subject)
    labels = labels_of(subject, places)
    right = rehearsed(subject, labels)["val/pairing_gain"]
    wrong = rehearsed(subject, dict(zip(labels, [*list(labels.values())[1:], labels[places[0]]], strict=True)))
    assert right > 50
    assert wrong["val/pairing_gain"] < 0


def test_words_that_are_all_the_same_have_no_other(tiny_t15: Path, tmp_path: Path) -> None:
    made = prepared(tiny_t15, tmp_path)
    trials = made.trial_set.trials
    same = trials[made.val_indices[0]].labels
    made.trial_set.trials = tuple(
        replace(trial, labels=same) if i in made.val_indices else trial for i, trial in enumerate(trials)
    )
    assert gains(start(made)) == []


def test_a_decoder_waits_for_the_component_it_needs(tiny_t15: Path) -> None:
    validation = untrained_ssm(tiny_t15, "decoding.transducer.beam_size=4").loop.validation
    assert validation.decoder_now(["encoder", "ctc_decoder"]).name == "greedy"
    assert validation.decoder_now(["encoder", "ctc_decoder", "rnnt_decoder"]).name == "transducer"
