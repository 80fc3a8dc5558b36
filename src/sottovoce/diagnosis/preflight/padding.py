"""A trial alone and the same trial padded: where they differ, which module read the padding.

Legend: B trials, T bins, C channels, N samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Batch
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.models.compose import DecoderModel, Encoded
from sottovoce.models.gru import GRUEncoder
from sottovoce.models.ssm import BidirectionalLayer, Block, SSMEncoder
from sottovoce.models.ssm_mamba1 import Mamba1
from sottovoce.models.ssm_mamba2 import Mamba2
from sottovoce.models.ssm_parts import CausalConv

TOLERANCE: Final = 1e-4
"""Largest difference on valid frames, relative to the largest value; float32 sums of another shape give 1e-6."""
MOST_FRAMES: Final = 12
"""A trial is cut to about this many frames: padding shows in any."""
RECURRENT: Final = (nn.RNNBase, GRUEncoder, SSMEncoder, BidirectionalLayer, Block, Mamba1, Mamba2, CausalConv)
"""Modules with a direction: what they read of the padding, they read by walking through it."""
PIPELINE: Final = "the feature pipeline"


@dataclass(frozen=True)
class _Seen:
    """One tensor on its way through the model."""

    module: str
    kind: str
    """`input` or `output`."""
    value: torch.Tensor


def check_padding(untrained: UntrainedRun) -> Iterator[Finding]:
    """In evaluation: alone against beside a trial twice as long. In training, without dropout: the same two trials with
    and without more padding, since a norm over the batch may depend on batch mates but not on emptiness.
    """
    alone = _cut(untrained)
    twice = _beside_longer(alone)
    pair = _beside_equal(alone)
    cases = (
        (False, alone, twice, "beside a trial twice as long"),
        (True, pair, _padded(pair), "padded to twice its length"),
    )
    for training, reference, other, how in cases:
        with _still(untrained.computer.model, training):
            difference = _difference(untrained, reference, other)
            if difference <= TOLERANCE:
                continue
            culprit, module = _first_culprit(untrained, reference, other)
        code = "reversal_reads_padding" if isinstance(module, RECURRENT) else "padding_dependence"
        mode = "training" if training else "evaluation"
        yield found(
            code,
            f"In {mode} mode the valid frames of a trial of {int(reference.lengths_B[0])} steps differ by "
            f"{difference:.2g} of their size when it is {how}; the first to differ: {culprit}.",
            "preflight",
        )
        return


def _cut(untrained: UntrainedRun) -> Batch:
    """The batch's first trial alone, at most some frames of it."""
    model, pipeline, batch = untrained.computer.model, untrained.computer.pipeline, untrained.whole
    size = int(batch.lengths_B[0])
    half = size // 2
    while half and model.output_lengths(pipeline.shortest_length(half, False)) >= MOST_FRAMES:
        size, half = half, half // 2
    device = next(model.parameters()).device
    first = batch.map_tensors(lambda x: x[:1].clone())
    alone = replace(first, signal=first.signal[:, :size], lengths_B=torch.tensor([size]), trial_ids=batch.trial_ids[:1])
    return alone.to(device)


def _beside_longer(alone: Batch) -> Batch:
    longer = torch.cat([alone.signal.flip(1), alone.signal], 1)
    joined = torch.cat([_filled(alone.signal), longer])
    return _doubled(alone, joined, (alone.signal.shape[1], longer.shape[1]))


def _beside_equal(alone: Batch) -> Batch:
    size = alone.signal.shape[1]
    return _doubled(alone, torch.cat([alone.signal, alone.signal.flip(1)]), (size, size))


def _padded(pair: Batch) -> Batch:
    return replace(pair, signal=_filled(pair.signal))


def _filled(signal: torch.Tensor) -> torch.Tensor:
    return torch.cat([signal, torch.zeros_like(signal)], 1)


def _doubled(alone: Batch, signal: torch.Tensor, lengths: tuple[int, int]) -> Batch:
    """Two trials with the labels and the session of one."""
    both = alone.map_tensors(lambda x: torch.cat([x, x]))
    ids = alone.trial_ids[0], f"{alone.trial_ids[0]} again"
    return replace(both, signal=signal, lengths_B=torch.tensor(lengths, device=signal.device), trial_ids=ids)


@contextlib.contextmanager
def _still(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in one mode, without dropout; buffers, flags and the random state come back."""
    flags = [(part, part.training) for part in model.modules()]
    rates: list[tuple[nn.Module, str, float]]
    rates = [(part, "p", part.p) for part in model.modules() if isinstance(part, nn.Dropout)]
    rates += [(part, "dropout", part.dropout) for part in model.modules() if isinstance(part, nn.RNNBase)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(()):  # without dropout nothing is drawn
        try:
            model.train(training)
            for part, name, _ in rates:
                setattr(part, name, 0.0)
            yield
        finally:
            for part, name, rate in rates:
                setattr(part, name, rate)
            for part, was_training in flags:
                part.training = was_training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _run(untrained: UntrainedRun, batch: Batch) -> tuple[torch.Tensor, Encoded, torch.Tensor]:
    """Features, frames and logits; with gradients in training mode, because some layers then take another way."""
    model: DecoderModel = untrained.computer.model
    features = untrained.computer.pipeline.evaluate(batch.map_tensors(torch.Tensor.clone))
    with torch.set_grad_enabled(model.training):
        encoded = model.encode(features.signal, features.lengths_B, features.session_B)
        logits_BSV = model.ctc_logits(encoded)
    return features.signal, encoded, logits_BSV.detach()


def _difference(untrained: UntrainedRun, reference: Batch, other: Batch) -> float:
    """Largest difference of the logits on the reference's frames, all of which are valid, relative to their size."""
    (_, encoded, expected), (_, _, got) = _run(untrained, reference), _run(untrained, other)
    frames = int(encoded.lengths_B[0])
    return _distance(expected[:, :frames], got[: len(expected), :frames])


def _distance(expected: torch.Tensor, got: torch.Tensor) -> float:
    if expected.shape != got.shape or not bool(got.isfinite().all()):
        return float("inf")
    return float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-12))


def _first_culprit(untrained: UntrainedRun, reference: Batch, other: Batch) -> tuple[str, nn.Module | None]:
    """In the order of computation: the first module whose output differs though its input does not, or the one whose
    own code lies between two of its parts that agree and disagree.
    """
    model = untrained.computer.model
    features = _run(untrained, reference)[0], _run(untrained, other)[0]
    if _distance(features[0], _narrowed(features[0], features[1])) > TOLERANCE:
        return PIPELINE, None
    traces = _trace(untrained, reference), _trace(untrained, other)
    parts = dict(model.named_modules())
    for seen, beside in zip(*traces, strict=False):
        if seen.module != beside.module or seen.kind != beside.kind:
            break
        if _distance(seen.value, _narrowed(seen.value, beside.value)) > TOLERANCE:
            name = seen.module if seen.kind == "output" else seen.module.rpartition(".")[0]
            while isinstance(parts[name], nn.ModuleList):
                name = name.rpartition(".")[0]
            kind = type(parts[name]).__name__
            return f"{name} ({kind})" if name else kind, parts[name]
    return f"the code of {type(model).__name__}", model


def _narrowed(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The beginning of `value`, as large as `like` along every axis."""
    if value.dim() != like.dim():
        return value
    for axis, size in enumerate(like.shape):
        value = value.narrow(axis, 0, min(size, value.shape[axis]))
    return value


def _trace(untrained: UntrainedRun, batch: Batch) -> list[_Seen]:
    """Every module's first tensor in and out, in the order in which they come."""
    seen: list[_Seen] = []
    handles = []
    for name, part in untrained.computer.model.named_modules():
        if not name or isinstance(part, nn.Dropout):
            continue

        def before(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            _note(seen, name, "input", inputs)

        def after(_: nn.Module, inputs: tuple[Any, ...], output: Any, name: str = name) -> None:
            _note(seen, name, "output", output)

        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        _run(untrained, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _note(seen: list[_Seen], name: str, kind: str, value: Any) -> None:
    first = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, torch.Tensor) and first.is_floating_point():
        seen.append(_Seen(name, kind, first.detach().clone()))
