"""How much memory a piece of work needs, measured where nothing else has used any."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

MIB = 1024
"""KiB."""
PROC = Path("/proc/self")


def in_new_process(measure: Callable[..., float | None], *arguments: Any) -> float | None:
    """`measure(*arguments)` with this process's number of threads, not blurred by what has been freed here before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_threads, torch.get_num_threads(), measure, arguments).result()


def _with_threads(threads: int, measure: Callable[..., float | None], arguments: tuple[Any, ...]) -> float | None:
    torch.set_num_threads(threads)
    return measure(*arguments)


def peak_rise_mib(work: Callable[[], object]) -> float | None:
    """MiB that this process holds at the peak of `work()` beyond what it held before.

    None where the system does not tell (`/proc` is Linux's).
    """
    if not (PROC / "clear_refs").exists():
        return None
    (PROC / "clear_refs").write_text("5")  # the peak is now what is held now
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / MIB


def _status(key: str) -> int:
    """A figure in KiB of this process."""
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))
