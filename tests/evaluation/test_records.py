"""The files of an evaluation, by value."""

from __future__ import annotations

import json
from pathlib import Path

from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.records import read_json_lines
from sottovoce.core.symbols import LETTERS
from sottovoce.core.trial import Trial
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import score


def test_files_hold_the_rates_and_every_trial(tmp_path):
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
