"""The names of metrics and events are spelled in one place."""

from __future__ import annotations

import tokenize
from pathlib import Path

import sottovoce
from sottovoce.runs import names
from sottovoce.runs.names import Event, Metric

SOURCE = Path(sottovoce.__file__).parent


def test_no_other_file_spells_a_name() -> None:
    spelled = {*Metric, *Event, names.TRAIN, names.VAL, names.LEARNING_RATE, names.GROUP_GRADIENT_NORM}
    found = []
    for file in SOURCE.rglob("*.py"):
        if file == Path(names.__file__):
            continue
        with file.open("rb") as source:
            for token in tokenize.tokenize(source.readline):
                if token.type == tokenize.STRING and token.string.strip("\"'") in spelled:
                    found.append(f"{file.relative_to(SOURCE)}:{token.start[0]}: {token.string}")
    assert not found


def test_names_are_what_users_script_against() -> None:
    """Those that `docs/` and dashboards promise."""
    assert {"train/loss", "train/ctc_loss", "train/transducer_loss", "val/per", "val/wra"} <= {*Metric}
    assert {"stage_started", "step_skipped", "checkpoint_saved", "resumed", "run_aborted"} <= {*Event}
    assert (names.learning_rate("encoder"), names.group_gradient_norm("encoder")) == (
        "learning_rate/encoder",
        "gradient_norm/encoder",
    )
