"""Capsules: everything a bad step was made of, so that it can be computed again without the data.

    capsules/42/before/     weights and moments before the step, random state; configuration, curriculum, progress …
    capsules/42/process-0/  the batch of that process as the loader gave it, its losses by trial

Both are checkpoints (`core/checkpoints.py`): safetensors and JSON, each replaced as a whole, nothing in them is ever
executed. `before` is written last by the main process; a capsule without it is not complete. `reading.py` reads
one back.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.checkpoints import (
    Tensors,
    optimizer_tensors,
    read_state,
    write_checkpoint,
)
from sottovoce.core.configuration import plain
from sottovoce.core.errors import CheckpointError
from sottovoce.data.collation import StepPart
from sottovoce.runs.directory import RunDirectory
from sottovoce.training.config import RunConfig
from sottovoce.training.environment import describe_environment
from sottovoce.training.stages import Curriculum
from sottovoce.training.state import step_state
from sottovoce.training.step import Progress
from sottovoce.training.teachers import TeacherTargets
from sottovoce.training.verdict import Verdict
from sottovoce.training.watch import StepView

FORMAT: Final = 1
BEFORE: Final = "before"
LAST_METRICS: Final = 200
"""Lines of `metrics.jsonl` that a capsule keeps: the metrics of the last steps (chosen)."""
BATCH_TENSORS: Final = ("signal", "lengths_B", "labels_BU", "label_lengths_B", "session_B")
TEACHER_TENSORS: Final = ("log_q_BSV", "weights_BS")
Losses = dict[tuple[str, str], float]
ModeLabels = dict[str, tuple[float, bool]]


@dataclass(frozen=True)
class ProcessPart:
    """What one process saw of the step."""

    rank: int
    parts: tuple[StepPart, ...]
    losses: Losses
    """Nats by (loss, trial id)."""
    modes: ModeLabels
    """Probability of vocalised speech, and whether it is known, by trial id; empty where no mode is learnt."""
    teacher_targets: tuple[TeacherTargets, ...] = ()
    """What the teachers said of each part, where there were any."""


@dataclass(frozen=True)
class Capsule:
    """A bad step, read back."""

    folder: Path
    step: int
    """Steps done, the bad one included."""
    verdict: Verdict
    """What the guard said; its gradients are those that it has dropped."""
    config: RunConfig
    curriculum: Curriculum
    progress: Progress
    """Before the step."""
    blank: int
    bfloat16: bool
    device: str
    """`cpu` or `cuda`."""
    environment: dict[str, Any]
    balance: dict[str, float]
    use_flow_bridge: bool
    owned: tuple[str, ...]
    """Parameters of the optimiser."""
    trainable: tuple[str, ...]
    """Parameters that gradients could reach in this step."""
    metrics: tuple[str, ...]
    """The last lines of `metrics.jsonl` before it."""
    model: Tensors
    optimizer: Tensors
    random: Tensors
    processes: tuple[ProcessPart, ...]

    @property
    def losses(self) -> Losses:
        """Nats by (loss, trial id), of all processes."""
        return {key: nats for process in self.processes for key, nats in process.losses.items()}


def write_capsule(run_dir: Path, view: StepView, bfloat16: bool) -> Path:
    """Keep the bad step that `view` shows; every process calls this.

    Raises:
        CheckpointError: the file system refused; nothing is left of the capsule.
    """
    folder, processes = RunDirectory(run_dir).capsules / str(view.step), view.computer.processes
    try:
        _write_process(folder / f"process-{processes.rank}", view)
        if processes.rank == 0:
            _write_before(folder / BEFORE, run_dir, view, bfloat16)
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _write_process(folder: Path, view: StepView) -> None:
    record, parts = view.record, []
    tensors: Tensors = {}
    for i, part in enumerate(record.parts):
        tensors |= {f"{i}.{name}": getattr(part.batch, name) for name in BATCH_TENSORS}
        where = {"step": part.step, "micro_batch": part.micro_batch, "positions": part.positions}
        parts.append(where | {"trial_ids": part.batch.trial_ids})
    for i, targets in enumerate(record.teacher_targets):
        tensors |= {f"{i}.{name}": getattr(targets, name) for name in TEACHER_TENSORS}
    state = {
        "parts": parts,
        "losses": [[loss, trial, _written(nats)] for (loss, trial), nats in record.losses.items()],
        "modes": _mode_labels(view),
    }
    write_checkpoint(folder, view.step, {"batch": tensors}, state)


def _mode_labels(view: StepView) -> dict[str, list[Any]]:
    modes = view.computer.modes
    if modes is None:
        return {}
    trials = [trial for part in view.record.parts for trial in part.batch.trial_ids]
    vocalised_B, known_B = modes.of(trials, torch.device("cpu"))
    return {t: [v, k] for t, v, k in zip(trials, vocalised_B.tolist(), known_B.tolist(), strict=True)}


def _write_before(folder: Path, run_dir: Path, view: StepView, bfloat16: bool) -> None:
    computer, verdict = view.computer, view.verdict
    names: dict[torch.Tensor, str] = {p: n for n, p in computer.named.items()}
    weights = dict(computer.model.state_dict())
    moments = optimizer_tensors(view.optimizer, names)
    if verdict.lost is not None:  # the guard has put others in their place meanwhile
        weights |= verdict.lost.weights
        moments = {f"{n}::{key}": value for n, kept in verdict.lost.moments.items() for key, value in kept.items()}
    owned = {id(p) for group in view.optimizer.param_groups for p in group["params"]}
    state = {
        "capsule": FORMAT,
        "verdict": _verdict_state(verdict),
        "config": plain(computer.config),
        "stages": [{"config": plain(stage.config), "steps": stage.steps} for stage in computer.curriculum.stages],
        "state": step_state(computer),
        "step_before": view.record.parts[0].step if view.record.parts else view.step - 1,
        "blank": computer.blank,
        "bfloat16": bfloat16,
        "device": computer.device.type,
        "environment": describe_environment(computer.config.seed),
        "owned": [name for name, p in computer.named.items() if id(p) in owned],
        "trainable": [name for name, p in computer.named.items() if p.requires_grad],
        "metrics": _last_lines(RunDirectory(run_dir).metrics),
        "num_processes": computer.processes.count,
    }
    random = {"cpu": torch.get_rng_state()}
    write_checkpoint(folder, view.step, {"model": weights, "optimizer": moments, "random": random}, state)


def _verdict_state(verdict: Verdict) -> dict[str, Any]:
    return {
        "action": verdict.action,
        "cause": verdict.cause,
        "evidence": verdict.evidence,
        "gradient_norm": _written(verdict.gradient_norm),
        "limit": _written(verdict.limit),
        "group_norms": {name: _written(norm) for name, norm in verdict.group_norms.items()},
        "gradients": {
            name: {key: _written(value) for key, value in asdict(summary).items()}
            for name, summary in verdict.gradients.items()
        },
    }


def _written(number: float) -> float | str:
    """JSON knows neither NaN nor infinity."""
    return number if math.isfinite(number) else str(number)


def _last_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_METRICS:]


def is_capsule(folder: Path) -> bool:
    """True for a folder that was written as a capsule, complete or not."""
    return (folder / BEFORE).is_dir() or (folder / "process-0").is_dir()


def capsules_of(run_dir: Path) -> dict[int, str]:
    """The cause of each capsule of a run, by step; `damaged` where it cannot be told."""
    found = {}
    for folder in sorted(RunDirectory(run_dir).capsules.glob("*")):
        if not folder.name.isdecimal():
            continue
        try:
            _, state = read_state(folder / BEFORE)
            found[int(folder.name)] = str(state["verdict"]["cause"])
        except (CheckpointError, KeyError, TypeError):
            found[int(folder.name)] = "damaged"
    return found
