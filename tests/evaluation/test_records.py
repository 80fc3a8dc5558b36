"""The files of an evaluation, by value."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from sottovoce.core.configuration import plain
from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.records import read_json_lines
from sottovoce.core.symbols import LETTERS
from sottovoce.core.trial import Trial
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import score
from sottovoce.runs.reading import read_run
from sottovoce.training.composition import compose_config


def test_files_hold_the_rates_and_every_trial(tmp_path: Path) -> None:
    trial = Trial("a", "val", "s1", 100, LETTERS.encode("one|two"), "One two!", Path("x.hdf5"))
    hypothesis = Hypothesis(
        LETTERS.encode("one|too"),
        num_frames=10,
        blank_frames=6,
        text="one too",
        score=-1.5,
        words=(Word("one", 0, 4, 0.9), Word("too", 4, 10, 0.4)),
        n_best=(Candidate(LETTERS.encode("one"), "one", -1.5),),
    )
    evaluation = score([(trial, hypothesis)], LETTERS, decoder="words")
    path = write_evaluation(tmp_path, evaluation)
    assert path == tmp_path / "evaluation" / "val.words.json"
    assert json.loads(path.read_text()) == evaluation.as_dict()
    assert read_json_lines(tmp_path / "hypotheses.val.words.jsonl") == [
        {
            "trial_id": "a",
            "session": "s1",
            "speaker": "",
            "reference": "one two",
            "hypothesis": "one too",
            "reference_symbols": list("one|two"),
            "symbols": list("one|too"),
            "counts": {"per": [1, 0, 0, 7], "wer": [1, 0, 0, 2], "cer": [1, 0, 0, 7]},
            "num_frames": 10,
            "blank_frames": 6,
            "score": -1.5,
            "words": [
                {"text": "one", "start_frame": 0, "end_frame": 4, "confidence": 0.9},
                {"text": "too", "start_frame": 4, "end_frame": 10, "confidence": 0.4},
            ],
            "n_best": [{"symbols": ["o", "n", "e"], "text": "one", "score": -1.5}],
        }
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_written_is_what_the_reader_of_a_run_gives_back(tmp_path: Path) -> None:
    config = compose_config(["recipe=demo", "data.data_root=data"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    trial = Trial("a", "val", "s1", 100, LETTERS.encode("one"), "One", Path("x.hdf5"))
    words = (Word("on", 0, 4, 0.75),)
    hypothesis = Hypothesis(LETTERS.encode("on"), num_frames=10, blank_frames=6, text="on", score=-1.5, words=words)
    evaluation = score([(trial, hypothesis)], LETTERS, decoder="words")
    path = write_evaluation(tmp_path, evaluation)
    record = read_run(tmp_path)
    (read,) = record.evaluations
    assert record.damaged == ()
    assert (read.name, read.path, read.result) == ("val.words", path, evaluation.as_dict())
    (line,) = read.hypotheses
    assert (line["reference"], line["hypothesis"], line["counts"]["wer"]) == ("one", "on", [1, 0, 0, 1])
    assert Word(**line["words"][0]) == words[0]
