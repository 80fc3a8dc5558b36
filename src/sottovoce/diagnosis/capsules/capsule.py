"""Capsules: everything a bad step was made of, so that it can be computed again without the data.

    capsules/42/before/     weights and moments before the step, random state; configuration, curriculum, progress …
    capsules/42/process-0/  the batch of that process as the loader gave it, its losses by trial

Both are checkpoints (`core/checkpoints.py`): safetensors and JSON, each replaced as a whole, nothing in them is ever
executed. `before` is written last by the main process; a capsule without it is not complete.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from sottovoce.core.checkpoints import (
    Tensors,
    has_checkpoint,
    optimizer_tensors,
    read_state,
    read_tensors,
    write_checkpoint,
)
from sottovoce.core.configuration import build, plain
from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart
from sottovoce.training.config import RunConfig
from sottovoce.training.environment import describe_environment
from sottovoce.training.module import DecoderTraining, Progress
from sottovoce.training.stages import Curriculum, Stage, StageConfig
from sottovoce.training.state import module_state, progress_from
from sottovoce.training.verdict import GradientSummary, Verdict
from sottovoce.training.watch import StepView

FORMAT: Final = 1
FOLDER: Final = "capsules"
BEFORE: Final = "before"
LAST_METRICS: Final = 200
"""Lines of `metrics.jsonl` that a capsule keeps (stability.md section 0.4: the last 200 values)."""
BATCH_TENSORS: Final = ("signal", "lengths_B", "labels_BU", "label_lengths_B", "session_B")
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
    folder, module = run_dir / FOLDER / str(view.step), view.module
    try:
        _write_process(folder / f"process-{module.global_rank}", view)
        if module.global_rank == 0:
            _write_before(folder / BEFORE, run_dir, view, bfloat16)
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _write_process(folder: Path, view: StepView) -> None:
    module, parts = view.module, []
    tensors: Tensors = {}
    for i, part in enumerate(module.parts):
        tensors |= {f"{i}.{name}": getattr(part.batch, name) for name in BATCH_TENSORS}
        where = {"step": part.step, "micro_batch": part.micro_batch, "positions": part.positions}
        parts.append(where | {"trial_ids": part.batch.trial_ids})
    state = {
        "parts": parts,
        "losses": [[loss, trial, _written(nats)] for (loss, trial), nats in module.losses.items()],
        "modes": _mode_labels(module),
    }
    write_checkpoint(folder, view.step, {"batch": tensors}, state)


def _mode_labels(module: DecoderTraining) -> dict[str, list[Any]]:
    if module.modes is None:
        return {}
    trials = [trial for part in module.parts for trial in part.batch.trial_ids]
    vocalised_B, known_B = module.modes.of(trials, torch.device("cpu"))
    return {t: [v, k] for t, v, k in zip(trials, vocalised_B.tolist(), known_B.tolist(), strict=True)}


def _write_before(folder: Path, run_dir: Path, view: StepView, bfloat16: bool) -> None:
    module, verdict = view.module, view.verdict
    names: dict[torch.Tensor, str] = {p: n for n, p in module.named.items()}
    weights = dict(module.model.state_dict())
    moments = optimizer_tensors(view.optimizer, names)
    if verdict.lost is not None:  # the guard has put others in their place meanwhile
        weights |= verdict.lost.weights
        moments = {f"{n}::{key}": value for n, kept in verdict.lost.moments.items() for key, value in kept.items()}
    owned = {id(p) for group in view.optimizer.param_groups for p in group["params"]}
    state = {
        "capsule": FORMAT,
        "verdict": _verdict_state(verdict),
        "config": plain(module.config),
        "stages": [{"config": plain(stage.config), "steps": stage.steps} for stage in module.curriculum.stages],
        "module": module_state(module),
        "step_before": module.parts[0].step if module.parts else view.step - 1,
        "blank": module.blank,
        "bfloat16": bfloat16,
        "device": module.device.type,
        "environment": describe_environment(module.config.seed),
        "owned": [name for name, p in module.named.items() if id(p) in owned],
        "trainable": [name for name, p in module.named.items() if p.requires_grad],
        "metrics": _last_lines(run_dir / "metrics.jsonl"),
        "num_processes": module.world_size,
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
    for folder in sorted((run_dir / FOLDER).glob("*")):
        if not folder.name.isdecimal():
            continue
        try:
            _, state = read_state(folder / BEFORE)
            found[int(folder.name)] = str(state["verdict"]["cause"])
        except (CheckpointError, KeyError, TypeError):
            found[int(folder.name)] = "damaged"
    return found


def read_capsule(folder: Path) -> Capsule:
    """The capsule in `folder`.

    Raises:
        CheckpointError: it is no capsule, incomplete, damaged, or of another version.
    """
    if not is_capsule(folder):
        raise CheckpointError(f"{folder} is not a capsule: it holds neither {BEFORE} nor process-0")
    if not has_checkpoint(folder / BEFORE):
        raise CheckpointError(f"{folder} is incomplete: the run ended while it was written; use another capsule")
    step, state = read_state(folder / BEFORE)
    if state.get("capsule") != FORMAT:
        raise CheckpointError(
            f"{folder} has capsule format {state.get('capsule')}, this version reads {FORMAT}; update sottovoce"
        )
    try:
        processes = tuple(_read_process(folder / f"process-{i}", step) for i in range(state["num_processes"]))
        return _capsule(folder, step, state, processes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} does not hold what a capsule must ({error!r}); it is damaged") from error
    except ConfigurationError as error:
        raise CheckpointError(
            f"{folder}: its configuration is not one of this version ({error}); replay it with sottovoce "
            f"{state['environment'].get('sottovoce')}"
        ) from error


def _capsule(folder: Path, step: int, state: Mapping[str, Any], processes: tuple[ProcessPart, ...]) -> Capsule:
    config = build(RunConfig, state["config"])
    stages = tuple(Stage(build(StageConfig, s["config"], "training.stages"), s["steps"]) for s in state["stages"])
    module, training = state["module"], config.training
    progress = progress_from(module["progress"] | {"step": state["step_before"]})
    return Capsule(
        folder=folder,
        step=step,
        verdict=_verdict(state["verdict"]),
        config=config,
        curriculum=Curriculum(stages, training.rnnt_warmup_batches, training.rnnt_ramp_steps),
        progress=progress,
        blank=int(state["blank"]),
        bfloat16=bool(state["bfloat16"]),
        device=str(state["device"]),
        environment=dict(state["environment"]),
        balance=dict(module["balance"]),
        use_flow_bridge=bool(module["use_flow_bridge"]),
        owned=tuple(state["owned"]),
        trainable=tuple(state["trainable"]),
        metrics=tuple(state["metrics"]),
        model=read_tensors(folder / BEFORE, "model"),
        optimizer=read_tensors(folder / BEFORE, "optimizer"),
        random=read_tensors(folder / BEFORE, "random"),
        processes=processes,
    )


def _verdict(state: Mapping[str, Any]) -> Verdict:
    return Verdict(
        gradient_norm=float(state["gradient_norm"]),
        action=state["action"],
        cause=state["cause"],
        evidence=str(state["evidence"]),
        group_norms={name: float(norm) for name, norm in state["group_norms"].items()},
        limit=float(state["limit"]),
        gradients={
            name: GradientSummary(**{key: float(value) for key, value in summary.items()})
            for name, summary in state["gradients"].items()
        },
    )


def _read_process(folder: Path, step: int) -> ProcessPart:
    if not has_checkpoint(folder):
        raise CheckpointError(f"{folder.parent} is incomplete: {folder.name} is missing; copy the whole folder")
    its_step, state = read_state(folder)
    if its_step != step:
        raise CheckpointError(f"{folder.parent} mixes the steps {its_step} and {step}; it is damaged")
    tensors = read_tensors(folder, "batch")
    parts = []
    for i, part in enumerate(state["parts"]):
        batch = Batch(**{name: tensors[f"{i}.{name}"] for name in BATCH_TENSORS}, trial_ids=tuple(part["trial_ids"]))
        parts.append(StepPart(part["step"], part["micro_batch"], tuple(part["positions"]), batch))
    return ProcessPart(
        rank=int(folder.name.removeprefix("process-")),
        parts=tuple(parts),
        losses={(loss, trial): float(nats) for loss, trial, nats in state["losses"]},
        modes={trial: (float(vocalised), bool(known)) for trial, (vocalised, known) in state["modes"].items()},
    )
