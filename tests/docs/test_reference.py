"""docs/reference and the tables of schemas.md are what make_reference.py writes; links lead somewhere."""

import importlib.util
import re
from types import ModuleType

import pytest

from .blocks import PAGES, ROOT


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return _script().pages()


def test_the_files_are_what_the_script_writes(made: dict[str, str]) -> None:
    held = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")
    }
    assert held.keys() == made.keys()
    stale = [name for name, text in made.items() if held[name] != text]
    assert not stale, f"run docs/make_reference.py: {stale}"


def test_the_tables_of_schemas_are_as_declared() -> None:
    script = _script()
    assert script.schemas() == script.SCHEMAS.read_text(encoding="utf-8"), "run docs/make_reference.py"


def test_a_docstring_comes_out_whole(made: dict[str, str]) -> None:
    page = made["query.md"]
    section = page.split("#### `sel`")[1].split("####")[0]
    assert section.startswith("\n\n```text\nsel(\n    *,\n    site: str | Site | None = None,\n")
    assert "- `role`: one role; all by default." in section
    assert "- raises `SiteError` for a label that does not exist" in section
    assert "## `iclens saes check`\n\nMeasure L0, FVU" in made["cli.md"]
    assert "- `--resume`: Continue from the newest checkpoint" in made["cli.md"]


def _links(text: str) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    links = _links(page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        todo += [page.parent / link for link in _links(page.read_text(encoding="utf-8"))]
    assert {path.resolve() for path in PAGES} <= reached
