"""Pages that are cited are in the repository, and the documentation names nothing outside it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ = [
    path
    for folder, endings in (("src", "py toml yaml"), ("tests", "py"), ("docs", "md"), (".", "md toml"), (".ci", "yml"))
    for ending in endings.split()
    for path in sorted((ROOT / folder).glob(f"*.{ending}" if folder == "." else f"**/*.{ending}"))
]
PAGE = re.compile(r"(?<![\"\w/.*{}-])[\w./-]*\w\.md\b")
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")


def missing(path: Path, cited: list[str]) -> list[str]:
    """What is found neither beside the file, nor from the repository's root, nor in the pages that `src` makes."""
    folders = (path.parent, ROOT, *([ROOT / "docs" / "failures"] if path.suffix == ".py" else []))
    return [name for name in cited if not any((folder / name).exists() for folder in folders)]


def cited_by(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return PAGE.findall(text) + (LINK.findall(text) if path.suffix == ".md" else [])


@pytest.mark.parametrize(
    "path", [p for p in READ if p != Path(__file__) and cited_by(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_cited_pages_exist(path: Path) -> None:
    assert missing(path, cited_by(path)) == []


def test_decisions_are_cited_by_their_numbers() -> None:
    numbers = {page.name[:3] for page in (ROOT / "docs" / "decisions").glob("*.md")}
    for path in READ:
        found = re.findall(r"decisions/(\d{3})\b", path.read_text(encoding="utf-8"))
        assert set(found) <= numbers, path


def test_missing_pages_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("see nowhere.md, docs/results.md and [this](other.md)\n")
    assert missing(page, cited_by(page)) == ["nowhere.md", "other.md", "other.md"]
