"""State-space layers: their step sizes, how long they remember, their precision, their scan.

Legend: S frames, H heads, P head size, D channels, N state size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.models import ssm_reference
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.ssm_mamba1 import Mamba1
from sottovoce.models.ssm_mamba2 import Mamba2

LEAST_IN_RANGE: Final = 0.95
"""Share of the initial step sizes that must lie in [dt_min, dt_max] (catalogue row F1)."""
LOST_STEP: Final = math.log(2)
"""softplus(0) = 0.693: where all step sizes are when something has set their biases to 0."""
SHORT_MEMORY: Final = 0.05
"""The longest memory is short below this share of a trial. 16 heads of the default start all fall below it in 2 of
100,000 draws."""
OVERFLOW: Final = 88.0
"""ln of the largest float32: a scan that divides by its decays overflows at frame 88 / (Δ·|A|)."""
FEWEST_FRAMES: Final = 256
"""The scan is asked for at least this many: step sizes grow in training, and with them Δ·|A|."""
SCAN_TOLERANCE: Final = 1e-4
"""Largest difference from the frame-by-frame recurrence, relative to its largest output (catalogue row F2)."""
FULL: Final = (torch.float32, torch.float64)
MAX_HEADS: Final = 2
STATES: Final = 4
"""Size of the recurrence that is compared: the decays matter, not how many there are."""


@dataclass(frozen=True)
class _Layer:
    name: str
    block: Mamba1 | Mamba2

    @property
    def steps(self) -> torch.Tensor:
        """Δ at the start, [heads or channels]."""
        return functional.softplus(self.block.dt_bias.detach().float())

    @property
    def rates(self) -> torch.Tensor:
        """|A|, [heads] or [channels, N]."""
        return self.block.A_log.detach().float().exp()

    @property
    def memory_frames(self) -> torch.Tensor:
        """1 / (Δ·|A|), flat."""
        steps = self.steps if self.rates.dim() == 1 else self.steps[:, None]
        return (1 / (steps * self.rates)).flatten()


def check_ssm(untrained: UntrainedRun) -> Iterator[Finding]:
    """What is wrong with the state-space layers of a fresh model; nothing where there are none."""
    config, layers = untrained.prepared.config.model.ssm, _layers(untrained)
    if config is None or not layers:
        return
    lost = list(_lost_steps(config, layers))
    yield from lost
    if not lost:
        yield from _short_memory(untrained, layers)
    yield from _overflowing(untrained, layers)


def _layers(untrained: UntrainedRun) -> list[_Layer]:
    parts = untrained.computer.model.named_modules()
    return [_Layer(name, part) for name, part in parts if isinstance(part, Mamba1 | Mamba2)]


def _lost_steps(config: SSMConfig, layers: list[_Layer]) -> Iterator[Finding]:
    steps = torch.cat([layer.steps for layer in layers])
    slack = 1e-3
    inside = (steps >= config.dt_min * (1 - slack)) & (steps <= config.dt_max * (1 + slack))
    share = float(inside.float().mean())
    if share >= LEAST_IN_RANGE:
        return
    spike = float(((steps - LOST_STEP).abs() < slack).float().mean())
    also = f"; {spike:.0%} are 0.693 = softplus(0), the step of a bias that was set to 0" if spike else ""
    memory = torch.cat([layer.memory_frames for layer in layers])
    yield found(
        "ssm_step_size_lost",
        f"{share:.0%} of {len(steps)} step sizes lie in [{config.dt_min:g}, {config.dt_max:g}], where all begin{also}. "
        f"The longest memory is {float(memory.max()):.3g} frames.",
        "preflight",
    )


def _short_memory(untrained: UntrainedRun, layers: list[_Layer]) -> Iterator[Finding]:
    memory = torch.cat([layer.memory_frames for layer in layers])
    frames = _trial_frames(untrained)
    if not frames:
        return
    median, longest = statistics.median(frames), float(memory.max())
    if longest >= SHORT_MEMORY * median:
        return
    low, mid, high = (float(q) for q in memory.quantile(torch.tensor([0.1, 0.5, 0.9])))
    ms = frame_ms(untrained)
    yield found(
        "ssm_memory_short",
        f"The state-space layers remember {low:.3g}, {mid:.3g}, {high:.3g} and at most {longest:.3g} frames (10 %, 50 "
        f"%, 90 % and longest; {low * ms:.0f}, {mid * ms:.0f}, {high * ms:.0f} and {longest * ms:.0f} ms); half of the "
        f"trials are longer than {median:.0f} frames ({median * ms / 1000:.1f} s).",
        "preflight",
    )


def decays_in_low_precision(untrained: UntrainedRun) -> Iterator[Finding]:
    """Decay rates, step sizes or states of state-space layers that are held in less than float32."""
    layers = _layers(untrained)
    may_be_bfloat16 = untrained.prepared.config.training.precision != "float32" and not needs_another_device(untrained)
    for layer in layers:
        block = layer.block
        held: dict[str, torch.dtype] = {"A_log": block.A_log.dtype, "dt_bias": block.dt_bias.dtype}
        held["the state"] = block.start(1).hidden.dtype
        if all(dtype in FULL for dtype in held.values()):
            held = _scanned(block) if may_be_bfloat16 else {}
        low = {name: dtype for name, dtype in held.items() if dtype not in FULL}
        if low:
            name, dtype = next(iter(low.items()))
            eps = torch.finfo(dtype).eps
            yield found(
                "ssm_low_precision",
                f"{layer.name}: {name} is {str(dtype).removeprefix('torch.')}, which knows no decay between "
                f"{1 - eps / 2:.4f} and 1: what should be forgotten in more than {2 / eps:.0f} frames is kept for "
                "ever, or for that long.",
                "preflight",
            )
            return


def _scanned(block: Mamba1 | Mamba2) -> dict[str, torch.dtype]:
    """What the block's scan is given inside the autocast of a bfloat16 run."""
    given: dict[str, torch.dtype] = {}
    names = ("the scan's input", "its step sizes", "its decay rates", "its B", "its C", "its state")
    scan = block.scan

    def noting(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given.update(zip(names, (x.dtype for x in inputs), strict=True))
        return scan(*inputs)

    device = block.A_log.device
    block.scan = noting
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            block(torch.zeros(1, 2, block.in_proj.in_features, device=device), block.start(1), None)
    finally:
        block.scan = scan
    return given


def _overflowing(untrained: UntrainedRun, layers: list[_Layer]) -> Iterator[Finding]:
    """The scan at the longest trial, with the largest decays of the layers, beside the recurrence frame by frame."""
    if needs_another_device(untrained):
        return
    frames = max([FEWEST_FRAMES, *_trial_frames(untrained)])
    fastest = max(layers, key=lambda layer: 1 / float(layer.memory_frames.min()))
    outputs, expected = _both_scans(fastest, frames)
    decay = 1 / float(fastest.memory_frames.min())
    bad = ~outputs.isfinite()
    difference = (outputs - expected).abs().max() / expected.abs().max()
    if not bool(bad.any()) and float(difference) <= SCAN_TOLERANCE:
        return
    first = int(bad.any(-1).nonzero()[0]) if bool(bad.any()) else -1
    what = f"is not finite from frame {first} on" if first >= 0 else f"is off by {float(difference):.1e} of its size"
    yield found(
        "scan_overflow",
        f"{fastest.name}: over {frames} frames at its largest Δ·|A| = {decay:.3g} the scan {what}, the recurrence "
        f"frame by frame is finite; a scan that divides by its decays overflows at frame 88/{decay:.3g} = "
        f"{OVERFLOW / decay:.0f}.",
        "preflight",
    )


def _both_scans(layer: _Layer, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [S, …] of the layer's own scan and of the reference, for constant largest steps and random inputs."""
    generator = torch.Generator().manual_seed(1)
    block = layer.block
    scan: Any = block.scan

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, frames, *shape, generator=generator)

    step = float(layer.steps.max())
    with torch.no_grad():
        if isinstance(block, Mamba2):
            a_H = -layer.rates.topk(min(MAX_HEADS, len(layer.rates))).values
            heads, reference = len(a_H), ssm_reference.ssd_by_frames
            inputs = (random(heads, 2), torch.full((1, frames, heads), step), a_H, random(1, STATES), random(1, STATES))
            initial = torch.zeros(1, heads, 2, STATES)
            return scan(*inputs, initial)[0][0].flatten(1), reference(*inputs, initial)[0][0].flatten(1)
        a_DN = -layer.rates[:MAX_HEADS].topk(min(STATES, layer.rates.shape[1])).values
        size, states = a_DN.shape
        given = (random(size), torch.full((1, frames, size), step), a_DN, random(states), random(states))
        start = torch.zeros(1, size, states)
        return scan(*given, start)[0][0], ssm_reference.selective_scan_by_frames(*given, start)[0][0]


def _trial_frames(untrained: UntrainedRun) -> list[int]:
    """Encoder frames of each training trial, without augmentation."""
    prepared = untrained.prepared
    steps = [prepared.trial_set.trials[i].num_steps for i in prepared.train_indices]
    return [
        untrained.computer.model.output_lengths(untrained.computer.pipeline.shortest_length(n, False)) for n in steps
    ]


def frame_ms(untrained: UntrainedRun) -> float:
    """Time from one encoder frame to the next."""
    return untrained.prepared.config.preprocessor.feature_ms * untrained.computer.model.bins_per_frame


def needs_another_device(untrained: UntrainedRun) -> bool:
    """The model has kernels that cannot run where it is now: those of `mamba_ssm`, outside of a GPU."""
    ssm, device = untrained.prepared.config.model.ssm, next(untrained.computer.model.parameters()).device
    return ssm is not None and ssm.backend == "mamba_ssm" and device.type != "cuda"
