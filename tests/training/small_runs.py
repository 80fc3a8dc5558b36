"""Small runs for tests: the overrides, the command, and what must be equal between two runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sottovoce.core.checkpoints import read_state, read_tensors
from sottovoce.core.records import read_json_lines
from tests.training import warm

STEPS = 14
MACHINE = ("train/step_seconds", "train/data_wait_seconds", "train/peak_memory_mib")


def overrides(data: Path, runs: Path, name: str, *more: str) -> list[str]:
    """A run of some seconds: 16 channels, a GRU of 16 units, two trials a forward pass; preflight has its own tests."""
    return [
        "recipe=demo",
        f"data.data_root={data}",
        f"runs_dir={runs}",
        f"run_name={name}",
        "preprocessor.num_channels=16",
        "model.gru.units=16",
        f"training.steps={STEPS}",
        "training.scheduler.warmup_steps=2",
        "training.batch_size=2",
        "training.gradient_accumulation_steps=2",
        "training.validate_every_steps=5",
        "training.checkpoint_every_steps=3",
        "training.log_every_steps=2",
        "training.num_threads=1",
        "training.preflight=false",
        *more,
    ]


def command(*arguments: str, before: str = "") -> list[str]:
    """The command line in a process of its own; `before` is Python that runs first."""
    if not before:
        return [sys.executable, "-m", "sottovoce.cli.main", *arguments]
    script = f"import sys\n{before}\nfrom sottovoce.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", script, *arguments]


def train(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`sottovoce train …` to its end; `before` is Python that runs first."""
    if any(text.startswith("trainer.devices=") for text in arguments):  # starts further processes from its own command
        given = command("train", *arguments, before=before)
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(given, capture_output=True, text=True, env=environment, check=False)
    return warm.run(["train", *arguments], before)


def comparable_metrics(run_dir: Path) -> list[tuple[Any, ...]]:
    """Every recorded metric but those of the machine."""
    records = read_json_lines(run_dir / "metrics.jsonl")
    return [(r["step"], r["split"], r["name"], r["value"]) for r in records if r["name"] not in MACHINE]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit-identical weights, optimiser state, progress and metrics."""
    for checkpoint, parts in (("last", ("model", "optimizer")), ("best", ("model",))):
        first, second = a / "checkpoints" / checkpoint, b / "checkpoints" / checkpoint
        (step, state), (other_step, other_state) = read_state(first), read_state(second)
        assert step == other_step
        assert state["progress"] == other_state["progress"]
        for part in parts:
            tensors, other = read_tensors(first, part), read_tensors(second, part)
            assert tensors.keys() == other.keys()
            assert all(torch.equal(tensors[name], other[name]) for name in tensors)
    assert comparable_metrics(a) == comparable_metrics(b)
