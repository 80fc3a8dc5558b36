"""Every entry of the catalogue of causes is complete, consistent and on its page."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sottovoce.core.configuration import check_key
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.findings import Severity
from sottovoce.core.records import JsonLines, read_json_lines
from sottovoce.diagnosis.causes import Cause, causes, found, recorded
from sottovoce.diagnosis.pages import NO_FAULTS, keys_in, pages, write_pages
from sottovoce.training.composition import compose_config, recipe_names
from sottovoce.training.config import RunConfig

ROOT = Path(__file__).parents[2]
FAILURES = ROOT / "docs" / "failures"
ROWS = {"A": 7, "B": 7, "C": 5, "D": 7, "E": 5, "F": 9, "G": 10, "H": 10, "I": 8}
"""Rows of the field's list of failures by letter: 68."""
OVERRIDDEN = sorted(entry.code for entry in causes().values() if entry.override)
CODED = ("data/**/*.py", "decoding/*.py", "evaluation/*.py", "core/symbols.py")
"""Where errors and faults are given codes."""


def texts(entry: Cause) -> dict[str, str]:
    return {name: getattr(entry, name) for name in ("title", "looks", "why", "fix", "source")}


def test_the_committed_pages_are_those_of_the_catalogue() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in FAILURES.iterdir()}
    assert committed == pages(), "run `make pages`"


def test_every_link_leads_to_a_page() -> None:
    made = pages()
    for name, text in made.items():
        targets = re.findall(r"\]\((\S+?)\)", text)
        assert set(targets) <= set(made), name


def test_pages_of_codes_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "gone.md").write_text("old")
    assert write_pages(tmp_path) == len(causes()) + 1
    assert {path.stem for path in tmp_path.iterdir()} == {*causes(), "README"}


@pytest.mark.parametrize("code", sorted(causes()))
def test_an_entry_says_everything(code: str) -> None:
    entry = causes()[code]
    assert all(text.strip() == text and text for text in texts(entry).values())
    assert all(text[-1] in ".:?" for name, text in texts(entry).items() if name != "title")
    assert entry.tell_apart or entry.file == "data.toml"
    assert not re.search(r"/work|/tmp|stability\.md", " ".join([*texts(entry).values(), entry.tell_apart]))


def test_every_row_has_one_cause_or_is_no_fault() -> None:
    rows = [entry.row for entry in causes().values() if entry.row] + list(NO_FAULTS)
    assert sorted(rows) == sorted(f"{letter}{n}" for letter, last in ROWS.items() for n in range(1, last + 1))


def test_every_consequence_is_a_cause_and_none_follows_from_itself() -> None:
    catalogue = causes()

    @functools.cache
    def follow_from(code: str) -> frozenset[str]:
        direct = catalogue[code].consequences  # a circle would recurse without end
        return frozenset(direct).union(*(follow_from(consequence) for consequence in direct))

    for code, entry in catalogue.items():
        assert len(set(entry.consequences)) == len(entry.consequences)
        assert code not in follow_from(code)


def test_nothing_follows_from_what_is_no_fault() -> None:
    assert not any(entry.consequences for entry in causes().values() if entry.severity == "note")


@pytest.mark.parametrize("code", OVERRIDDEN)
def test_an_override_is_understood_by_a_recipe(code: str) -> None:
    overrides = causes()[code].override.split(" ")
    for override in overrides:
        check_key(RunConfig, override.partition("=")[0])
    problems = []
    for recipe in recipe_names():
        try:
            compose_config([f"recipe={recipe}", "data.data_root=x", *overrides])
        except ConfigurationError as error:
            problems.append(f"{recipe}: {error}")
        else:
            return
    pytest.fail("\n".join(problems))


@pytest.mark.parametrize("code", sorted(causes()))
def test_every_key_that_is_named_exists(code: str) -> None:
    entry = causes()[code]
    for key in keys_in(" ".join([*texts(entry).values(), entry.tell_apart])):
        check_key(RunConfig, key.replace(".N.", ".0."))


def codes_of_faults() -> Iterator[str]:
    """What the code calls faults: first words of findings, `code=` of errors, and arguments of `Fault`."""
    for path in sorted(path for pattern in CODED for path in (ROOT / "src/sottovoce").glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "")
                for keyword in node.keywords:
                    if keyword.arg == "code":
                        yield from _code(keyword.value)
                places = {"Fault": 2, "fault": 1, "AudioError": 0, "_RowError": 0}
                if name in places and len(node.args) > places[name]:
                    yield from _code(node.args[places[name]])
            elif isinstance(node, ast.Tuple) and len(node.elts) == 3:
                severity = node.elts[1]
                if isinstance(severity, ast.Constant) and severity.value in ("error", "warning"):
                    yield from _code(node.elts[0])


def _code(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_every_fault_of_the_data_has_a_page() -> None:
    emitted = set(codes_of_faults())
    assert {"length_mismatch", "scale_outlier", "wav_clipped", "path_escapes", "ctc_infeasible"} <= emitted
    assert emitted <= set(causes())


def test_a_finding_gives_the_override_before_the_advice_and_names_its_page() -> None:
    finding = found("adam_eps_regime", "eps is 0.1.", "linter")
    assert finding.fix.startswith("training.optimizer.eps=1e-8 training.optimizer.lr=0.001: Choose")
    assert (ROOT / finding.page).is_file()
    assert found("gradient_spike", "", "monitor", fix="Wait.").fix == "Wait."
    own = found("gradient_spike", "", "monitor", override="seed=2", fix="Again.")
    assert (own.override, own.advice, own.fix) == ("seed=2", "Again.", "seed=2: Again.")
    assert found("adam_eps_regime", "", "linter", severity="note").override == ""


@pytest.mark.parametrize("code", sorted(causes()))
@pytest.mark.parametrize("severity", [None, "note"])
@pytest.mark.parametrize(
    "own", [{}, {"fix": "Wait."}, {"override": "model.ssm={layers: 2}"}, {"override": "a=1 b=2", "fix": "c=3: or wait"}]
)
def test_a_finding_that_was_recorded_is_shown_as_before(
    code: str, severity: Severity | None, own: dict[str, str], tmp_path: Path
) -> None:
    finding = found(code, "Seen: x=1.", "monitor", step=7, severity=severity, support=0.3, trials=("s/1", "s/2"), **own)
    event = finding.as_event()
    lines = JsonLines(tmp_path / "events.jsonl")
    lines.append({"step": 7, "event": code, **event})
    lines.close()
    (read,) = read_json_lines(tmp_path / "events.jsonl")
    assert recorded(read) == finding
    assert (recorded(read).as_text, str(recorded(read))) == (finding.as_text, str(finding))
    assert not {"explanation", "tell_apart", "fix"} & event.keys()
    assert ("advice" in event) == bool(own)
