"""From plain mappings (YAML, overrides) to frozen dataclasses and back, strictly.

An unknown key is an error with the nearest valid name; a value of the wrong type is an error with the key's full
name. The dataclasses themselves reject contradictions in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sottovoce.core.errors import ConfigurationError, UnknownKeyError

T = TypeVar("T")
MISSING = "???"
"""Value of a setting that has no default and must be given (OmegaConf's mark)."""


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass `cls` from `values`; absent keys take their defaults.

    Raises:
        ConfigurationError: unknown key, wrong type, a required value is missing, or the dataclass rejects it.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(typing.cast(Any, cls))]
    for key in values:
        if key not in known:
            raise UnknownKeyError(_join(path, str(key)), nearest(str(key), known, path))
    built = {key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()}
    instance = cls(**built)
    for name in known:
        if getattr(instance, name) == MISSING:
            raise ConfigurationError(f"{_join(path, name)} is required; give it as {_join(path, name)}=VALUE")
    return instance


def plain(instance: Any) -> Any:
    """`instance` as nested dicts, lists and scalars; `build` reverses it."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        return {f.name: plain(getattr(instance, f.name)) for f in dataclasses.fields(instance)}
    if isinstance(instance, tuple):
        return [plain(item) for item in instance]
    return dict(instance) if isinstance(instance, dict) else instance


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Every key of the dataclass `cls` with its default, sections included; `???` where there is none."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING:
            found[f.name] = plain(f.default)
        elif dataclasses.is_dataclass(hints[f.name]):
            found[f.name] = defaults(typing.cast(type, hints[f.name]))
        else:
            assert f.default_factory is not dataclasses.MISSING
            found[f.name] = plain(f.default_factory())
    return found


def check_key(cls: type[Any], key: str) -> None:
    """Accept `key` (dotted, e.g. `training.optimizer.lr`) if the dataclass tree has it.

    The keys of a mapping are for the dataclass that holds it to check.

    Raises:
        ConfigurationError: it has not; the message gives the nearest valid name.
    """
    section: Any = cls
    passed: list[str] = []
    for part in key.split("."):
        if (entry := _section_of_list(section)) is not None and part.isdecimal():
            section = entry
            passed.append(part)
            continue
        if typing.get_origin(section) is dict:
            return  # the section that holds this mapping knows its keys
        if not dataclasses.is_dataclass(section):
            raise UnknownKeyError(key, f": {'.'.join(passed)} is a value, not a section")
        hints = typing.get_type_hints(section)
        if part not in hints:
            keys, last = every_key(cls), key.split(".")[-1]
            same = [known for known in keys if known.split(".")[-1] == last]
            if part != last and len(same) == 1:  # the section has another name
                raise UnknownKeyError(key, f"; did you mean {same[0]}?")
            raise UnknownKeyError(key, nearest(part, list(hints), ".".join(passed), keys))
        section = _without_none(hints[part])
        passed.append(part)


def every_key(cls: type[Any], path: str = "") -> list[str]:
    """All dotted keys of the dataclass tree, optional sections included."""
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        inner = _without_none(hint)
        if (entry := _section_of_list(inner)) is not None:
            keys += every_key(entry, _join(path, f"{name}.0"))
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner):
            keys += every_key(inner, _join(path, name))
        else:
            keys.append(_join(path, name))
    return keys


def nearest(wrong: str, known: Sequence[str], path: str = "", everywhere: Sequence[str] = ()) -> str:
    """A hint that ends an error message: the valid name closest to `wrong`, in this section or in another."""
    if close := difflib.get_close_matches(wrong, known, 1, 0.6):
        return f"; did you mean {_join(path, close[0])}?"
    if elsewhere := [key for key in everywhere if key.split(".")[-1] == wrong]:
        return f"; did you mean {elsewhere[0]}?"
    return f"; {path or 'the configuration'} has {', '.join(known)}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    inner = _without_none(hint)
    if value is None:
        if inner is hint:
            raise ConfigurationError(f"{path}=null: a value is required")
        return None
    if value == MISSING:
        raise ConfigurationError(f"{path} is required; give it as {path}=VALUE")
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{path}={value!r}: this is a section with keys of its own, not a value")
        return build(inner, value, path)
    if typing.get_origin(inner) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigurationError(f"{path}={value!r}: a list is expected, e.g. {path}=[a,b]")
        item = typing.get_args(inner)[0]
        return tuple(_convert(item, entry, f"{path}.{i}") for i, entry in enumerate(value))
    if typing.get_origin(inner) is dict:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{path}={value!r}: this is a section with keys of its own, not a value")
        kind = typing.get_args(inner)[1]
        return {str(key): _convert(kind, entry, _join(path, str(key))) for key, entry in value.items()}
    return _scalar(inner, value, path)


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if isinstance(value, (Mapping, list, tuple)):
        raise ConfigurationError(f"{path}={value!r}: a single value is expected")
    if kind is str:
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and is_number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    expected = {bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
    raise ConfigurationError(f"{path}={value!r}: {expected} is expected")


def _section_of_list(hint: Any) -> Any:
    """The dataclass of the entries of a list of sections, e.g. `training.stages`; None for anything else."""
    entry = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    return entry if isinstance(entry, type) and dataclasses.is_dataclass(entry) else None


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return inner
    return hint


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
