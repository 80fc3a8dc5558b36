"""The kinds of encoders: a new one is its file, a line here and a field of `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sottovoce.models.conv import ConvConfig, ConvEncoder
from sottovoce.models.encoder import Encoder
from sottovoce.models.gru import GRUConfig, GRUEncoder
from sottovoce.models.ssm import SSMEncoder
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.transformer import TransformerConfig, TransformerEncoder


@dataclass(frozen=True)
class EncoderKind:
    """One kind of encoder."""

    section: str
    """Of the configuration: a field of `ModelConfig`."""
    config: type
    """Class of that section."""
    encoder: type[Encoder]
    """Made from its section and the size of its input frames."""


ENCODERS: Final = (
    EncoderKind("gru", GRUConfig, GRUEncoder),
    EncoderKind("conv", ConvConfig, ConvEncoder),
    EncoderKind("ssm", SSMConfig, SSMEncoder),
    EncoderKind("transformer", TransformerConfig, TransformerEncoder),
)
