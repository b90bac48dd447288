import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iclens.dashboards.pages import latent as latent_page_module
from iclens.dashboards.pages.latents import table_script
from iclens.dashboards.records.site import Curve, Histogram, LatentRow, LatentView, SiteView
from iclens.dashboards.site import build_site
from iclens.errors import RunError, TableError

HOSTILE = "</script><img src=x onerror=alert(1)>"
Views = Callable[..., SiteView]


class Page(HTMLParser):
    """Tags, links and everything that could execute."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.inline: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style") and data.strip():
            self.inline.append(data)


def without_charts(view: SiteView) -> SiteView:
    """The same study without the charts that take a while to render."""
    return replace(view, beliefs=(), sweeps=(), growth=())


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(pages: dict[Path, Page], site: Path) -> None:
    assert len(pages) == 5
    assert site / "index.html" in pages


def test_every_link_leads_to_a_file_of_the_site(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        ids = {value for _, name, value in page.attributes if name == "id"}
        for tag, name, value in page.attributes:
            if name not in ("href", "src"):
                continue
            file, _, anchor = value.partition("#")
            assert not re.match(r"[a-z]+:|//", value), f"{tag} {value}"
            target = (path.parent / file).resolve() if file else path
            assert target.is_file() and target.is_relative_to(site.resolve())
            assert file or not anchor or anchor in ids


def test_nothing_inline_can_execute(pages: dict[Path, Page]) -> None:
    for page in pages.values():
        policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "-src" in v)
        assert policy.startswith("default-src 'none'; script-src 'self' file:;")
        assert "unsafe" not in policy
        assert not page.inline
        assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
        assert not {"img", "iframe", "object", "embed", "style"} & set(page.tags)


def test_every_chart_has_words_and_every_heading_a_scope(pages: dict[Path, Page]) -> None:
    for page in pages.values():
        charts = sum(
            value.startswith("chart")
            for tag, name, value in page.attributes
            if tag == "svg" and name == "class"
        )
        labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
        assert charts == len(labels) > 0
        assert all(labels)
        scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
        assert len(scopes) == page.tags.count("th")


def test_a_page_is_small(site: Path) -> None:
    sizes = [path.stat().st_size for path in (site / "latents").glob("*.html")]
    assert sorted(sizes)[-2] < 25_000  # the largest carries its hostile text everywhere


def test_index_says_how_many_have_pages_and_why(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "240 latents, 4 of them with a page of their own. Pages are written for" in index
    assert index.count("no page was written for this latent") == 46


def test_table_script_is_one_assignment_without_markup(view_of: Views) -> None:
    script = table_script(view_of())
    head = '"use strict";\nwindow.iclensLatents = '
    assert script.startswith(head) and script.endswith(";\n")
    assert not set("<>&\u2028\u2029") & set(script)
    rows = json.loads(script.removeprefix(head).removesuffix(";\n"))
    assert len(rows) == 240
    assert HOSTILE in rows[0][7]
    assert [row[-1] for row in rows[:5]] == [1, 1, 1, 1, 0]
    assert None in rows[-1]


def test_the_same_view_gives_the_same_bytes(tmp_path: Path, view_of: Views) -> None:
    for name in ("one", "two"):
        build_site(without_charts(view_of(per_site=3, n_pages=1)), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 5
    for file in files:
        one, two = tmp_path / "one" / file, tmp_path / "two" / file
        assert one.is_dir() or one.read_bytes() == two.read_bytes()


def test_rebuilding_replaces_the_earlier_site(tmp_path: Path, view_of: Views) -> None:
    view = without_charts(view_of(per_site=3, n_pages=2))
    index = build_site(view, tmp_path / "site").index
    assert index == tmp_path / "site" / "index.html"
    build_site(replace(view, pages=view.pages[:1]), tmp_path / "site")
    assert len(list((tmp_path / "site" / "latents").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_failed_build_leaves_the_earlier_site_and_nothing_else(
    tmp_path: Path, view_of: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = without_charts(view_of(per_site=3, n_pages=1))
    index = build_site(view, tmp_path / "site").index
    before = index.read_bytes()

    def fails(_: object) -> dict[str, object]:
        raise OSError("disk full")

    monkeypatch.setattr(latent_page_module, "_latent_parts", fails)
    with pytest.raises(OSError, match="disk full"):
        build_site(replace(view, title="another"), tmp_path / "site")
    assert index.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path, view_of: Views) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds something else"):
        build_site(view_of(per_site=1, n_pages=0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_misfit_is_stated_on_the_index_and_on_its_own_latents_pages(tmp_path: Path, view_of: Views) -> None:
    view = without_charts(view_of())
    first, *others = view.quality
    text = "made for 'a' <b>, used on 'c'"
    bad = replace(view, quality=[replace(first, mismatch=text), *others])
    build_site(bad, tmp_path / "site")
    for file in (tmp_path / "site").rglob("*.html"):
        own = file.name == "index.html" or any(
            page.site == first.site and row.page.endswith(file.name)
            for page in view.pages
            for row in view.latents
            if row.key == (page.site, page.latent)
        )
        source = file.read_text(encoding="utf-8")
        assert ("does not fit this model" in source) is own, file
        assert ("made for &#39;a&#39; &lt;b&gt;" in source) is own


def test_an_empty_study_still_has_pages(tmp_path: Path) -> None:
    row = LatentRow("L0.mlp_out", 7, 0.5)
    page = LatentView("L0.mlp_out", 7, reasons={"patches": "It is the same in A and B."})
    index = build_site(SiteView("Empty", "Why?", latents=[row], pages=[page]), tmp_path / "site").index
    assert "Growth was not tested" in index.read_text(encoding="utf-8")
    written = (tmp_path / "site" / row.page).read_text(encoding="utf-8")
    assert "Not patched. It is the same in A and B." in written
    assert "No prompt is shown." in written


@pytest.mark.parametrize("name", ["table.js", "tokens.js"])
def test_scripts_write_no_markup(site: Path, name: str) -> None:
    source = (site / "assets" / name).read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch|import", source)


def test_a_view_that_contradicts_itself_is_refused() -> None:
    row = LatentRow("L0.mlp_out", 7, 0.5)
    with pytest.raises(TableError, match=r"L0\.mlp_out latent 7 appears twice"):
        SiteView("t", "q", latents=[row, row])
    with pytest.raises(TableError, match="has no row"):
        SiteView("t", "q", pages=[LatentView("L0.mlp_out", 7)])
    with pytest.raises(TableError, match="Curve"):
        Curve([0, 1], [0.0], [0.0], [0.0])
    with pytest.raises(TableError, match="edges"):
        Histogram([0, 1], [1, 2])
    with pytest.raises(TableError, match="not a site name"):
        LatentRow("../../etc", 1, 0.1)
    with pytest.raises(TableError, match="patch"):
        LatentView("L0.mlp_out", 7, reasons={"patch": "typo"})
