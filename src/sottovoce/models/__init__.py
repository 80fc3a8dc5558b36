"""Decoder models: any encoder with any head."""

from sottovoce.models.compose import ModelConfig as ModelConfig
from sottovoce.models.compose import build_model as build_model
