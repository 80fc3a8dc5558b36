"""A run directory with every file that a report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import PHONEMES
from sottovoce.core.trial import Trial
from sottovoce.evaluation.records import write_evaluation
from sottovoce.evaluation.scoring import score
from sottovoce.runs.examples import Example, Examples, write_examples

CONFIG = """
recipe: demo
seed: 3
data: {data_root: data/a&b, symbols: phonemes}
preprocessor: {}
model: {}
training: {steps: 200, max_grad_norm: 5.0}
decoding: {}
"""
SAID = PHONEMES.encode("DH AH | K AE T |".split())
DECODED = (SAID, PHONEMES.encode("DH AH | K AH T |".split()), PHONEMES.encode("DH | K AE T S |".split()), ())


def add_lines(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def add_evaluation(run_dir: Path, decoder: str = "greedy", text: str | None = None) -> None:
    hypotheses = []
    for number, symbols in enumerate(DECODED):
        session = f"s{number // 2}<b>$x$"
        trial = Trial(f"{session}/val/{number}", "val", session, 60, SAID, "The <cat>", Path("x.hdf5"))
        hypotheses.append((trial, Hypothesis(symbols, 14, 8, text)))
    write_evaluation(run_dir, score(hypotheses, PHONEMES, decoder=decoder))


def add_examples(run_dir: Path) -> None:
    log_probs = np.full((14, 41), np.log(0.1 / 40), np.float32)
    log_probs[np.arange(14), [0, *(s for label in SAID[:6] for s in (label, 0)), SAID[6]]] = np.log(0.9)
    example = Example("best", "s0/val/0", SAID, SAID, "the cat", None, log_probs)
    write_examples(run_dir, Examples("val", "greedy", "phonemes", 80.0, (example,)))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 200 steps that was trained, not evaluated."""
    run_dir = tmp_path / "demo-001"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(CONFIG)
    (run_dir / "environment.json").write_text(json.dumps({"commit": "abc123", "packages": {"torch": "2.13.0"}}))
    for step in range(10, 201, 10):
        values = {
            "train/loss": 100 / step,
            "train/gradient_norm": 2.0,
            "train/blank_fraction": 0.6,
            "train/step_seconds": 0.05,
            "learning_rate/other": 1e-3,
            "learning_rate/bias": 1e-3,
        }
        if step % 100 == 0:
            values |= {"val/loss": 3.0, "val/per": 0.25 - step / 2000}
        records = [{"step": step, "split": n.split("/")[0], "name": n, "value": v} for n, v in values.items()]
        add_lines(run_dir / "metrics.jsonl", records)
    add_lines(
        run_dir / "events.jsonl",
        [
            {"step": 100, "event": "checkpoint_saved", "checkpoint": "last"},
            {"step": 120, "event": "step_skipped", "code": "nonfinite_gradient", "evidence": "norm <inf>"},
            {"step": 200, "event": "run_finished"},
        ],
    )
    return run_dir


@pytest.fixture
def evaluated_dir(run_dir: Path) -> Path:
    """The same run with an evaluation and an example."""
    add_evaluation(run_dir)
    add_examples(run_dir)
    return run_dir
