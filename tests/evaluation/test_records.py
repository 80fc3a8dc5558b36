"""The files of an evaluation, by value."""

from __future__ import annotations

import json
from pathlib import Path

from sottovoce.core.records import read_json_lines
from sottovoce.core.symbols import LETTERS
from sottovoce.core.trial import Trial
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import Candidate, Hypothesis, score


def test_files_hold_the_rates_and_every_trial(tmp_path):
    trial = Trial("a", "val", "s1", 100, LETTERS.encode("one|two"), "One two!", Path("x.hdf5"))
    hypothesis = Hypothesis(
        trial,
        LETTERS.encode("one|too"),
        num_frames=10,
        blank_frames=6,
        text="one too",
        score=-1.5,
        word_confidences=(0.9, 0.4),
        n_best=(Candidate(LETTERS.encode("one"), "one", -1.5),),
    )
    evaluation = score([hypothesis], LETTERS, decoder="words")
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
            "word_confidences": [0.9, 0.4],
            "n_best": [{"symbols": ["o", "n", "e"], "text": "one", "score": -1.5}],
        }
    ]
    assert not list(tmp_path.rglob("*.tmp"))
