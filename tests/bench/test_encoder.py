"""The benchmark measures what it says; no test depends on how long anything takes."""

import json

import pytest
import torch

from sottovoce.bench import encoder
from sottovoce.bench.encoder import CONTESTANTS, OURS, Shape, bench_encoder
from sottovoce.cli.main import main

pytestmark = pytest.mark.slow

SMALL = Shape(layers=1, width=64, batch=2, frames=9, gru_layers=1, gru_units=4)


def test_every_contestant_takes_a_step_in_every_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder, "SHAPES", (SMALL,))
    monkeypatch.setattr(encoder, "in_new_process", lambda measure, name, shape: 12.5)
    rows = bench_encoder(rounds=3)
    assert [row.name for row in rows] == list(CONTESTANTS)
    assert {len(row.seconds) for row in rows} == {3}
    assert rows[0].ratio == 1.0
    assert str(rows[0]).endswith(" 12.5")
    assert main(["bench", "encoder", "--rounds", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["rows"]
    assert {row["peak_mib"] for row in printed} == {12.5}


def test_frame_by_frame_is_the_same_encoder() -> None:
    outputs = []
    for name in (OURS, "… frame by frame"):
        torch.manual_seed(0)
        model = CONTESTANTS[name](SMALL).eval()
        x = torch.linspace(-1, 1, 2 * 9 * 64).reshape(2, 9, 64)
        outputs.append(model(x, torch.tensor([9, 5]))[0])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
