"""What a run ran on: versions, commit, machine; enough to repeat it or to explain a difference."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sottovoce.core.version import __version__

PACKAGES = ("torch", "lightning", "numpy", "h5py", "soundfile", "soxr", "safetensors")


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, source commit (null outside a checkout), seed, threads and machine."""
    return {
        "sottovoce": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "seed": seed,
        "num_threads": torch.get_num_threads(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "command": sys.argv[1:],
    }


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held: of the GPU it trains on, else its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _commit() -> str | None:
    """Commit of the checkout that this package lies in, with `+` when it has uncommitted changes."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
