"""Documentation: its length, its links, the tests that it names, and its generated maps."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from helpers.support import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_maps_are_current() -> None:
    """Every file below plugin/ has a caption in docs/files.md, and every folder in README.md."""
    pages = runpy.run_path(str(ROOT / "docs" / "files.py"))["pages"]()
    for path, content in pages.items():
        assert path.read_text(encoding="utf-8") == content, "run `make manifest`"
    files = pages[ROOT / "docs" / "files.md"]
    for path in (ROOT / "plugin").rglob("*.py"):
        assert path.name == "__init__.py" or path.name in files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:tests|plugin|benches|examples)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?!tests/)(?:\w+/)?test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name


def test_fault_groups_that_promises_name_exist() -> None:
    from faults.rows import all_rows

    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = {word for group in re.findall(r'ROWS="?([a-z ]+)', text) for word in group.split()}
    assert named <= {row.group for row in all_rows()}
