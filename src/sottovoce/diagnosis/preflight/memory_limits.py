"""How much memory this process may hold: of the machine, of its container, of its GPU."""

from __future__ import annotations

import os
import resource
from pathlib import Path, PurePosixPath
from typing import Final

import torch

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")
UNLIMITED: Final = 1 << 60
"""Bytes; version 1 of the control groups writes 2^63 - 4096 where there is no limit."""


def held() -> int:
    """Bytes of physical memory that this process holds; where the system does not tell, the most that it has held."""
    statm = PROC / "self/statm"
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_to_cpu(processes: int = 1) -> int:
    """Bytes that each of `processes` alike can hold, what this one holds already included.

    What is free or can be freed (`MemAvailable`; the machine's size where the system does not tell), and no more than
    the limit of any control group that this process is in.
    """
    meminfo = PROC / "meminfo"
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        most = int(fields["MemAvailable"].split()[0]) * 1024 + held()
    else:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([most, *_limits()]) // processes


def available_to_gpu() -> int:
    """Bytes of the current CUDA device that are free, or that PyTorch has reserved for this process."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def _limits() -> list[int]:
    """Limits in bytes of this process's control groups and of the groups that hold those, of version 2 and 1."""
    groups, limits = PROC / "self/cgroup", []
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = PurePosixPath(group).relative_to("/")
        for folder in (inside, *inside.parents):  # in a container its own group may be mounted as the root
            file = root / folder / name
            if file.exists() and (text := file.read_text().strip()) != "max":
                limits.append(int(text))
    return [limit for limit in limits if limit < UNLIMITED]
