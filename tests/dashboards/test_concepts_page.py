"""Does the page of concepts say what the tables say, as text, and is nothing on it silently left out?"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iclens.dashboards.records.concepts import ConceptsView, ConceptView
from iclens.dashboards.records.site import SiteView
from iclens.dashboards.site import build_site

from .made_up_concepts import NAMES, make_page

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """A page's tags, attributes and tables, each table a list of rows of cell texts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, view_of: Callable[..., SiteView]
) -> tuple[Path, ConceptsView]:
    """A site with hostile text on its page of concepts; the first shown latents have pages."""
    view = replace(view_of(per_site=8, n_pages=2), beliefs=(), growth=(), patching=None, additive=None)
    paged, others = (
        view.pages,
        [row.key for row in view.latents if row.key not in {p.site for p in view.pages}],
    )
    keys = [(p.site, p.latent) for p in paged] + [
        k for k in others if k not in {(p.site, p.latent) for p in paged}
    ]
    page = make_page(keys[:4], HOSTILE)
    index = build_site(replace(view, concepts=page), tmp_path_factory.mktemp("concepts") / "site").index
    return index.parent, page


@pytest.fixture(scope="module")
def page(built: tuple[Path, ConceptsView]) -> Page:
    return Page((built[0] / "concepts.html").read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------- the page


def table_under(page: Page, *headings: str) -> list[list[str]]:
    """The first table whose first row holds all these headings."""
    return next(t for t in page.tables if all(any(h in cell for cell in t[0]) for h in headings))


def test_every_concept_has_a_section_and_is_reached_from_the_navigation(page: Page) -> None:
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = {value[1:] for tag, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert {f"concept-{i}" for i in range(1, 9)} < ids
    assert links <= ids
    assert {f"concept-{i}" for i in range(1, 9)} < links


def test_hostile_text_stays_text(page: Page, built: tuple[Path, ConceptsView]) -> None:
    source = (built[0] / "concepts.html").read_text(encoding="utf-8")
    assert page.text.count(HOSTILE) > 50
    assert "<img" not in source and "</script>" not in source and "<script" not in source
    assert not {"img", "script", "style", "iframe"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "-src" in v)
    assert "unsafe" not in policy


def test_links_lead_to_pages_that_were_written_and_to_no_others(
    page: Page, built: tuple[Path, ConceptsView]
) -> None:
    written = {f"latents/{file.name}" for file in (built[0] / "latents").iterdir()}
    linked = {v for t, n, v in page.attributes if (t, n) == ("a", "href") and v.startswith("latents/")}
    assert linked == written and len(written) == 2
    site, latent = built[1].concepts[0].latents[3].key
    assert f"{site} · {latent}" in page.text


def test_index_and_latent_pages_link_to_the_page(built: tuple[Path, ConceptsView]) -> None:
    assert '<a href="concepts.html">Concepts</a>' in (built[0] / "index.html").read_text(encoding="utf-8")
    for file in (built[0] / "latents").iterdir():
        assert '<a href="../concepts.html">Concepts</a>' in file.read_text(encoding="utf-8")
    own = (built[0] / "concepts.html").read_text(encoding="utf-8")
    assert '<a href="concepts.html" aria-current="page">Concepts</a>' in own


def test_without_concepts_there_is_no_page_and_no_link(
    tmp_path: Path, view_of: Callable[..., SiteView]
) -> None:
    view = replace(
        view_of(per_site=2, n_pages=1), beliefs=(), growth=(), patching=None, additive=None, concepts=None
    )
    index = build_site(view, tmp_path / "site").index
    assert not (index.parent / "concepts.html").exists()
    assert not [f for f in index.parent.rglob("*.html") if "concepts.html" in f.read_text(encoding="utf-8")]


def test_figures_of_a_latent_stand_in_its_row(page: Page) -> None:
    rows = table_under(page, "worst confound", "selectivity")
    assert [re.sub(r"\s+", " ", cell).strip() for cell in rows[1][2:]] == [
        "0.953 [0.930, 0.970]", "0.961", f"0.612 magnitude{HOSTILE}", "0.341", "0.310 ratio", "2.21", "0.354",
        "0.710", "3.0e−9", "– 97 % at lab", "–",
    ]  # fmt: skip
    assert rows[2][-1] == "1 of 2" and rows[2][-2].startswith("detection")
    assert "magnitude 0.712 above 0.65" in rows[2][1]


def test_the_own_concept_and_belief_are_marked_in_words_and_by_a_frame(page: Page) -> None:
    confusion = [t for t in page.tables if t[0][0] == "latent" and "task identity" in t[0][-1]]
    assert [[cell.strip() for cell in t[0][1:] if "own" in cell] for t in confusion] == [
        [f"{name} own"] for name in NAMES[:-1]
    ]
    moved = table_under(page, "margin", "control p")
    assert [cell for cell in moved[0] if "own" in cell] == ["odd own"]
    framed = [v for t, n, v in page.attributes if (t, n) == ("td", "class") and v.endswith("own")]
    assert len(framed) == 7 * 4 + 5


def test_a_dash_has_its_reason_in_a_note(page: Page) -> None:
    confusion = next(t for t in page.tables if t[0][0] == "latent" and "task identity" in t[0][-1])
    assert confusion[1][-1].split() == ["–1"]
    assert "no task at AUROC 0.75 on the discovery prompts" in page.text
    operands = table_under(page, "measure", "block 0")
    assert "".join(operands[1][2].split()) == "–1" and "chance 0.010" in operands[1][1]
    assert "60 rows needed" in page.text


def test_a_confirmed_row_says_yes_and_every_other_why_not(page: Page) -> None:
    rows = table_under(page, "margin", "control p")[1:]
    assert [row[1].strip() for row in rows] == ["yes", *["no random latents move it as far"] * 4]
    assert "over double" in rows[0][2] and "40 controls" in rows[0][3]
    assert rows[0][5].split() == ["−0.920", "[−1.02,", "−0.820]"]


def test_creation_names_every_source_and_the_verdict(page: Page) -> None:
    rows = table_under(page, "block", "end, MLP ablated", "verdict")
    assert rows[1][1].split() == ["0.510", "[0.490,", "0.530]"]
    assert rows[1][-1].startswith("created by the MLP")
    parity = table_under(page, "attn_out − mlp_out")
    assert "−0.390" in parity[1][1] and parity[1][2] == "MLP"


def test_every_chart_has_words_and_every_heading_a_scope(page: Page) -> None:
    labels = [v for t, n, v in page.attributes if (t, n) == ("svg", "aria-label")]
    assert len(labels) == page.tags.count("svg") == 7 * 4 * 4
    assert all("largest" in label for label in labels)
    scopes = [v for t, n, v in page.attributes if (t, n) == ("th", "scope")]
    assert len(scopes) == page.tags.count("th")


def test_the_page_is_small(built: tuple[Path, ConceptsView]) -> None:
    assert (built[0] / "concepts.html").stat().st_size < 600_000


def test_an_empty_page_says_why_everywhere(tmp_path: Path) -> None:
    bare = ConceptView("odd", "y is odd", "Nothing can be said of this concept: no matched pairs.")
    for name, page in (("none", ConceptsView()), ("one", ConceptsView([bare]))):
        build_site(SiteView("Empty", "Why?", concepts=page), tmp_path / name)
    none, one = (
        Page((tmp_path / name / "concepts.html").read_text(encoding="utf-8")) for name in ("none", "one")
    )
    assert "No concept was asked for in this run." in none.text
    assert one.text.count("Not measured") == 5
    for words in (
        "Nothing can be said of this concept: no matched pairs.",
        "No latent is shown:",
        "No probe was trained.",
        "No latent was moved.",
        "Parity was not read around the blocks",
    ):
        assert words in one.text
    assert "svg" not in one.tags
