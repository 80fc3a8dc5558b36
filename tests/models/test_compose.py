from typing import get_args, get_type_hints

import pytest
from torch import nn

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.compose import COMPONENTS, DecoderModel, ModelConfig, build_model
from sottovoce.models.conv import ConvConfig
from sottovoce.models.encoder import Encoder
from sottovoce.models.encoders import ENCODERS
from sottovoce.models.flow_bridge import FlowBridgeConfig
from sottovoce.models.gru import GRUConfig
from sottovoce.models.session_adapter import SessionAdapterConfig
from sottovoce.models.speaking_mode import SpeakingModeConfig
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.stem import StemConfig
from sottovoce.models.transducer import TransducerConfig


def everything() -> DecoderModel:
    return build_model(
        ModelConfig(
            session_adapter=SessionAdapterConfig(),
            stem=StemConfig(width=8),
            ssm=SSMConfig(layers=2, width=8, state_size=2, head_size=4),
            transducer=TransducerConfig(4, 4, 1, 4),
            speaking_mode=SpeakingModeConfig(contrastive_size=4),
            flow_bridge=FlowBridgeConfig(True, width=8, blocks=1, groups=2, heads=2),
            num_channels=6,
            num_sessions=2,
            num_symbols=5,
        )
    )


def test_each_part_names_its_own_component() -> None:
    model = everything()
    parts = {name: part for name, part in model.named_children() if any(True for _ in part.parameters())}
    assert parts.keys() == model.PARTS.keys()
    assert {name: part.component for name, part in parts.items()} == model.PARTS
    assert model.components == COMPONENTS
    assert DecoderModel.component_of("session_adapter.weights.0") == "preprocessor"
    assert DecoderModel.component_of("mode_conditioner.by_mode.weight") == "mode_head"


def test_a_model_has_the_components_of_its_parts_only() -> None:
    model = build_model(ModelConfig(conv=ConvConfig(width=4, num_blocks=1), num_channels=3, num_symbols=5))
    assert model.components == ("encoder", "ctc_decoder")


def test_the_encoders_are_the_sections_of_the_configuration() -> None:
    hints = get_type_hints(ModelConfig)
    encoders = {kind.section: kind for kind in ENCODERS}
    for section, kind in encoders.items():
        assert get_args(hints[section]) == (kind.config, type(None))
        assert issubclass(kind.encoder, Encoder) and kind.encoder.component == "encoder"
    assert ModelConfig(gru=GRUConfig(8, 1)).encoder_kind is encoders["gru"]
    with pytest.raises(ConfigurationError, match=f"exactly one of the encoders {', '.join(encoders)} must be set"):
        ModelConfig(gru=GRUConfig(8, 1), conv=ConvConfig())


def test_the_head_is_a_linear_layer_with_a_bias_for_the_blank() -> None:
    config = ModelConfig(gru=GRUConfig(8, 1), num_channels=3, num_symbols=5, blank=2, blank_bias=9.0)
    head = build_model(config).head
    assert isinstance(head, nn.Linear)
    assert [name for name, _ in head.named_parameters()] == ["weight", "bias"]
    assert int(head.bias.argmax()) == 2
