"""Is a page drawn again when something on it changed, and only then?"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import iclens.dashboards
from iclens.dashboards.records.site import SiteView
from iclens.dashboards.site import MARKER, Built, build_site

Views = Callable[..., SiteView]


@pytest.fixture
def view(view_of: Views) -> SiteView:
    """Five latents' pages, and none of the charts that take a while to render."""
    return replace(
        view_of(per_site=3, n_pages=5, hostile=""), beliefs=(), growth=(), patching=None, additive=None
    )


@pytest.fixture
def folder(view: SiteView, tmp_path: Path) -> Path:
    """The site as it was built first."""
    return build_site(view, tmp_path / "site").index.parent


def inodes(folder: Path) -> dict[str, int]:
    """Page → the file it is."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_ino
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".html", ".js") and path.parent.name != "assets"
    }


def drawn(view: SiteView, folder: Path) -> tuple[set[str], Built]:
    """Pages that a rebuild draws anew."""
    before = inodes(folder)
    built = build_site(view, folder)
    after = inodes(folder)
    fresh = {name for name, inode in after.items() if inode not in before.values()}
    assert built.drawn == len(fresh) and built.kept == len(after) - len(fresh)
    return fresh, built


def latent_page(view: SiteView, place: int) -> str:
    """Address of the page of the latent at that place."""
    return next(r.page for r in view.latents if r.key == (view.pages[place].site, view.pages[place].latent))


def test_an_unchanged_study_draws_nothing(view: SiteView, folder: Path) -> None:
    texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fresh, built = drawn(view, folder)
    assert fresh == set() and built.kept >= 9
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == texts


def test_equal_records_made_anew_draw_nothing(view: SiteView, folder: Path, view_of: Views) -> None:
    again = view_of(per_site=3, n_pages=5, hostile="")
    again = replace(again, beliefs=(), growth=(), patching=None, additive=None)
    assert again is not view and drawn(again, folder)[0] == set()


def test_what_one_page_shows_redraws_that_page(view: SiteView, folder: Path) -> None:
    pages = list(view.pages)
    pages[2] = replace(pages[2], task_role=pages[2].task_role + "!")
    assert drawn(replace(view, pages=pages), folder)[0] == {latent_page(view, 2)}


def test_a_removed_latent_disappears_and_its_neighbours_are_redrawn(view: SiteView, folder: Path) -> None:
    gone, beside = latent_page(view, 2), {latent_page(view, 1), latent_page(view, 3)}
    fresh, _ = drawn(replace(view, pages=[*view.pages[:2], *view.pages[3:]]), folder)
    assert not (folder / gone).exists()
    assert beside <= fresh and latent_page(view, 0) not in fresh and latent_page(view, 4) not in fresh
    for page in beside:
        assert gone.rpartition("/")[2] not in (folder / page).read_text(encoding="utf-8")


def test_the_title_stands_on_every_page_and_redraws_them_all(view: SiteView, folder: Path) -> None:
    fresh, _ = drawn(replace(view, title="Another"), folder)
    assert {name for name in inodes(folder) if name.endswith(".html")} <= fresh
    assert not any(name.startswith("data/") for name in fresh), "rows carry no title"


@pytest.mark.parametrize("damage", ["", "[1, 2]", "{", "null", '{"index.html": "0"}'])
def test_a_damaged_marker_redraws_everything(view: SiteView, folder: Path, damage: str) -> None:
    (folder / MARKER).write_text(damage, encoding="utf-8")
    assert drawn(view, folder)[1].kept == 0
    assert json.loads((folder / MARKER).read_text(encoding="utf-8")).keys() == inodes(folder).keys()


def test_a_page_that_is_missing_is_drawn_again(view: SiteView, folder: Path) -> None:
    (folder / latent_page(view, 1)).unlink()
    assert drawn(view, folder)[0] == {latent_page(view, 1)}


def test_new_code_redraws_everything(view: SiteView, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iclens.dashboards.pages.page.code_key", lambda: "other code")
    assert drawn(view, folder)[1].kept == 0


def test_pages_are_taken_from_another_folder_which_keeps_its_own(
    view: SiteView, folder: Path, tmp_path: Path
) -> None:
    built = build_site(view, tmp_path / "other", earlier=folder)
    assert built.drawn == 0 and inodes(tmp_path / "other") == inodes(folder)
    build_site(replace(view, title="Another"), tmp_path / "other")
    assert "Another" not in (folder / "index.html").read_text(encoding="utf-8")


def test_progress_is_told_page_by_page(view: SiteView, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    built = build_site(view, tmp_path / "site", progress=lambda done, total: told.append((done, total)))
    assert told == [(i, built.drawn) for i in range(1, built.drawn + 1)]


def test_a_page_that_was_cut_short_is_drawn_again(view: SiteView, folder: Path) -> None:
    page = folder / view.latents[0].page
    text = page.read_bytes()
    page.unlink()
    page.write_bytes(text[:100])
    assert build_site(view, folder).drawn == 1
    assert page.read_bytes() == text


def test_a_swap_that_fails_leaves_the_earlier_site(
    view: SiteView, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = (folder / "index.html").read_bytes(), Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-old"):
            raise OSError("no more inodes")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no more inodes"):
        build_site(replace(view, title="another"), folder)
    assert (folder / "index.html").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["site"]


def test_the_key_of_a_page_misses_nothing_that_draws() -> None:
    """Beyond the dashboards' own files, which are hashed: values by name, and libraries by version."""
    hashed = {("iclens.core", "ROLES"), ("iclens.schemas", "LADDER")}
    versions = {"altair", "vl_convert", "jinja2", "markupsafe"}
    carriers = {"numpy", "pandas"}  # which bring values to altair
    folder = Path(iclens.dashboards.__path__[0])
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                own = node.module.startswith("iclens.dashboards") or node.module == "iclens.core"
                if node.module.startswith("iclens") and not own:
                    assert {(node.module, alias.name) for alias in node.names} <= hashed, file.name
                top = node.module.split(".")[0]
            elif isinstance(node, ast.Import):
                top = node.names[0].name.split(".")[0]
            else:
                continue
            assert top in sys.stdlib_module_names or top in versions | {"iclens"} | carriers, (file.name, top)
