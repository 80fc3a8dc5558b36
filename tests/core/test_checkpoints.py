import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sottovoce.core.checkpoints import read_state, read_tensors, write_checkpoint
from sottovoce.core.errors import CheckpointError

OLD = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"w::step": torch.tensor(3.0)}}


def test_round_trip_keeps_bits_and_drops_old_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3, OLD, {"best": 0.1 + 0.2})
    new = {"model": {"w": torch.full((2, 3), 7.0)}}
    write_checkpoint(tmp_path, 5, new, {"best": None})
    assert read_state(tmp_path) == (5, {"best": None})
    assert torch.equal(read_tensors(tmp_path, "model")["w"], new["model"]["w"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "model-00000005.safetensors"]
    with pytest.raises(CheckpointError, match="no optimizer"):
        read_tensors(tmp_path, "optimizer")


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_checkpoint_good(tmp_path: Path) -> None:
    """The operating system refuses to write a file of more than 64 KiB, in a process of its own."""
    write_checkpoint(tmp_path, 3, OLD, {})
    script = """
import resource, signal, sys, torch
from pathlib import Path
from sottovoce.core.checkpoints import write_checkpoint
from sottovoce.core.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    write_checkpoint(Path(sys.argv[1]), 4, {"model": {"w": torch.zeros(100_000)}}, {})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "step 4 could not be written" in done.stdout
    assert "previous one is intact" in done.stdout
    assert read_state(tmp_path) == (3, {})
    assert torch.equal(read_tensors(tmp_path, "model")["w"], OLD["model"]["w"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.json",
        "model-00000003.safetensors",
        "optimizer-00000003.safetensors",
    ]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_state(tmp_path)
    write_checkpoint(tmp_path, 3, OLD, {})
    (tmp_path / "model-00000003.safetensors").write_bytes(b"\x00" * 10)
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(tmp_path, "model")
    index = json.loads((tmp_path / "checkpoint.json").read_text()) | {"format": 99}
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="format 99"):
        read_state(tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a checkpoint index"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../elsewhere-00000003.safetensors", "a/b.safetensors", "x.pt", "", 3]
)
def test_an_index_cannot_name_a_file_elsewhere(name: object, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", 3, OLD, {})
    shutil.copy(tmp_path / "one" / "model-00000003.safetensors", tmp_path / "elsewhere-00000003.safetensors")
    path = tmp_path / "one" / "checkpoint.json"
    index = json.loads(path.read_text())
    index["files"]["model"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a tensor file beside it"):
        read_tensors(tmp_path / "one", "model")
