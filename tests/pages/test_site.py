"""Do the pages of a site lead to each other, hold nothing that executes, and replace an earlier site?"""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iclens.core import RunError
from iclens.pages import site as written
from iclens.pages.site import write_site

from .made_up import make_site


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


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there_and_reached_from_every_other(pages: dict[Path, Page], site: Path) -> None:
    names = {path.relative_to(site).as_posix() for path in pages}
    top = {name for name in names if "/" not in name}
    always = ("index", "growth", "latents", "concepts", "patching", "how", "words")
    assert {f"{name}.html" for name in always} <= top
    assert len([name for name in names if name.startswith("latents/")]) == 4
    for path, page in pages.items():
        hrefs = (value for tag, name, value in page.attributes if (tag, name) == ("a", "href"))
        links = {value.partition("#")[0] for value in hrefs}
        root = "../" * (len(path.relative_to(site).parts) - 1)
        assert {root + name for name in top - {"words.html"}} <= links, path
        assert root + "words.html" in links, path


def test_the_page_one_is_on_is_marked_in_the_navigation(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        marked = [tag for tag, name, value in page.attributes if (name, value) == ("aria-current", "page")]
        is_in_it = path.parent == site and path.name != "words.html"  # that one is in the footer
        assert marked == (["a"] if is_in_it else []), path


def test_every_link_leads_to_a_file_of_the_site(pages: dict[Path, Page], site: Path) -> None:
    ids = {path: {v for _, name, v in page.attributes if name == "id"} for path, page in pages.items()}
    seen = 0
    for path, page in pages.items():
        for tag, name, value in page.attributes:
            if name not in ("href", "src"):
                continue
            file, _, anchor = value.partition("#")
            assert not re.match(r"[a-z]+:|//", value), f"{tag} {value}"
            target = (path.parent / file).resolve() if file else path
            assert target.is_file() and target.is_relative_to(site.resolve())
            asks = target.name == "latents.html" and "=" in anchor  # the table reads it
            if anchor and not asks:
                assert anchor in ids[site / target.relative_to(site.resolve())], f"{path.name}: {value}"
                seen += target != path
    assert seen, "some lead into another page"


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
        assert charts == len(labels)
        assert all(labels)
        scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
        assert len(scopes) == page.tags.count("th")


def test_a_page_is_small(site: Path) -> None:
    sizes = [path.stat().st_size for path in (site / "latents").glob("*.html")]
    assert sorted(sizes)[-2] < 45_000  # the largest carries its hostile text everywhere


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_site(make_site(3, 1), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 5
    for file in files:
        one, two = tmp_path / "one" / file, tmp_path / "two" / file
        assert one.is_dir() or one.read_bytes() == two.read_bytes()


def test_rebuilding_replaces_the_earlier_site_and_a_failed_build_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    n = write_site(make_site(3, 2), tmp_path / "site", lambda *step: steps.append(step))
    assert steps == [(k, n) for k in range(1, n + 1)]
    write_site(make_site(3, 1), tmp_path / "site")
    assert len(list((tmp_path / "site" / "latents").iterdir())) == 1
    before = (tmp_path / "site" / "index.html").read_bytes()

    def fails(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(written, "table", fails)
    with pytest.raises(OSError, match="disk full"):
        write_site(make_site(3, 2, "other"), tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds something else"):
        write_site(make_site(1, 0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_misfit_is_stated_everywhere_but_on_other_latents_pages(tmp_path: Path) -> None:
    site = make_site()
    place = site.latents[0].site.short
    misfit = replace(site.chrome, misfits=((place, "made for 'a' <b>, used on 'c'"),))
    write_site(replace(site, chrome=misfit), tmp_path / "site")
    for file in (tmp_path / "site").rglob("*.html"):
        own = file.parent.name != "latents" or file.name.startswith(place)
        source = file.read_text(encoding="utf-8")
        assert ("does not fit this model" in source) is own, file
        assert ("made for &#39;a&#39; &lt;b&gt;" in source) is own


def test_scripts_write_no_markup(site: Path) -> None:
    scripts = list((site / "assets").glob("*.js"))
    assert len(scripts) >= 3
    markup = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bfetch\(|\bimport\b|new Function"
    )
    for script in scripts:
        assert not re.search(markup, script.read_text(encoding="utf-8")), script.name
