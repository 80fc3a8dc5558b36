"""The model's buffers as of the last good step: what a forward pass writes, no optimiser sees, and one NaN ruins.

A batch norm remembers its inputs in the forward pass, before any gradient can be looked at: to drop the gradients of a
bad step does not keep it out of `running_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from sottovoce.training.gradients import each_norm

SMALL: Final = 65_536
"""Numbers of a buffer that is copied after every good step; larger ones (tables, masks) only with `keep`."""
_COMPILED: Final = "_orig_mod."
"""What `torch.compile` puts before the names of a module."""


@dataclass
class KeptBuffers:
    """Copies of the floating-point buffers that were finite when they were first seen.

    Others are left alone: a mask may hold minus infinity by design. So are integers (`num_batches_tracked`).
    """

    copies: dict[str, torch.Tensor] = field(default_factory=dict)
    """By name; small ones on the buffer's device, the others on the CPU."""
    unguarded: set[str] = field(default_factory=set)
    """Names of those that were not finite at first."""

    def keep(self, model: nn.Module) -> list[str]:
        """Copy every buffer; put back those that are not finite any more, and return their names."""
        return self._settled(_floating(model), copy=True)

    def after_good_step(self, model: nn.Module) -> list[str]:
        """Copy the small buffers; put back those that are not finite, and return their names."""
        small = {name: buffer for name, buffer in _floating(model).items() if buffer.numel() <= SMALL}
        known = {name: buffer for name, buffer in small.items() if _fits(self.copies.get(name), buffer)}
        if len(known) + len(self.unguarded & small.keys()) < len(small) or not _all_finite(known):
            return self._settled(small, copy=True)
        if known:
            torch._foreach_copy_([self.copies[name] for name in known], [b.detach() for b in known.values()])
        return []

    def after_bad_step(self, model: nn.Module) -> list[str]:
        """Put back the buffers that are not finite; returns their names."""
        return self._settled(_floating(model), copy=False)

    def without_copy(self, model: nn.Module) -> list[str]:
        """Names of buffers that hold NaN and were never seen before, so that nothing can put them back."""
        seen = self.copies.keys() | self.unguarded
        return [name for name, b in _floating(model).items() if name not in seen and bool(b.isnan().any())]

    def _settled(self, buffers: dict[str, torch.Tensor], copy: bool) -> list[str]:
        lost = []
        for name, buffer in buffers.items():
            if name in self.unguarded:
                continue
            if bool(buffer.isfinite().all()):
                if copy:
                    copied = buffer.detach().clone()
                    self.copies[name] = copied if buffer.numel() <= SMALL else copied.cpu()
            elif (good := self.copies.get(name)) is not None and good.shape == buffer.shape:
                buffer.detach().copy_(good)
                lost.append(name)
            elif copy:
                self.unguarded.add(name)
        return lost


def _floating(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point buffers by name, the same with and without `torch.compile`."""
    buffers = ((name.replace(_COMPILED, ""), buffer) for name, buffer in model.named_buffers())
    return {name: buffer for name, buffer in buffers if buffer.is_floating_point()}


def _fits(copy: torch.Tensor | None, buffer: torch.Tensor) -> bool:
    return copy is not None and (copy.shape, copy.dtype, copy.device) == (buffer.shape, buffer.dtype, buffer.device)


def _all_finite(buffers: dict[str, torch.Tensor]) -> bool:
    """One look for all; False too where a norm overflows."""
    return not buffers or bool(torch.stack(list(each_norm(buffers).values())).sum().isfinite())
