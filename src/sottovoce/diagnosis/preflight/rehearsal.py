"""One rehearsed step of each kind that the curriculum will come to: losses, and what gradient they send where."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sottovoce.core.trial import Batch
from sottovoce.diagnosis.preflight.untrained_run import StepKind, UntrainedRun
from sottovoce.models.compose import DecoderModel


@dataclass(frozen=True)
class Rehearsal:
    """What one forward and backward pass of a kind of step showed; no weight has moved."""

    step_kind: StepKind
    nats: Mapping[str, tuple[float, ...]]
    """Each loss by name, a trial each."""
    into_encoder: Mapping[str, float | None]
    """L2 norm of the gradient that each weighted loss sends into the encoder's frames; None: it sends none."""
    reached: frozenset[str]
    """Parameters of the model that have a gradient."""
    nonfinite: tuple[str, ...]
    """Those of them whose gradient is not finite."""
    component_norms: Mapping[str, float]
    """L2 norm of the gradient by component, of those that were reached."""
    moved_buffers: tuple[str, ...]
    """Buffers of the model that the forward pass changed."""
    saved_bytes: int
    """What autograd kept of the forward pass, without the weights."""


def rehearse(untrained: UntrainedRun, step_kind: StepKind) -> Rehearsal:
    """Forward and backward of the excerpts as a step of `step_kind`, in training mode."""
    untrained.enter(step_kind)
    computer, model = untrained.computer, untrained.computer.model
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_counting(model, kept), lambda tensor: tensor):
        computed = computer.compute(untrained.part(), computer.now)
    moved = tuple(name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name]))
    weighted = {name: step_kind.activity.weights.get(name, 1.0) * share for name, share in computed.shares.items()}
    frames_BSE, into = computed.inputs.encoded.frames_BSE, dict[str, float | None]()
    for name, share in weighted.items():
        gradient = None
        if frames_BSE.requires_grad and share.requires_grad:
            (gradient,) = torch.autograd.grad(share, frames_BSE, retain_graph=True, allow_unused=True)
        into[name] = None if gradient is None else float(gradient.norm())
    total = torch.stack([share.sum() for share in weighted.values()]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        squares[DecoderModel.component_of(name)] = squares.get(DecoderModel.component_of(name), 0.0) + norm**2
    return Rehearsal(
        step_kind=step_kind,
        nats={name: tuple(nats_B.detach().tolist()) for name, nats_B in computed.nats.items()},
        into_encoder=into,
        reached=frozenset(gradients),
        nonfinite=tuple(name for name, norm in norms.items() if not math.isfinite(norm)),
        component_norms={component: square**0.5 for component, square in squares.items()},
        moved_buffers=moved,
        saved_bytes=sum(kept.values()),
    )


def saved_bytes(untrained: UntrainedRun, step_kind: StepKind, batch: Batch) -> int:
    """What autograd keeps of one forward pass of `batch` as a step of `step_kind`, without the weights."""
    untrained.enter(step_kind)
    computer, kept = untrained.computer, dict[int, int]()
    with torch.autograd.graph.saved_tensors_hooks(_counting(computer.model, kept), lambda tensor: tensor):
        kept_alive = computer.compute(untrained.part(batch), computer.now)
    del kept_alive
    return sum(kept.values())


def _counting(model: torch.nn.Module, kept: dict[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook that notes the size of every storage that is saved, but those of the weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note
