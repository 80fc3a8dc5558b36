"""What the transducer loss costs: our routes beside others, and beside arithmetic that no such loss can do without.

The yardstick is `torch.logsumexp(logits, -1).sum().backward()` on the same logits: one pass over them each way.
Contestants take turns in one process; the memory that each needs beside its inputs is measured in one of its own.

Legend: B trials, T frames, U labels, H joint units, V symbols.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from sottovoce.bench.memory import in_new_process, peak_rise_mib
from sottovoce.bench.rows import Row
from sottovoce.losses import fused_transducer_loss, transducer_loss

WARM_UP_ROUNDS: Final = 2
MIB: Final = 1024


@dataclass(frozen=True)
class Shape:
    """A batch of equally long trials, so that nothing depends on how lengths are drawn."""

    trials: int
    frames: int
    labels: int
    symbols: int
    units: int = 0
    """Width of the joint; 0 where the logits are given."""

    def __str__(self) -> str:
        width = f" H{self.units}" if self.units else ""
        return f"B{self.trials} T{self.frames} U{self.labels}{width} V{self.symbols}"


SHAPES = (Shape(4, 250, 40, 41), Shape(8, 500, 60, 41), Shape(4, 250, 40, 512))
JOINT_SHAPES = (Shape(4, 250, 40, 41, units=512),)
TINY = Shape(1, 2, 1, 3, units=2)
LOSSES: Final = {
    "sottovoce, compiled": "compiled_loss",
    "sottovoce, plain PyTorch": "scan_loss",
    "torchaudio": "torchaudio_loss",
    "torch.logsumexp, forward + backward": "yardstick",
}
JOINTS: Final = {"sottovoce, fused joint": "fused_joint", "plain joint, sottovoce's loss": "plain_joint"}


class Inputs:
    """Random logits, or inputs of a joint, and the targets."""

    def __init__(self, shape: Shape, joint: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = shape.labels + 1
        sizes: list[tuple[int, ...]] = [(shape.trials, shape.frames, rows, shape.symbols)]
        if joint:
            width = shape.units
            sizes = [(shape.trials, n, width) for n in (shape.frames, rows)] + [
                (shape.symbols, width),
                (shape.symbols,),
            ]
        self.values = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
        self.targets = torch.randint(1, shape.symbols, (shape.trials, shape.labels), generator=generator)
        self.lengths = torch.full((shape.trials,), shape.frames), torch.full((shape.trials,), shape.labels)

    def clear(self) -> None:
        """Frees the gradients."""
        for value in self.values:
            value.grad = None


def compiled_loss(inputs: Inputs) -> torch.Tensor:
    """Ours on a CPU."""
    return transducer_loss(inputs.values[0], inputs.targets, *inputs.lengths, route="compiled")


def scan_loss(inputs: Inputs) -> torch.Tensor:
    """Ours where there is no kernel."""
    return transducer_loss(inputs.values[0], inputs.targets, *inputs.lengths, route="scan")


def yardstick(inputs: Inputs) -> torch.Tensor:
    """No loss: the arithmetic to compare with."""
    return torch.logsumexp(inputs.values[0], -1)


def torchaudio_loss(inputs: Inputs) -> torch.Tensor:
    """torchaudio's operator; it left the Python interface in 2.9."""
    rnnt_loss: Any = importlib.import_module("torchaudio.functional").rnnt_loss
    targets, lengths = inputs.targets.int(), [length.int() for length in inputs.lengths]
    nats: torch.Tensor = rnnt_loss(inputs.values[0], targets, *lengths, blank=0, reduction="none")
    return nats


def fused_joint(inputs: Inputs) -> torch.Tensor:
    """Ours, joint included."""
    encoder, predictor, weight, bias = inputs.values
    return fused_transducer_loss(encoder, predictor, weight, bias, inputs.targets, *inputs.lengths)


def plain_joint(inputs: Inputs) -> torch.Tensor:
    """The joint as it is usually written."""
    encoder, predictor, weight, bias = inputs.values
    logits = torch.tanh(encoder[:, :, None] + predictor[:, None]) @ weight.T + bias
    return transducer_loss(logits, inputs.targets, *inputs.lengths)


def bench_transducer_loss(rounds: int = 20) -> list[Row]:
    """One row a contestant and shape: first the loss of given logits, then joint and loss together."""
    losses = {name: function for name, function in LOSSES.items() if name != "torchaudio" or _has_torchaudio()}
    rows = [row for shape in SHAPES for row in _compare(losses, shape, rounds)]
    return rows + [row for shape in JOINT_SHAPES for row in _compare(JOINTS, shape, rounds)]


def _has_torchaudio() -> bool:
    """Whether torchaudio is installed and still has the loss. One that cannot be loaded is a broken installation."""
    if importlib.util.find_spec("torchaudio") is None:
        return False
    return "rnnt_loss" in dir(importlib.import_module("torchaudio.functional"))


def _compare(contestants: dict[str, str], shape: Shape, rounds: int) -> list[Row]:
    inputs = Inputs(shape, joint=contestants is JOINTS)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(WARM_UP_ROUNDS + rounds):
        for name, function in contestants.items():
            inputs.clear()
            start = time.perf_counter()
            _step(globals()[function], inputs)
            seconds[name].append(time.perf_counter() - start)
    ours = seconds[next(iter(contestants))][WARM_UP_ROUNDS:]
    return [
        Row(
            name,
            str(shape),
            found[WARM_UP_ROUNDS:],
            ours,
            peak_mib=in_new_process(extra_memory, contestants[name], shape),
        )
        for name, found in seconds.items()
    ]


def _step(contestant: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> None:
    contestant(inputs).sum().backward()  # type: ignore[no-untyped-call]


def extra_memory(function: str, shape: Shape) -> float | None:
    """MiB of one forward and backward pass beyond its inputs."""
    contestant, joint = globals()[function], function in JOINTS.values()
    _step(contestant, Inputs(TINY, joint))  # loads and compiles what there is to load and compile
    inputs = Inputs(shape, joint)
    return peak_rise_mib(lambda: _step(contestant, inputs))
