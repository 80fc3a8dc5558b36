"""Settings of the state-space encoder."""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.core.errors import ConfigurationError

KINDS = ("mamba2", "mamba1")
RESIDUALS = ("layer", "block")
BACKENDS = ("torch", "mamba_ssm")


@dataclass(frozen=True)
class SSMConfig:
    """Selective state-space layers, in both directions or causal."""

    kind: str = "mamba2"
    """`mamba2`: one decay for each head and frame (Dao & Gu 2024); `mamba1`: one for each channel, state and frame
    (Gu & Dao 2023), several times as slow on a CPU."""
    layers: int = 8
    width: int = 512
    """Size of every layer's input and output. A layer of both directions gives half of it to each."""
    state_size: int = 64
    """N: numbers that each inner channel remembers."""
    head_size: int = 64
    """P: inner channels that share one decay; of `mamba2` only."""
    groups: int = 1
    """Sets of input and output maps B and C, each shared by an equal number of heads; of `mamba2` only."""
    expansion: int = 2
    """Inner channels as a multiple of a block's width."""
    conv_kernel: int = 4
    """Frames that a block's causal convolution sees."""
    chunk_size: int | None = None
    """Frames worked on at once, which changes speed and memory, not the results. None: what measured best, 64 for
    `mamba2` and 8 for `mamba1`."""
    bidirectional: bool = True
    """False: causal, the only form that can decode a stream."""
    residual: str = "layer"
    """Where a bidirectional layer's skip connection runs: `layer`, around the whole layer, so that depth costs no
    gradient; `block`, around each direction's block, with none around the layer (as in MODE-SSM)."""
    dropout: float = 0.1
    """On each layer's output map, in [0, 1)."""
    dt_min: float = 0.001
    """Smallest and largest step size Δ at the start; a step of Δ with decay rate A forgets in 1/(Δ·|A|) frames."""
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    """No step size starts lower."""
    condition_after: int | None = None
    """Layers before a conditioner looks at the hidden state; it acts on those after. None: on the last two."""
    backend: str = "torch"
    """`torch`, anywhere; `mamba_ssm`, the CUDA kernels of the package of that name, for `mamba2` on a GPU."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_sizes()
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"model.ssm.dropout={self.dropout}: must lie in [0, 1)")
        if not 0 < self.dt_min <= self.dt_max or self.dt_floor < 0 or self.dt_floor > self.dt_max:
            raise ConfigurationError(
                "model.ssm: 0 < dt_min <= dt_max and 0 <= dt_floor <= dt_max must hold; "
                f"got {self.dt_min:g}, {self.dt_max:g} and {self.dt_floor:g}"
            )
        if self.condition_after is not None and not 0 < self.condition_after < self.layers:
            raise ConfigurationError(
                f"model.ssm.condition_after={self.condition_after}: must lie between 1 and layers - 1, "
                f"which is {self.layers - 1}"
            )

    def _check_choices(self) -> None:
        for name, choices in (("kind", KINDS), ("residual", RESIDUALS), ("backend", BACKENDS)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigurationError(f"model.ssm.{name}={value}: must be one of {', '.join(choices)}")
        if self.residual == "block" and not self.bidirectional:
            raise ConfigurationError("model.ssm.residual=block has no effect with bidirectional=false: leave it out")
        if self.kind == "mamba1":
            for name in ("head_size", "groups"):
                if getattr(self, name) != getattr(SSMConfig, name):
                    raise ConfigurationError(f"model.ssm.{name} has no effect with kind=mamba1: leave it out")
            if self.backend != "torch":
                raise ConfigurationError(f"model.ssm.backend={self.backend} is there for kind=mamba2 only")

    def _check_sizes(self) -> None:
        names = ("layers", "width", "state_size", "head_size", "groups", "expansion", "conv_kernel")
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"model.ssm.{name}={getattr(self, name)}: must be at least 1")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ConfigurationError(f"model.ssm.chunk_size={self.chunk_size}: must be at least 1")
        if self.bidirectional and self.width % 2:
            raise ConfigurationError(f"model.ssm.width={self.width}: must be even, each direction takes half of it")
        inner = self.expansion * self.block_width
        if self.kind == "mamba2" and inner % (self.head_size * self.groups):
            raise ConfigurationError(
                f"model.ssm.head_size={self.head_size} and groups={self.groups}: their product must divide a block's "
                f"inner channels, {inner}"
            )

    @property
    def block_width(self) -> int:
        """Size of a block's input and output."""
        return self.width // 2 if self.bidirectional else self.width

    @property
    def layers_before_conditioner(self) -> int:
        """`condition_after`, or all but the last two layers and at least one."""
        return self.condition_after if self.condition_after is not None else max(self.layers - 2, 1)
