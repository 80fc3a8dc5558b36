"""Capsules: what they hold, how many there are, what a damaged one or a full disk does."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.core.records import read_json_lines
from sottovoce.data.collation import StepPart
from sottovoce.diagnosis.capsules import capsule as capsules
from sottovoce.diagnosis.capsules.capsule import capsules_of, is_capsule
from sottovoce.diagnosis.capsules.reading import read_capsule
from sottovoce.diagnosis.capsules.replay import replay
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import resume, start
from sottovoce.training.step import ComputedPart
from tests.diagnosis.bad_runs import bad_run, first_capsule, long_labels, lost_weights
from tests.training.small_runs import overrides
from tests.training.spoilt import exact_loss, spoil_loss

pytestmark = pytest.mark.slow

NOISE = "augmentation.white_noise_std=0.5"


@pytest.fixture(scope="module")
def infeasible(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepPart]]:
    """A run with an infeasible target, and the parts of its first bad step as the loader gave them."""
    given: list[StepPart] = []

    def inject(prepared: Prepared, loop: RunLoop) -> None:
        long_labels(prepared, loop)
        forward = loop.computer.add

        def noted(part: StepPart) -> ComputedPart:
            if part.micro_batch == 0 and not loop.computer.guard.skipped:
                given.clear()
            if not loop.computer.guard.skipped:
                given.append(StepPart(part.step, part.micro_batch, part.positions, part.batch.map_tensors(torch.clone)))
            return forward(part)

        loop.computer.add = noted  # type: ignore[method-assign]

    run_dir = bad_run(tiny_t15, tmp_path_factory.mktemp("runs"), inject, NOISE, "training.guard.num_capsules=2")
    return run_dir, given


def test_a_capsule_holds_the_step_as_it_was(infeasible: tuple[Path, list[StepPart]]) -> None:
    run_dir, given = infeasible
    event = next(e for e in read_json_lines(run_dir / "events.jsonl") if e["event"] == "step_skipped")
    capsule = read_capsule(first_capsule(run_dir))
    assert (capsule.step, capsule.verdict.cause) == (event["step"], "nonfinite_loss")
    (process,) = capsule.processes
    assert len(process.parts) == 2
    for kept, part in zip(process.parts, given, strict=True):
        assert (kept.step, kept.micro_batch, kept.positions) == (part.step, part.micro_batch, part.positions)
        assert kept.batch.trial_ids == part.batch.trial_ids
        for name in capsules.BATCH_TENSORS:
            assert torch.equal(getattr(kept.batch, name), getattr(part.batch, name))
    bad = [key for key, nats in capsule.losses.items() if not math.isfinite(nats)]
    assert bad == [("ctc", trial) for _, trial, _ in event["losses"]]
    assert [value for *_, value in event["losses"]] == ["inf"]
    assert capsule.progress.step == capsule.step - 1
    assert set(capsule.owned) == set(capsule.trainable) == {n for n in capsule.model if "running" not in n}
    assert any(summary.nonfinite for summary in capsule.verdict.gradients.values())
    assert {name.split("::")[1] for name in capsule.optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    assert capsule.environment["packages"]["torch"] == torch.__version__
    assert json.loads(capsule.metrics[-1])["step"] < capsule.step


def test_no_more_capsules_than_asked_for(infeasible: tuple[Path, list[StepPart]]) -> None:
    run_dir, _ = infeasible
    bad = [e["step"] for e in read_json_lines(run_dir / "events.jsonl") if e["event"] == "step_skipped"]
    assert len(bad) > 2
    assert sorted(capsules_of(run_dir)) == bad[:2]


def test_one_capsule_of_each_cause_is_preferred(tiny_t15: Path, tmp_path: Path) -> None:
    def inject(prepared: Prepared, loop: RunLoop) -> None:
        def poison(gradient: torch.Tensor) -> torch.Tensor | None:
            return gradient * math.nan if loop.computer.progress.step in (2, 4) else None

        def spoil(*_: object) -> None:
            if loop.computer.progress.step == 7:
                with torch.no_grad():
                    loop.computer.model.head.bias[3] = math.nan

        prepared.model.head.weight.register_hook(poison)
        prepared.model.head.register_forward_pre_hook(spoil)

    run_dir = bad_run(tiny_t15, tmp_path, inject, "training.guard.num_capsules=2")
    assert capsules_of(run_dir) == {3: "nonfinite_gradient", 8: "poisoned_weights"}


def test_lost_weights_are_kept_as_they_were_lost(tiny_t15: Path, tmp_path: Path) -> None:
    run_dir = bad_run(tiny_t15, tmp_path, lost_weights)
    capsule = read_capsule(first_capsule(run_dir))
    assert capsule.verdict.action == "roll_back"
    assert capsule.model["head.bias"][3].isnan()


def test_none_are_kept_where_none_are_asked_for(tiny_t15: Path, tmp_path: Path) -> None:
    assert not (bad_run(tiny_t15, tmp_path, long_labels, "training.guard.num_capsules=0") / "capsules").exists()


def test_an_aborted_run_keeps_its_last_step(tiny_t15: Path, tmp_path: Path) -> None:
    def inject(prepared: Prepared, loop: RunLoop) -> None:
        prepared.model.head.register_forward_hook(lambda module, inputs, logits: logits * math.nan)

    run_dir = bad_run(tiny_t15, tmp_path, inject, "training.max_bad_steps=3")
    assert sorted(capsules_of(run_dir)) == [1, 2, 3]


def test_a_full_disk_is_told_and_does_not_end_the_run(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: Any) -> None:
        folder.mkdir(parents=True)
        raise CheckpointError(f"the checkpoint could not be written to {folder} (No space left on device)")

    monkeypatch.setattr(capsules, "write_checkpoint", full)
    run_dir = bad_run(tiny_t15, tmp_path, long_labels)
    events = read_json_lines(run_dir / "events.jsonl")
    told = [e for e in events if e["event"] == "capsule_not_written"]
    assert told
    assert "No space left" in told[0]["evidence"]
    assert events[-1]["event"] == "run_finished"
    assert capsules_of(run_dir) == {}


def test_incomplete_newer_and_foreign_folders_are_refused(
    infeasible: tuple[Path, list[StepPart]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first_capsule(infeasible[0]), copy)
    index = copy / "before" / "checkpoint.json"
    whole = index.read_text()

    def refused(change: dict[str, Any], match: str) -> None:
        state = json.loads(whole)
        state["state"] |= change
        index.write_text(json.dumps(state))
        with pytest.raises(CheckpointError, match=match):
            read_capsule(copy)

    refused({"capsule": 2}, "capsule format 2, this version reads 1")
    refused({"verdict": {}}, "does not hold what a capsule must")
    refused({"config": json.loads(whole)["state"]["config"] | {"novelty": 1}}, "its configuration is not one of this")
    index.write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a checkpoint index"):
        read_capsule(copy)
    index.unlink()
    assert is_capsule(copy)
    with pytest.raises(CheckpointError, match="is incomplete"):
        read_capsule(copy)
    index.write_text(whole)
    shutil.rmtree(copy / "process-0")
    with pytest.raises(CheckpointError, match="process-0 is missing"):
        read_capsule(copy)
    with pytest.raises(CheckpointError, match="is not a capsule"):
        read_capsule(tmp_path)


def test_a_run_that_continues_knows_its_capsules(tiny_t15: Path, tmp_path: Path) -> None:
    run_dir = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "run"))))
    (run_dir / "checkpoints" / "last" / "checkpoint.json").unlink()
    (run_dir / "capsules" / "3").mkdir(parents=True)
    watches: list[RunWatch] = []

    def watch(prepared: Prepared) -> RunWatch:
        watches.append(RunWatch(prepared))
        return watches[0]

    resume(run_dir, watch=watch)
    assert watches[0].capsules.kept == {3: "damaged"}


@pytest.mark.slow
def test_each_process_keeps_its_own_part(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes over gloo: both parts are there, and the step comes back from them."""
    script = tmp_path / "poisoned.py"
    script.write_text(
        "import math, sys\n"
        "from dataclasses import replace\n"
        "from sottovoce.training.branches import BRANCHES, CTC\n"
        "from sottovoce.cli.main import main\n"
        "right = CTC.functions['ctc_loss']\n"
        "spoilt = {'ctc_loss': lambda *arguments: right(*arguments) * math.inf}\n"
        "BRANCHES['ctc'] = replace(CTC, functions=spoilt)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    common = ("trainer.accelerator=cpu", "trainer.devices=2", "training.max_bad_steps=2")
    command = [sys.executable, str(script), "train", *overrides(tiny_t15, tmp_path, "two", *common)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    capsule = read_capsule(tmp_path / "two" / "capsules" / "1")
    assert [process.rank for process in capsule.processes] == [0, 1]
    positions = [{i for part in p.parts for i in part.positions} for p in capsule.processes]
    assert not positions[0] & positions[1]
    assert not replay(capsule.folder).reproduced  # the fault was in the program, which is whole here
    right = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda *arguments: right(*arguments) * math.inf)
    found = replay(capsule.folder)
    assert found.reproduced
    assert found.exact
