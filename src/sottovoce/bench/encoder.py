"""What a training step of the state-space encoder costs, forward and backward, beside a GRU on the same input.

All take turns in one process; memory is measured in a process of its own for each, as the rise of the peak resident
size over that of a process that has already taken a very small step.

Legend: B trials, S frames, E width.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sottovoce.bench.rows import Row
from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.ssm import Block, SSMEncoder
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_reference import ssd_by_frames

WARM_UP_STEPS = 2
PROCESS_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Shape:
    """The encoders and their input."""

    layers: int = 6
    width: int = 256
    batch: int = 8
    frames: int = 250
    gru_layers: int = 3
    gru_units: int = 512

    def __str__(self) -> str:
        return f"{self.layers} layers, d {self.width}, B{self.batch} T{self.frames}"

    @property
    def settings(self) -> SSMConfig:
        """The default encoder of this size."""
        return SSMConfig(layers=self.layers, width=self.width)


SHAPES = (Shape(),)


def _by_frames(shape: Shape) -> nn.Module:
    encoder = SSMEncoder(shape.settings, shape.width)
    for module in encoder.modules():
        if isinstance(module, Block):
            module.ssm.scan = ssd_by_frames
    return encoder


OURS = "state-space encoder, both directions"
CONTESTANTS: dict[str, Callable[[Shape], nn.Module]] = {
    OURS: lambda s: SSMEncoder(s.settings, s.width),
    "… causal": lambda s: SSMEncoder(replace(s.settings, bidirectional=False), s.width),
    "… Mamba-1, N 16": lambda s: SSMEncoder(
        SSMConfig(kind="mamba1", layers=s.layers, width=s.width, state_size=16), s.width
    ),
    "… frame by frame": _by_frames,
    "GRU": lambda s: GRUEncoder(GRUConfig(s.gru_units, s.gru_layers, s.settings.dropout), s.width),
}


def bench_encoder(rounds: int = 20) -> list[Row]:
    """One row a contestant and shape; every round takes one step of each."""
    return [row for shape in SHAPES for row in _compare(shape, rounds)]


def _compare(shape: Shape, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    steps = {name: _Step(build(shape), shape) for name, build in CONTESTANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP_STEPS + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step(shape.batch, shape.frames)
            seconds[name].append(time.perf_counter() - start)
    kept = {name: found[WARM_UP_STEPS:] for name, found in seconds.items()}
    return [Row(name, str(shape), found, kept[OURS], _extra_mib(name, shape)) for name, found in kept.items()]


class _Step:
    """Forward and backward of one encoder in training mode, on an input that does not change."""

    def __init__(self, encoder: nn.Module, shape: Shape) -> None:
        self.encoder = encoder
        self.x_BSE = torch.randn(shape.batch, shape.frames, shape.width)

    def __call__(self, batch: int, frames: int) -> None:
        y_BSE, _ = self.encoder(self.x_BSE[:batch, :frames], torch.full((batch,), frames))
        y_BSE.sum().backward()
        for parameter in self.encoder.parameters():
            parameter.grad = None


def _extra_mib(name: str, shape: Shape) -> float | None:
    if not PROCESS_STATUS.exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_extra_mib, (name, shape, torch.get_num_threads()))


def _measure_extra_mib(name: str, shape: Shape, threads: int) -> float:
    """In a process of its own, so that nothing freed earlier is used again."""
    torch.set_num_threads(threads)
    step = _Step(CONTESTANTS[name](shape), shape)
    step(1, 2)
    before = _peak_mib()
    for _ in range(3):
        step(shape.batch, shape.frames)
    return _peak_mib() - before


def _peak_mib() -> float:
    (line,) = (line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
