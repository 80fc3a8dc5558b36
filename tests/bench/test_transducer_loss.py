"""The benchmark measures what it says; no test depends on how long anything takes."""

import json

import pytest
import torch

from sottovoce.bench import transducer_loss
from sottovoce.bench.memory import in_new_process
from sottovoce.bench.transducer_loss import JOINTS, LOSSES, Inputs, Shape, bench_transducer_loss
from sottovoce.cli.main import main

pytestmark = pytest.mark.slow

SMALL = Shape(2, 6, 3, 5, units=4)


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transducer_loss, "SHAPES", (SMALL,))
    monkeypatch.setattr(transducer_loss, "JOINT_SHAPES", (SMALL,))
    monkeypatch.setattr(transducer_loss, "in_new_process", lambda measure, function, shape: 1.5)


def test_every_contestant_takes_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench_transducer_loss(rounds=2)
    expected = [name for name in (*LOSSES, *JOINTS) if name != "torchaudio"]
    assert [row.name for row in rows if row.name != "torchaudio"] == expected
    assert {len(row.seconds) for row in rows} == {2}
    assert [row.ratio for row in rows if row.name in ("sottovoce, compiled", "sottovoce, fused joint")] == [1.0, 1.0]
    assert main(["bench", "transducer-loss", "--rounds", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["rows"]
    assert {row["peak_mib"] for row in printed} == {1.5}
    assert printed[0]["shape"] == "B2 T6 U3 H4 V5"


def test_contestants_compute_the_same_loss() -> None:
    inputs = Inputs(SMALL, joint=False)
    torch.testing.assert_close(transducer_loss.compiled_loss(inputs), transducer_loss.scan_loss(inputs))
    joint = Inputs(SMALL, joint=True)
    torch.testing.assert_close(transducer_loss.fused_joint(joint), transducer_loss.plain_joint(joint))


def test_the_memory_of_the_yardstick_is_its_temporaries_and_its_gradient() -> None:
    measured = in_new_process(transducer_loss.extra_memory, "yardstick", Shape(2, 200, 20, 250))  # 8 MiB of logits
    if measured is None:
        pytest.skip("this system does not tell a process its peak memory (no /proc/self/clear_refs)")
    assert 8.0 <= measured < 40.0
