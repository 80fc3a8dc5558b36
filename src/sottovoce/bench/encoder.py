"""What a training step of the state-space encoder costs, forward and backward, beside others on the same input.

All take turns in one process; memory is measured in a process of its own for each, as the rise of the peak resident
size over that of a process that has already taken a very small step.

Legend: B trials, S frames, E width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from sottovoce.bench.memory import in_new_process, peak_rise_mib
from sottovoce.bench.rows import Row
from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.ssm import Block, SSMEncoder
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_reference import ssd_by_frames
from sottovoce.models.transformer import TransformerConfig, TransformerEncoder

WARM_UP_STEPS = 2
HEAD_SIZE = 64
"""Of the transformer: that of the default encoder."""
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


class _TorchGRU(nn.Module):
    """PyTorch's layer, forward and backward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dropout = shape.settings.dropout if shape.gru_layers > 1 else 0.0
        self.gru = nn.GRU(shape.width, shape.gru_units, shape.gru_layers, batch_first=True, dropout=dropout)

    def forward(self, x_BSE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.gru(x_BSE)[0], lengths_B


OURS = "state-space encoder, both directions"
CONTESTANTS: dict[str, Callable[[Shape], nn.Module]] = {
    OURS: lambda s: SSMEncoder(s.settings, s.width),
    "… causal": lambda s: SSMEncoder(replace(s.settings, bidirectional=False), s.width),
    "… Mamba-1, N 16": lambda s: SSMEncoder(
        SSMConfig(kind="mamba1", layers=s.layers, width=s.width, state_size=16), s.width
    ),
    "… frame by frame": _by_frames,
    "transformer": lambda s: TransformerEncoder(
        TransformerConfig(s.width, s.layers, heads=s.width // HEAD_SIZE, dropout=s.settings.dropout), s.width
    ),
    "GRU, our backward pass": lambda s: GRUEncoder(GRUConfig(s.gru_units, s.gru_layers, s.settings.dropout), s.width),
    "GRU, torch.nn.GRU": _TorchGRU,
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
    memory = {name: in_new_process(extra_memory, name, shape) for name in kept}
    return [Row(name, str(shape), found, kept[OURS], memory[name]) for name, found in kept.items()]


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


def extra_memory(name: str, shape: Shape) -> float | None:
    """MiB of a step beyond parameters and inputs."""
    step = _Step(CONTESTANTS[name](shape), shape)
    step(1, 2)
    return peak_rise_mib(lambda: step(shape.batch, shape.frames))
