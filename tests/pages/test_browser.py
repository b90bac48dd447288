"""Does the browser of these tests notice what a page must not do, and do keys and links lead on?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .chromium import Browser

pytestmark = pytest.mark.browser


def latent_pages(site: Path) -> list[Path]:
    """The pages in the order of the table's links: the hostile one comes first."""
    table = (site / "latents.html").read_text(encoding="utf-8")
    return [site / link for link in re.findall(r'<a href="(latents/[^"]+)"', table)]


@pytest.mark.parametrize(
    "content",
    [
        "<script>alert(1)</script>",
        "<img src='missing.png' onerror='window.ran = 1'>",
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><p style="color: red">',
        "<script>undefined_name()</script>",
        "<img src='https://example.org/x.png'>",
    ],
)
def test_this_browser_notices_what_the_pages_must_not_do(
    browser: Browser, tmp_path: Path, content: str
) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><title>bad</title>{content}", encoding="utf-8")
    browser.open(page)
    assert browser.complaints()


def test_this_browser_reaches_this_machine_and_nothing_else(browser: Browser, served: str) -> None:
    browser.open(f"{served}/index.html")
    assert browser.run("location.href") == f"{served}/index.html"
    for outside in (
        "http://example.org/",
        "https://example.org/",
        "http://192.0.2.1/",
        "http://[2001:db8::1]/",
    ):
        with pytest.raises(RuntimeError, match="ERR_PROXY_CONNECTION_FAILED"):
            browser.open(outside)
    browser.open(f"{served}/index.html")
    asked = "fetch('http://192.0.2.1/').then(() => 'reached', () => 'refused')"
    assert browser.run(asked) == "refused"


def test_this_browser_notices_a_dialog_leaves_scripts_out_and_opens_anew(
    browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "script.html"
    page.write_text(
        "<!doctype html><title>before</title><script>document.title = 'after'</script>", encoding="utf-8"
    )
    for scripts, title in ((False, "before"), (True, "after"), (False, "before")):
        browser.open(page, scripts=scripts)
        assert browser.run("document.title") == title
    browser.open(page)
    assert browser.complaints() == []
    browser.run("window.stale = true, alert(1)")
    assert any('"alert"' in complaint for complaint in browser.complaints())
    browser.open(f"{page.resolve().as_uri()}#place")
    assert browser.run("location.hash") == "#place" and browser.run("window.stale === undefined")


def test_arrow_keys_move_between_active_tokens(browser: Browser, site: Path) -> None:
    browser.open(latent_pages(site)[1])
    browser.run("document.querySelector('.tokens b').focus()")
    browser.press("ArrowRight", 39)
    here = "document.activeElement"
    assert browser.run(f"{here} === document.querySelectorAll('.tokens b')[1]")
    said = browser.run(f"getComputedStyle({here}, '::after').content")
    assert float(said.strip('"')) == float(browser.run(f"{here}.title")) > 0
    stops = browser.run("document.querySelectorAll('.tokens')[0].querySelectorAll('[tabindex=\"0\"]').length")
    assert stops == 1


def test_next_leads_to_the_next_page_and_back(browser: Browser, site: Path) -> None:
    here, there = latent_pages(site)[:2]
    for start, rel, stop in ((here, "next", there), (there, "prev", here)):
        browser.open(start)
        assert browser.run(f"document.querySelector('a[rel={rel}]').href") == stop.resolve().as_uri()
