"""Where in a forward and backward pass a number stopped being finite: the operation, and the module it belongs to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

OUTLYING: Final = 1e4
"""A magnitude that no healthy activation has: features are normalised, gates and norms keep outputs near 1; half
precision ends at 65504 (docs/failures/fp16_overflow.md). A starting threshold."""
FILLS: Final = (
    "fill",
    "masked_fill",
    "index_put",
    "full",
    "where",
    "empty",
    "new_",
    "zeros",
    "ones",
    "_ctc_loss",
    "scalar_tensor",
    "lift",
)
"""Operations that put infinities on purpose (masks, a lattice's forbidden cells) or leave memory as it is."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """The first operation that made NaN or infinity out of what had none."""

    name: str
    dtype: torch.dtype
    """Of its result."""
    module: str
    """The module it belongs to, or the last one before it."""
    backward: bool
    largest_input: float
    """Largest finite magnitude among its inputs."""
    from_infinity: bool
    """Its inputs held infinities: NaN came of ∞ − ∞ or 0 · ∞."""
    low_input: bool
    """An input was in half precision and 0."""

    def __str__(self) -> str:
        way = "backward" if self.backward else "forward"
        made = " out of infinities" if self.from_infinity else f" out of numbers up to {self.largest_input:.3g}"
        return f"{self.name} ({str(self.dtype).removeprefix('torch.')}, {way}, {self.module}){made}"


@dataclasses.dataclass(frozen=True)
class Site:
    """A module whose output, or the gradient of it, was not finite or far too large."""

    module: str
    kind: str
    """Its class."""
    what: str
    """`not finite`, or the magnitude."""
    dtype: torch.dtype
    frame: int | None = None
    """First index along the second dimension (frames) where it was so."""

    def __str__(self) -> str:
        where = "" if self.frame is None else f" from frame {self.frame} on"
        return f"{self.module} ({self.kind}, {str(self.dtype).removeprefix('torch.')}): {self.what}{where}"


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one forward and backward pass of `model`; use it as a context."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.operation: Operation | None = None
        self.forward: Site | None = None
        """First module with a non-finite output."""
        self.outlier: Site | None = None
        """First module with an outlying output of ordinary inputs."""
        self.backward: Site | None = None
        """First module, in backward order, with a non-finite gradient of its output."""
        self._stack: list[str] = []
        self._last = "before the model"
        self._in_backward = False
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Tracer:
        for name, module in self.model.named_modules():
            if name:
                self._handles.append(module.register_forward_pre_hook(self._entering(name)))
                self._handles.append(module.register_forward_hook(self._leaving(name)))
        self._in_backward, self._last = False, "before the model"
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.operation is None and not name.startswith(FILLS):
            self._look(name, [*_tensors(args), *_tensors(kwargs or {})], list(_tensors(result)))
        return result

    def _look(self, name: str, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        results = [r for r in results if not math.isfinite(float(r.sum()))]  # one cheap pass for the usual case
        nan = any(bool(r.isnan().any()) for r in results)
        infinite = any(bool(r.isinf().any()) for r in results)
        if not nan and not infinite:
            return
        had_infinity = any(bool(x.isinf().any()) for x in inputs)
        if any(bool(x.isnan().any()) for x in inputs) or (had_infinity and not nan):
            return
        self.operation = Operation(
            name,
            results[0].dtype,
            self._stack[-1] if self._stack else self._last,
            self._in_backward,
            max((_largest(x) for x in inputs), default=0.0),
            had_infinity,
            any(x.dtype == torch.float16 and bool((x == 0).any()) for x in inputs),
        )

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._stack.append(name)

        return hook

    def _leaving(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._stack.pop()
            self._last = f"after {name}"
            kind = type(module).__name__
            for tensor in _tensors(output):
                if not bool(tensor.isfinite().all()):
                    self.forward = self.forward or Site(name, kind, "not finite", tensor.dtype, _first_frame(tensor))
                elif (size := _largest(tensor)) > OUTLYING and all(_largest(x) <= OUTLYING for x in _tensors(inputs)):
                    self.outlier = self.outlier or Site(name, kind, f"magnitude {size:.3g}", tensor.dtype)
                if tensor.requires_grad:
                    tensor.register_hook(self._gradient(name, kind))  # type: ignore[no-untyped-call]

        return hook

    def _gradient(self, name: str, kind: str) -> Any:
        def hook(gradient: torch.Tensor) -> None:
            self._in_backward, self._last = True, f"gradient through {name}"
            if self.backward is None and not bool(gradient.isfinite().all()):
                self.backward = Site(name, kind, "gradient of its output not finite", gradient.dtype)

        return hook


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of floating-point numbers in a nest of containers."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, f.name) for f in dataclasses.fields(value)])


def _largest(tensor: torch.Tensor) -> float:
    """The largest finite magnitude."""
    tensor = tensor.detach()
    return float(torch.where(tensor.isfinite(), tensor, 0).abs().max()) if tensor.numel() else 0.0


def _first_frame(tensor: torch.Tensor) -> int | None:
    if tensor.dim() < 3:
        return None
    bad_S = (~tensor.isfinite()).transpose(0, 1).flatten(1).any(1)
    return int(bad_S.nonzero()[0])
