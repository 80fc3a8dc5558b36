"""The decoder model: [flow bridge →] session adapter → stem → patching → encoder → heads.

Any encoder goes with any head. A new encoder is a file beside this one, a line of `encoders.ENCODERS` and a field of
`ModelConfig`, which keeps the sections of the configuration typed.

Legend: B trials, T bins, C channels, S frames, E encoder size, V symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.lengths import Lengths
from sottovoce.core.streams import WholeTrialPart, check_streams
from sottovoce.models.conv import ConvConfig
from sottovoce.models.ctc_head import CTCHead
from sottovoce.models.encoder import Conditioner, Encoder, Modulation
from sottovoce.models.encoders import ENCODERS, EncoderKind
from sottovoce.models.flow_bridge import FlowBridge, FlowBridgeConfig
from sottovoce.models.gru import GRUConfig
from sottovoce.models.patching import PatchConfig, patch_chunk, patches
from sottovoce.models.session_adapter import SessionAdapter, SessionAdapterConfig
from sottovoce.models.speaking_mode import ModeConditioner, ModeOutput, SpeakingModeConfig, SpeakingModeHead
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.stem import Stem, StemConfig
from sottovoce.models.streams import StreamState
from sottovoce.models.transducer import TransducerConfig, TransducerHead
from sottovoce.models.transformer import TransformerConfig

COMPONENTS: Final = ("preprocessor", "encoder", "ctc_decoder", "rnnt_decoder", "mode_head", "flow_bridge")
"""What the stages of a curriculum freeze and train, in their usual order; each part of the model names its own."""


@dataclass(frozen=True)
class ModelConfig:
    """Which parts the model has; exactly one encoder section is set."""

    session_adapter: SessionAdapterConfig | None = None
    """Absent for models that must work on sessions or speakers never seen in training."""
    stem: StemConfig | None = None
    """Absent: the encoder (or the patching) sees the features as they are."""
    patch: PatchConfig | None = None
    """Absent: the encoder sees single bins."""
    gru: GRUConfig | None = None
    conv: ConvConfig | None = None
    ssm: SSMConfig | None = None
    transformer: TransformerConfig | None = None
    transducer: TransducerConfig | None = None
    """Absent: CTC is the only decoder."""
    speaking_mode: SpeakingModeConfig | None = None
    """Absent: nothing tells silent from vocalised trials. It also modulates a state-space encoder's later layers."""
    flow_bridge: FlowBridgeConfig = field(default_factory=FlowBridgeConfig)
    """A denoiser of the features; off unless `enabled`."""
    head_dropout: float = 0.0
    """In front of the CTC head's linear layer, in [0, 1)."""
    blank_bias: float = 0.0
    """Added to the blank's bias in the CTC head when the model is made; 2 gives the blank about e² times the
    probability of a label, so that no label takes the blank's place while the first symbols are learnt."""
    num_channels: int | None = None
    """Channels of the features. A run fills this in from `preprocessor.num_channels`."""
    num_sessions: int | None = None
    """Sessions with an adapter of their own. A run fills this in from the data."""
    num_symbols: int | None = None
    """Logit columns, blank included. A run fills this in from the symbol table."""
    blank: int = 0
    """Logit column of the CTC blank. A run fills this in from the symbol table."""

    def __post_init__(self) -> None:
        chosen = [kind.section for kind in ENCODERS if getattr(self, kind.section) is not None]
        if len(chosen) != 1:
            raise ConfigurationError(
                f"model: exactly one of the encoders {', '.join(kind.section for kind in ENCODERS)} must be set, "
                f"got {', '.join(chosen) or 'none'}; switch one off with model.NAME=null"
            )
        if self.speaking_mode is not None and self.ssm is not None and self.ssm.layers < 2:
            raise ConfigurationError(
                f"model.ssm.layers={self.ssm.layers}: the speaking mode needs a layer to look at and one to act on; "
                "take at least 2, or model.speaking_mode=null"
            )
        if not 0 <= self.head_dropout < 1:
            raise ConfigurationError(f"model.head_dropout={self.head_dropout}: must lie in [0, 1)")
        if not math.isfinite(self.blank_bias):
            raise ConfigurationError(f"model.blank_bias={self.blank_bias}: must be finite")

    @property
    def encoder_kind(self) -> EncoderKind:
        """The kind whose section is set."""
        return next(kind for kind in ENCODERS if getattr(self, kind.section) is not None)


@dataclass(frozen=True)
class Encoded:
    """What the heads look at."""

    frames_BSE: torch.Tensor
    lengths_B: torch.Tensor
    """Valid frames of each trial."""
    mode: ModeOutput | None = None
    """What the speaking-mode head said, where it was asked."""


class DecoderModel(nn.Module):
    """Features [B, T, C] to encoder frames and CTC logits [B, S, V]."""

    PARTS: ClassVar[dict[str, str]] = {
        "flow_bridge": FlowBridge.component,
        "session_adapter": SessionAdapter.component,
        "stem": Stem.component,
        "encoder": Encoder.component,
        "head": CTCHead.component,
        "transducer": TransducerHead.component,
        "speaking_mode": SpeakingModeHead.component,
        "mode_conditioner": ModeConditioner.component,
    }
    """Attribute of each part that has parameters → the component that its class says it belongs to."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_channels, num_symbols = _required(config, "num_channels"), _required(config, "num_symbols")
        self.flow_bridge = FlowBridge(config.flow_bridge, num_channels) if config.flow_bridge.enabled else None
        self.use_flow_bridge = False
        """Outside training, carry the features over the bridge first; set where that was found to help."""
        self.session_adapter = (
            SessionAdapter(config.session_adapter, num_channels, _required(config, "num_sessions"))
            if config.session_adapter is not None
            else None
        )
        self.stem = Stem(config.stem, num_channels) if config.stem is not None else None
        bin_size = self.stem.output_size if self.stem is not None else num_channels
        self.encoder = _encoder(config, bin_size * (config.patch.size if config.patch else 1))
        size = self.encoder.output_size
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = CTCHead(size, num_symbols, config.blank, config.blank_bias)
        self.transducer = TransducerHead(config.transducer, size, num_symbols) if config.transducer else None
        self.speaking_mode = SpeakingModeHead(config.speaking_mode, size) if config.speaking_mode else None
        modulates = config.speaking_mode is not None and self.encoder.can_be_modulated
        self.mode_conditioner = ModeConditioner(size) if modulates else None

    @classmethod
    def component_of(cls, parameter: str) -> str:
        """The component that owns the parameter (or buffer) of this dotted name.

        >>> DecoderModel.component_of("head.weight")
        'ctc_decoder'
        """
        return cls.PARTS[parameter.split(".")[0]]

    @property
    def components(self) -> tuple[str, ...]:
        """The components of a curriculum that the model has, in their usual order."""
        owners = {self.component_of(name) for name, _ in self.named_parameters()}
        return tuple(component for component in COMPONENTS if component in owners)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames that come out for `lengths` bins; 0 where a trial is too short for the model."""
        if self.stem is not None:
            lengths = self.stem.output_lengths(lengths)
        if self.config.patch is not None:
            lengths = self.config.patch.output_lengths(lengths)
        return self.encoder.output_lengths(lengths)

    @property
    def bins_per_frame(self) -> int:
        """Bins from one frame to the next."""
        bins = 10_000
        return round(bins / (self.output_lengths(2 * bins) - self.output_lengths(bins)))

    def encode(
        self, signal_BTC: torch.Tensor, lengths_B: torch.Tensor, session_B: torch.Tensor, with_mode: bool = True
    ) -> Encoded:
        """Encoder frames [B, S, E]; `with_mode` asks the speaking-mode head, where there is one, and lets it modulate.

        An untrained head changes nothing: the modulation starts at zero.
        """
        x = signal_BTC
        if self.use_flow_bridge and self.flow_bridge is not None and not self.training:
            x = self.flow_bridge.sample(x, lengths_B)
        if self.session_adapter is not None:
            x = self.session_adapter(x, session_B)
        if self.stem is not None:
            x, lengths_B = self.stem(x, lengths_B)
        patch, given = self.config.patch, dict[str, Any]()
        if patch is not None:
            lengths_B = patch.output_lengths(lengths_B)
            if self.encoder.takes_patches:
                given["patch"] = patch
            else:
                x = patches(x, patch)
        mode: list[ModeOutput] = []
        if with_mode and self.mode_conditioner is not None:
            given["conditioner"] = self._conditioner(mode)
        frames_BSE, lengths_B = self.encoder(x, lengths_B, **given)
        if with_mode and self.speaking_mode is not None and not mode:
            mode.append(self.speaking_mode(frames_BSE, lengths_B))
        return Encoded(frames_BSE, lengths_B, mode[0] if mode else None)

    def _conditioner(self, mode: list[ModeOutput]) -> Conditioner:
        """Modulates by what the speaking-mode head says, which goes into `mode`."""

        def conditioner(hidden_BSE: torch.Tensor, frames_B: torch.Tensor) -> Modulation:
            assert self.speaking_mode is not None and self.mode_conditioner is not None
            mode.append(self.speaking_mode(hidden_BSE, frames_B))
            modulation: Modulation = self.mode_conditioner(mode[0].posterior_B2)
            return modulation

        return conditioner

    @property
    def whole_trial_parts(self) -> tuple[WholeTrialPart, ...]:
        """What keeps the model from computing frames while a trial arrives; empty: `start_state` and `step` work."""
        flow_bridge = self.flow_bridge if self.use_flow_bridge else None
        parts = (("flow_bridge", flow_bridge), ("stem", self.stem), ("speaking_mode", self.mode_conditioner))
        found = [WholeTrialPart(f"model.{name}", part.needs_whole_trial) for name, part in parts if part is not None]
        if self.encoder.needs_whole_trial:
            found.append(WholeTrialPart(f"model.{self.config.encoder_kind.section}", self.encoder.needs_whole_trial))
        return tuple(found)

    def start_state(self, batch_size: int, session: int | torch.Tensor = 0) -> StreamState:
        """State before the first bin of `batch_size` streams; `session` (one for all, or [B]) picks their adapters.

        Raises:
            ConfigurationError: parts of the model need the whole trial, or there is no adapter for a session.
        """
        check_streams(self.whole_trial_parts)
        weight = self.head.weight
        session_B = torch.as_tensor(session, device=weight.device).expand(batch_size).long()
        if self.session_adapter is not None:
            self.session_adapter.check(session_B)
        waiting_BTC = weight.new_zeros(batch_size, 0, _required(self.config, "num_channels"))
        return StreamState(session_B, torch.zeros_like(session_B), waiting_BTC, self.encoder.start(batch_size))

    def step(
        self, state: StreamState, chunk_BTC: torch.Tensor, lengths_B: torch.Tensor | None = None
    ) -> tuple[StreamState, Encoded]:
        """The state after a chunk of features, and the frames that it completes: all together they are `encode`'s.

        In evaluation mode; bins at the end that fill no patch give no frame, as in `encode`.

        Args:
            chunk_BTC: any number of bins of every stream.
            lengths_B: valid bins of each, if not all of the chunk; a stream with fewer than another ends with it.

        Raises:
            DataError: see `StreamState.valid_part`.
        """
        x, lengths_B = state.valid_part(chunk_BTC, lengths_B, _required(self.config, "num_channels"))
        received_B = state.received_B + lengths_B
        frames_B = self.output_lengths(received_B) - self.output_lengths(state.received_B)
        if self.session_adapter is not None:
            x = self.session_adapter(x, state.session_B)
        waiting, encoder = state.waiting_BTC, state.encoder
        if self.config.patch is not None:
            waiting, x = patch_chunk(waiting, x, self.config.patch)
        if x.shape[1]:
            encoder, y_BSE = self.encoder.step(encoder, x)
        else:
            y_BSE = x.new_zeros(len(x), 0, self.encoder.output_size)
        return StreamState(state.session_B, received_B, waiting, encoder), Encoded(y_BSE, frames_B)

    def ctc_logits(self, encoded: Encoded) -> torch.Tensor:
        """Logits [B, S, V] of the CTC head."""
        logits: torch.Tensor = self.head(self.head_dropout(encoded.frames_BSE))
        return logits

    def forward(
        self, signal_BTC: torch.Tensor, lengths_B: torch.Tensor, session_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC logits [B, S, V] and their valid frames [B]."""
        encoded = self.encode(signal_BTC, lengths_B, session_B)
        return self.ctc_logits(encoded), encoded.lengths_B


def _encoder(config: ModelConfig, input_size: int) -> Encoder:
    kind = config.encoder_kind
    return kind.encoder(getattr(config, kind.section), input_size)


def _required(config: ModelConfig, name: str) -> int:
    value = getattr(config, name)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"model.{name} must be a whole number of at least 1 to build the model, got {value}")
    return value


def build_model(config: ModelConfig) -> DecoderModel:
    """A freshly initialised model; randomness comes from PyTorch's global generator.

    >>> config = ModelConfig(gru=GRUConfig(units=8, layers=1), num_channels=4, num_sessions=1, num_symbols=41)
    >>> sum(p.numel() for p in build_model(config).parameters())
    713
    """
    return DecoderModel(config)
