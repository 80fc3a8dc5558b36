"""Reading the published checkpoint: a file in its form, with weights of our own choosing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.core.errors import CheckpointError
from sottovoce.models.official_t15 import load_official_t15

ARGUMENTS = """
model:
  n_input_features: 6
  n_units: 8
  rnn_dropout: 0.4
  rnn_trainable: true
  n_layers: 2
  patch_size: 5
  patch_stride: 2
  input_network:
    n_input_layers: 1
    input_layer_sizes: [6]
    input_trainable: true
    input_layer_dropout: 0.2
dataset:
  n_classes: 41
  sessions: [t15.2023.08.11, t15.2023.08.13]
"""


def official_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors under the names and in the shapes of `rnn_model.py`."""
    torch.manual_seed(seed)
    gru, out = torch.nn.GRU(30, 8, 2, batch_first=True), torch.nn.Linear(8, 41)
    state = {f"gru.{name}": value for name, value in gru.state_dict().items()}
    state |= {f"out.{name}": value for name, value in out.state_dict().items()}
    for day in range(2):
        state[f"day_weights.{day}"] = torch.randn(6, 6)
        state[f"day_biases.{day}"] = torch.randn(1, 6)
    return state | {"h0": torch.randn(1, 1, 8)}


def write(folder: Path, state: dict[str, torch.Tensor], **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.yaml").write_text(ARGUMENTS)
    torch.save({"model_state_dict": state, **more}, folder / "best_checkpoint")


def official_forward(state: dict[str, torch.Tensor], signal: torch.Tensor, day: torch.Tensor) -> torch.Tensor:
    """`GRUDecoder.forward` in evaluation mode, written from its description."""
    weights = torch.stack([state[f"day_weights.{int(d)}"] for d in day])
    biases = torch.stack([state[f"day_biases.{int(d)}"] for d in day])
    x = torch.nn.functional.softsign(torch.einsum("btd,bdk->btk", signal, weights) + biases)
    frames = [x[:, s : s + 5].reshape(len(x), -1) for s in range(0, x.shape[1] - 4, 2)]
    gru = torch.nn.GRU(30, 8, 2, batch_first=True)
    gru.load_state_dict({key.removeprefix("gru."): v for key, v in state.items() if key.startswith("gru.")})
    y, _ = gru(torch.stack(frames, dim=1), state["h0"].expand(2, len(x), 8).contiguous())
    return y @ state["out.weight"].T + state["out.bias"]


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_the_same_logits(tmp_path: Path, prefix: str) -> None:
    state = official_state()
    figures = {"val_PER": np.float64(0.101), "val_loss": 22.5, "optimizer_state_dict": {}, "scheduler_state_dict": {}}
    write(tmp_path / "checkpoint", {prefix + key: value for key, value in state.items()}, **figures)
    model, sessions = load_official_t15(tmp_path)
    assert sessions == ("t15.2023.08.11", "t15.2023.08.13")
    signal, day = torch.randn(3, 17, 6), torch.tensor([1, 0, 1])
    with torch.no_grad():
        logits, frames = model.eval()(signal, torch.tensor([17, 17, 17]), day)
        assert torch.allclose(logits, official_forward(state, signal, day), atol=1e-5)
    assert frames.tolist() == [7, 7, 7]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"args.yaml does not exist"):
        load_official_t15(tmp_path)
    (tmp_path / "args.yaml").write_text(ARGUMENTS)
    with pytest.raises(CheckpointError, match=r"best_checkpoint does not exist"):
        load_official_t15(tmp_path)
    state = official_state()
    del state["h0"]
    write(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"has no encoder.initial_state"):
        load_official_t15(tmp_path)
    write(tmp_path, official_state() | {"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="holds extra"):
        load_official_t15(tmp_path)
    write(tmp_path, official_state() | {"h0": torch.zeros(1, 1, 9)})
    with pytest.raises(CheckpointError, match=r"encoder.initial_state has shape \(1, 1, 9\)"):
        load_official_t15(tmp_path)
    (tmp_path / "args.yaml").write_text("model: {n_units: 8}")
    with pytest.raises(CheckpointError, match="lacks a setting"):
        load_official_t15(tmp_path)


class Payload:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, official_state(), extra=Payload())
    with pytest.raises(CheckpointError, match="tensors and numbers"):
        load_official_t15(tmp_path)
    assert "executed" not in capsys.readouterr().out
