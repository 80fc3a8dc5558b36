"""Reading the published T15 baseline: `checkpoint/best_checkpoint` with `args.yaml` beside it.

Key names and sizes: nejm-brain-to-text `rnn_model.py`, `rnn_trainer.py`, `rnn_args.yaml`.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sottovoce.core.errors import CheckpointError
from sottovoce.models.compose import DecoderModel, ModelConfig, build_model
from sottovoce.models.gru import GRUConfig
from sottovoce.models.patching import PatchConfig
from sottovoce.models.session_adapter import SessionAdapterConfig

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
_RENAMED = (
    (re.compile(r"day_weights\.(\d+)"), r"session_adapter.weights.\1"),
    (re.compile(r"day_biases\.(\d+)"), r"session_adapter.biases.\1"),
    (re.compile(r"gru\.(.+)"), r"encoder.gru.\1"),
    (re.compile(r"out\.(.+)"), r"head.\1"),
    (re.compile(r"h0"), "encoder.initial_state"),
)


def load_official_t15(folder: Path) -> tuple[DecoderModel, tuple[str, ...]]:
    """The published model with its weights, and its sessions in the order of their adapters.

    `folder` is the one that holds `best_checkpoint` and `args.yaml`, or its parent. The checkpoint is read with
    `weights_only=True`: it may hold tensors and numbers, never code.

    Raises:
        CheckpointError: a file is missing or is not what it should be.
    """
    if not (folder / "args.yaml").exists() and (folder / "checkpoint" / "args.yaml").exists():
        folder = folder / "checkpoint"
    config, sessions = _read_arguments(folder / "args.yaml")
    model = build_model(config)
    state = {_our_name(key): value for key, value in _read_state(folder / "best_checkpoint").items()}
    expected = model.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(f"{folder / 'best_checkpoint'} has no {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted(state.keys() - expected.keys()):
        raise CheckpointError(f"{folder / 'best_checkpoint'} holds {unknown[0]}, which args.yaml does not account for")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{folder / 'best_checkpoint'}: {name} has shape {tuple(value.shape)}, "
                f"args.yaml asks for {tuple(expected[name].shape)}"
            )
    model.load_state_dict(state)
    return model, sessions


def _read_arguments(path: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; the official baseline keeps args.yaml beside best_checkpoint")
    arguments: Any = OmegaConf.load(path)
    try:
        model, dataset = arguments.model, arguments.dataset
        config = ModelConfig(
            session_adapter=SessionAdapterConfig(dropout=float(model.input_network.input_layer_dropout)),
            patch=PatchConfig(int(model.patch_size), int(model.patch_stride)),
            gru=GRUConfig(int(model.n_units), int(model.n_layers), float(model.rnn_dropout)),
            num_channels=int(model.n_input_features),
            num_sessions=len(dataset.sessions),
            num_symbols=int(dataset.n_classes),
        )
        return config, tuple(dataset.sessions)
    except (OmegaConfBaseException, TypeError) as error:
        raise CheckpointError(f"{path} lacks a setting of the official baseline: {error}") from error


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; download the published baseline again")
    # The trainer stores its validation figures as NumPy scalars; NumPy 1 pickled them under another module's name.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [np.dtypes.Float64DType, np.dtypes.Float32DType]
    scalars: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    try:
        with torch.serialization.safe_globals(scalars):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not a readable checkpoint of tensors and numbers: {reason}") from error
    if not isinstance(content, dict) or "model_state_dict" not in content:
        raise CheckpointError(f"{path} has no model_state_dict; is it the official baseline's best_checkpoint?")
    state: dict[str, torch.Tensor] = content["model_state_dict"]
    return state


def _our_name(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = next(key.removeprefix(prefix) for prefix in _WRAPPERS if key.startswith(prefix))
    for pattern, ours in _RENAMED:
        if pattern.fullmatch(key):
            return pattern.sub(ours, key)
    return key
