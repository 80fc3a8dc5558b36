"""Run directories written by hand: a healthy run of some hundred steps, and whatever a test changes in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from sottovoce.core.checkpoints import write_checkpoint
from sottovoce.core.configuration import plain
from sottovoce.runs.names import WatchKey
from sottovoce.training.composition import compose_config
from sottovoce.training.config import RunConfig
from sottovoce.training.schedules import learning_rate_factor
from sottovoce.training.verdict import Cause, LossKey, Verdict

Curve = Callable[[int], float]
STEPS = 400
LOG, VALIDATE = 10, 40
MODEL = {"num_channels": 16, "num_sessions": 2, "num_symbols": 41}
PARAMETERS = ("encoder.layers.0.weight", "head.weight")


class RunDirectory:
    """A run of the demo recipe under construction; `write` makes the files."""

    def __init__(self, folder: Path, *overrides: str, steps: int = STEPS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.steps, self.planned = folder, steps, steps
        self.config: RunConfig = compose_config(
            [
                "recipe=demo",
                "data.data_root=/no/such/data",
                f"training.steps={steps}",
                f"training.log_every_steps={LOG}",
                f"training.validate_every_steps={VALIDATE}",
                "training.scheduler.warmup_steps=20",
                "model.gru.units=16",
                *(f"model.{key}={value}" for key, value in MODEL.items()),
                *overrides,
            ]
        )
        self.curves: dict[str, Curve] = {
            "train/ctc_loss": lambda s: 5 + 95 * math.exp(-s / 80),
            "train/loss": lambda s: self.curves["train/ctc_loss"](s),
            "train/gradient_norm": lambda s: 3 + 20 * math.exp(-s / 30) + 0.3 * (s // LOG % 3),
            "train/blank_fraction": lambda s: 0.98 if 30 < s < 120 else 0.6,
            "train/step_seconds": lambda s: 0.05,
            "learning_rate/other": self.rate,
        }
        self.validation: dict[str, Curve] = {
            "val/loss": lambda s: 6 + 90 * math.exp(-s / 80),
            "val/per": lambda s: 0.1 + 0.9 * math.exp(-s / 100),
            "val/wer": lambda s: 0.05 + 0.95 * self.validation["val/per"](s),
            "val/blank_fraction": lambda s: 0.6,
        }
        self.environment: dict[str, Any] = {"sottovoce": "0.1.0"}
        self.events: list[dict[str, Any]] = []
        self.happened(
            0,
            "stage_started",
            stage="train",
            num_steps=steps,
            loss_weights={"ctc": 1.0},
            components=["ctc_decoder", "encoder", "preprocessor"],
            trainable_parameters=5000,
        )
        self.optimizer_steps = steps
        self.best_step: int | None = None
        self.is_finished = True
        self.floors: dict[str, float | None] = {}
        """Input-blind floors as a monitor leaves them."""

    def rate(self, step: int) -> float:
        """The mean learning rate of the steps that the line at `step` stands for."""
        scheduler = self.config.training.scheduler
        bad = {event["step"] for event in self.events if event["event"] == "step_skipped"}
        updates = [sum(s not in bad for s in range(1, s)) for s in range(step - LOG + 1, step + 1) if s not in bad]
        factors = [learning_rate_factor(done, scheduler, self.planned) for done in updates]
        return self.config.training.optimizer.lr * sum(factors) / len(factors)

    def happened(self, step: int, event: str, **details: Any) -> None:
        """Add an event."""
        self.events.append({"step": step, "event": event, **details})

    def skipped(
        self, cause: Cause, *steps: int, losses: Mapping[LossKey, float] | None = None, parameters: Sequence[str] = ()
    ) -> None:
        """Add steps that the guard refused."""
        verdict = Verdict(
            math.nan, "skip", cause, "as the guard says", losses=losses or {}, parameters=tuple(parameters)
        )
        for step in steps:
            self.happened(step, "step_skipped", **verdict.as_event())

    def write(self) -> Path:
        """Write everything and return the folder."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(plain(self.config), sort_keys=False))
        (self.folder / "environment.json").write_text(json.dumps(self.environment))
        lines: list[dict[str, Any]] = [
            {"step": step, "split": name.split("/")[0], "name": name, "value": curve(step)}
            for curves, every in ((self.curves, LOG), (self.validation, VALIDATE))
            for name, curve in curves.items()
            for step in range(every, self.steps + 1, every)
        ]
        lines.sort(key=lambda line: line["step"])
        write_lines(self.folder / "metrics.jsonl", lines)
        self._checkpoints()
        finished = [{"step": self.steps, "event": "run_finished"}] if self.is_finished else []
        write_lines(self.folder / "events.jsonl", sorted([*self.events, *finished], key=lambda e: int(e["step"])))
        return self.folder

    def _checkpoints(self) -> None:
        folder, updates = self.folder / "checkpoints", self.steps - sum("skip" in e["event"] for e in self.events)
        progress = {"step": self.steps, "updates": updates, "best_by": "val/per greedy"}
        state = {"progress": progress, "use_flow_bridge": False}
        if self.floors:
            state["watch"] = {WatchKey.MONITOR: {"floor": self.floors}}
        counted = float(min(updates, self.optimizer_steps))
        moments = {f"{name}::step": torch.tensor(counted) for name in PARAMETERS}
        write_checkpoint(folder / "last", self.steps, {"model": {}, "optimizer": moments}, state)
        chooses = self.validation["val/per" if "val/per" in self.validation else "val/loss"]
        metric = {step: chooses(step) for step in range(VALIDATE, self.steps + 1, VALIDATE)}
        best = self.best_step or min(metric, key=lambda step: metric[step])
        if self.best_step != 0:
            write_checkpoint(folder / "best", best, {"model": {}}, state)


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
