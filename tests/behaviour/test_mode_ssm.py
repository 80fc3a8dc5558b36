"""What a curriculum is good for, on simulated data: some twenty minutes on two cores, run by `make behaviour`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sottovoce.core.records import read_json_lines
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.metrics import bootstrap_difference
from tests.training.small_runs import command, train

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(3600)]

CTC_STEPS, JOINT_STEPS = 300, 1200
CTC = "components: [preprocessor, encoder, ctc_decoder], loss_weights: {ctc: 1.0}"
JOINT = "components: [preprocessor, encoder, ctc_decoder, rnnt_decoder], loss_weights: {ctc: 0.3, rnnt: 1.0}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "four_days"
    simulate_t15(folder, SimulationSettings(sessions=4, trials=200, val_trials=40, electrodes=64, snr=3.0, seed=1))
    return folder


def _run(data: Path, runs: Path, name: str, stages: str, *more: str) -> dict[str, dict[int, float]]:
    where = (f"data.data_root={data}", f"runs_dir={runs}", f"run_name={name}")
    log = "training.log_every_steps=1"
    done = train("recipe=mode_ssm_small", log, *where, f"training.stages={stages}", *more)
    assert done.returncode == 0, done.stderr
    assert not [e for e in read_json_lines(runs / name / "events.jsonl") if e["event"] == "step_skipped"]
    values: dict[str, dict[int, float]] = {}
    for record in read_json_lines(runs / name / "metrics.jsonl"):
        values.setdefault(record["name"], {})[record["step"]] = record["value"]
    return values


def _errors(runs: Path, *pairs: str) -> tuple[list[int], list[int], list[int]]:
    """Phoneme errors of each validation trial under two runs' last weights, and the reference lengths."""
    counts: list[dict[str, list[int]]] = []
    for name, decoder in zip(pairs[::2], pairs[1::2], strict=True):
        shutil.rmtree(runs / name / "checkpoints" / "best")  # else it is what evaluate uses
        done = subprocess.run(
            command("evaluate", str(runs / name), "--decoder", decoder), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = read_json_lines(runs / name / f"hypotheses.val.{decoder}.jsonl")
        counts.append({line["trial_id"]: line["counts"]["per"] for line in lines})
    first, second = counts
    assert first.keys() == second.keys()
    errors = [[sum(found[trial][:3]) for trial in first] for found in counts]
    return errors[0], errors[1], [first[trial][3] for trial in first]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_transducer_is_no_worse_than_ctc_alone(data: Path, tmp_path: Path, seed: int) -> None:
    total = CTC_STEPS + JOINT_STEPS
    stages = f"[{{name: ctc_warmup, steps: {CTC_STEPS}, {CTC}}}, {{name: joint, steps: {JOINT_STEPS}, {JOINT}}}]"
    joint = _run(data, tmp_path, "joint", stages, f"seed={seed}")
    alone = _run(data, tmp_path, "alone", f"[{{name: ctc_warmup, steps: {total}, {CTC}}}]", f"seed={seed}",
                 "decoding.decoder=greedy")  # fmt: skip
    print(f"seed {seed}: transducer {joint['val/per'][total]:.4f}, CTC alone {alone['val/per'][total]:.4f}")
    interval = bootstrap_difference(*_errors(tmp_path, "joint", "transducer", "alone", "greedy"), seed=seed)
    assert interval is not None
    print(f"difference of the rates, 95 % interval: {interval}")
    assert interval[0] <= 0, "worse than CTC alone, beyond what the choice of trials explains"
    released = CTC_STEPS + 101
    # An untrained transducer beside a trained CTC head costs far more at first; then both are of one size.
    ratios = [joint["train/transducer_loss"][s] / joint["train/ctc_loss"][s] for s in range(released + 60, total + 1)]
    assert sum(1 / 3 < ratio < 3 for ratio in ratios) > 0.95 * len(ratios)
    norms = joint["train/gradient_norm"]
    before = sorted(norms[step] for step in range(released - 100, released))[50]
    assert max(norms[step] for step in range(released, released + 50)) < 10 * before
