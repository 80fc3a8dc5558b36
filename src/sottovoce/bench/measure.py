"""A benchmark by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from sottovoce.bench.rows import Row


def benchmark(name: str) -> Callable[[int], list[Row]]:
    """The function that measures `name`, one of `BENCHMARKS`, so many rounds; only its module is imported."""
    module = name.replace("-", "_")
    function: Callable[[int], list[Row]] = getattr(
        importlib.import_module(f"sottovoce.bench.{module}"), f"bench_{module}"
    )
    return function
