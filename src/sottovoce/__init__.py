"""sottovoce: train, diagnose, evaluate and serve decoders of scarce speech signals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sottovoce.data.simulate.simulation import simulate_t15 as simulate_t15
    from sottovoce.verbs.check import check as check
    from sottovoce.verbs.check import check_run as check_run
    from sottovoce.verbs.decode import decode as decode
    from sottovoce.verbs.diagnose import diagnose as diagnose
    from sottovoce.verbs.evaluate import evaluate as evaluate
    from sottovoce.verbs.import_t15 import import_t15 as import_t15
    from sottovoce.verbs.listener import Listener as Listener
    from sottovoce.verbs.load import SignalDecoder as SignalDecoder
    from sottovoce.verbs.load import load as load
    from sottovoce.verbs.report import report as report
    from sottovoce.verbs.train import resume as resume
    from sottovoce.verbs.train import train as train

from sottovoce.core.version import __version__ as __version__

PUBLIC: Final = {
    "Listener": "sottovoce.verbs.listener",
    "SignalDecoder": "sottovoce.verbs.load",
    "check": "sottovoce.verbs.check",
    "check_run": "sottovoce.verbs.check",
    "decode": "sottovoce.verbs.decode",
    "diagnose": "sottovoce.verbs.diagnose",
    "evaluate": "sottovoce.verbs.evaluate",
    "import_t15": "sottovoce.verbs.import_t15",
    "load": "sottovoce.verbs.load",
    "report": "sottovoce.verbs.report",
    "resume": "sottovoce.verbs.train",
    "simulate_t15": "sottovoce.data.simulate.simulation",
    "train": "sottovoce.verbs.train",
}
"""The module of each public name; it is imported when the name is first asked for, since PyTorch takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'sottovoce' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
