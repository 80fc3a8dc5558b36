"""Help and wrong usage are answered without loading what takes seconds."""

import json
import subprocess
import sys

import pytest

import sottovoce
from sottovoce.bench import BENCHMARKS
from sottovoce.bench.measure import benchmark
from sottovoce.cli.main import VERBS, main

pytestmark = pytest.mark.slow

HEAVY = {"torch", "lightning", "hydra", "omegaconf", "numpy", "numba", "h5py", "matplotlib", "rich", "yaml"}
LOADED = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"


def loaded_by(code: str) -> set[str]:
    """The packages that are loaded at the end of `code`, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LOADED}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def loaded_by_command(*arguments: str) -> set[str]:
    code = f"""
from sottovoce.cli.main import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass"""
    return loaded_by(code)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"], []])
def test_no_verb_is_imported(arguments: list[str]) -> None:
    assert not loaded_by_command(*arguments) & HEAVY


def test_no_verb_loads_anything_for_its_help_or_for_wrong_usage() -> None:
    code = "from sottovoce.cli.main import main"
    for verb in VERBS:
        for argument in ("--help", "--no-such-option"):
            code += f"\ntry:\n    main([{verb!r}, {argument!r}])\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & HEAVY


def test_the_package_is_light() -> None:
    assert not loaded_by("import sottovoce; dir(sottovoce); sottovoce.__version__") & HEAVY


@pytest.mark.slow
def test_a_verb_is_loaded_when_it_is_asked_for() -> None:
    assert "torch" in loaded_by("import sottovoce; sottovoce.train")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: sottovoce {verb} ")
    assert "--help" in shown


def test_public_names_exist() -> None:
    for name in sottovoce.PUBLIC:
        assert name in dir(sottovoce)
        assert callable(getattr(sottovoce, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sottovoce.trian


def test_benchmarks_exist() -> None:
    for name in BENCHMARKS:
        assert callable(benchmark(name))
