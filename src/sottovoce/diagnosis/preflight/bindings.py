"""The functions a run will really call: under their names in the modules that call them, at the time of asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from sottovoce.core.findings import Finding


def bound(name: str, *modules: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    """The different functions that `modules` know as `name`, each as (first module that does, function).

    A module that imported a function keeps its own reference to it: what the run calls may differ from what its home
    module holds.
    """
    functions: dict[str, Callable[..., Any]] = {}
    for module in modules:
        function = getattr(module, name)
        if not any(function is other for other in functions.values()):
            functions[module.__name__] = function
    return [(f"{place}.{name}", function) for place, function in functions.items()]


def first_found(*checks: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of the first check that has any: the later ones rest on what it asks about."""
    for check in checks:
        some = False
        for finding in check:
            some = True
            yield finding
        if some:
            return
