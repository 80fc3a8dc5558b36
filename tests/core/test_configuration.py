from dataclasses import dataclass, field

import pytest

from sottovoce.core.configuration import build, check_key, every_key, plain
from sottovoce.core.errors import ConfigurationError, UnknownKeyError
from sottovoce.training.config import RunConfig


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    on: bool = False
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None


def test_build_and_plain_are_inverse() -> None:
    values = {"name": "y", "on": True, "names": ["a", "b"], "inner": {"width": 2, "rate": 1.5}, "extra": {"width": 3}}
    built = build(Outer, values)
    assert built == Outer("y", True, ("a", "b"), Inner(2, 1.5), Inner(3, 0.5))
    assert build(Outer, plain(built)) == built


def test_numbers_written_in_yaml_forms() -> None:
    assert build(Inner, {"rate": "1e-3"}).rate == 0.001
    assert build(Inner, {"rate": 2}).rate == 2.0
    assert build(Inner, {"width": 8.0}).width == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"widht": 2}}, "unknown configuration key inner.widht; did you mean inner.width"),
        ({"inner": 3}, "inner=3: this is a section"),
        ({"inner": {"width": 2.5}}, "inner.width=2.5: a whole number is expected"),
        ({"inner": {"width": True}}, "inner.width=True: a whole number"),
        ({"inner": {"rate": "fast"}}, "inner.rate='fast': a finite number"),
        ({"inner": {"rate": "nan"}}, "inner.rate='nan': a finite number"),
        ({"inner": {"width": float("inf")}}, "inner.width=inf: a whole number"),
        ({"on": "maybe"}, "on='maybe': true or false"),
        ({"names": "a"}, r"names='a': a list is expected, e.g. names=\[a,b\]"),
        ({"name": None}, "name=null: a value is required"),
        ({"name": "???"}, "name is required; give it as name=VALUE"),
        ({"name": ["a"]}, "a single value is expected"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(Outer, values)


def test_keys() -> None:
    assert every_key(Outer) == ["name", "on", "names", "inner.width", "inner.rate", "extra.width", "extra.rate"]
    check_key(Outer, "extra.rate")
    for key, hint in (("extra.rat", "did you mean extra.rate"), ("width", "inner.width"), ("name.x", "is a value")):
        with pytest.raises(ConfigurationError, match=hint):
            check_key(Outer, key)


def test_a_key_in_a_section_of_another_name_is_found_by_its_own() -> None:
    with pytest.raises(UnknownKeyError, match=r"did you mean decoding\.decoder\?"):
        check_key(RunConfig, "evaluation.decoder")
