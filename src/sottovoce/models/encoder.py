"""What every encoder is: frames in, frames out, and what it says of itself.

Legend: B trials, S frames, D input size, E output size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from sottovoce.core.lengths import Lengths


@dataclass(frozen=True)
class Modulation:
    """How a trial's later layers differ from the usual; zeros change nothing."""

    log_time_scale_B: torch.Tensor
    """Step sizes Δ are multiplied by its exponential: above 0, states follow the input faster and forget sooner."""
    gain_BE: torch.Tensor
    """What a layer adds (`residual=layer`) or puts out (`block`) is multiplied by 1 + gain, channel by channel."""


Conditioner = Callable[[torch.Tensor, torch.Tensor], Modulation]
"""From a hidden state [B, S, E], 0 beyond each trial's end, and the valid frames [B] to how each trial's later layers
are modulated."""


class Encoder(nn.Module, ABC):
    """Frames [B, S, D] and their lengths [B] to frames [B, S', E] and theirs; padding changes no valid frame.

    `forward(x, lengths)` also gets `patch` where the encoder `takes_patches`, and `conditioner` where it
    `can_be_modulated`.
    """

    component: ClassVar[str] = "encoder"
    takes_patches: ClassVar[bool] = False
    """`forward` takes single bins and the `PatchConfig` of the patches that are its input, and stacks them itself."""
    can_be_modulated: ClassVar[bool] = False
    """`forward` takes a `Conditioner`, which looks at a hidden state and acts on the layers after it."""
    can_look_ahead: ClassVar[bool] = True
    """A setting of the encoder lets its frames depend on later ones: to be causal is a choice."""
    compares_frames: ClassVar[bool] = False
    """Keeps something for each pair of a trial's frames: memory grows with the square of their number."""
    state_grows: ClassVar[bool] = False
    """What `step` remembers grows with the frames of the trial, until `start` begins another."""
    output_size: int
    """E."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """No frame depends on the bins after those that it stands for."""

    @property
    @abstractmethod
    def needs_whole_trial(self) -> str:
        """Why `step` cannot compute frames while the trial arrives, and what to set; empty where it can."""

    @abstractmethod
    def start(self, batch_size: int) -> Any:
        """State before the first frame of `batch_size` streams: tensors, in tuples where there are several.

        Raises:
            ConfigurationError: the encoder needs the whole trial.
        """

    @abstractmethod
    def step(self, state: Any, x_BSD: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The state after some more frames, at least one, and their outputs [B, S', E]; carried on, they are
        `forward`'s. The state it is given stays as it is.

        Raises:
            ConfigurationError: the encoder needs the whole trial.
        """

    @abstractmethod
    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames that come out of `lengths` frames."""

    def as_asked(self, config: Any) -> Iterator[tuple[str, str, str]]:
        """Keys of the encoder's section, what they ask for, and what the layers are.

        For what the names and shapes of the parameters do not show; the two differ where something else was built.
        """
        yield from ()
