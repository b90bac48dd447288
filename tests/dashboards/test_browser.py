"""Do the pages work in a real browser, opened from disk, without a network, on hostile text?"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>"

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
PATIENCE = 60


class Browser:
    """One browser without a network; `open` loads a page and collects whatever it complains about.

    It is driven over the DevTools protocol: JSON objects ended by a zero byte on its file descriptors 3
    and 4, so that no port is opened and nothing beyond the browser itself is needed.
    """

    def __init__(self, binary: str, profile: Path) -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()

        def place() -> None:  # the browser reads commands from 3 and writes events to 4
            read, write = os.dup(theirs_read), os.dup(theirs_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self._read, self._write = ours_read, ours_write
        self._pending, self._ids = b"", itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.send("Network.emulateNetworkConditions", **offline)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._read, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError(f"chromium said nothing for {PATIENCE} s, or ended")
            self._pending += piece
        message, _, self._pending = self._pending.partition(b"\0")
        event = json.loads(message)
        if event.get("method") == "Page.javascriptDialogOpening":  # it would hold up every later command
            answer = {"id": next(self._ids), "method": "Page.handleJavaScriptDialog"}
            answer |= {"params": {"accept": True}, "sessionId": self._session}
            os.write(self._write, json.dumps(answer).encode() + b"\0")
        return event

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a page from disk and wait until it and its scripts are done."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.run("0")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text={"Enter": "\r"}.get(key, "") if kind == "keyDown" else "",
            )

    def type(self, text: str) -> None:
        """Type into the focused field."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def complaints(self) -> list[str]:
        """Console messages, log entries, uncaught errors, policy violations and dialogs since `open`."""
        self.run("1")
        wanted = {
            *("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"),
            *("Audits.issueAdded", "Page.javascriptDialogOpening"),
        }
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in wanted]

    def requested(self) -> list[str]:
        """Addresses asked for since `open`."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        """End the browser this object started."""
        self._session = None
        try:
            self.send("Browser.close")
            self._process.wait(timeout=20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._read)
            os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.fail("no chromium on this machine: install it (apt-get install chromium) to test the pages")
    started = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


ROWS = """[...document.querySelectorAll('#table tbody tr')]
  .map(row => [...row.cells].map(cell => cell.textContent.trim()))"""
STATUS = "document.getElementById('status').textContent"


def latent_pages(site: Path) -> list[Path]:
    """The pages in the order of the index's links: the hostile one comes first."""
    links = LinkedPages()
    links.feed((site / "index.html").read_text(encoding="utf-8"))
    return [site / link for link in links.found]


class LinkedPages(HTMLParser):
    """Latent pages that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") or ""
        if tag == "a" and href.startswith("latents/"):
            self.found.append(href)


def search(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('search').focus(), document.getElementById('search').select()")
    browser.type(text) if text else browser.press("Delete", 46)


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


@pytest.mark.parametrize("page", ["index", 0, 1, 2])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_page_opens_quietly_and_executes_nothing(
    browser: Browser, site: Path, page: str | int, width: int, scheme: str, tmp_path: Path
) -> None:
    path = site / "index.html" if page == "index" else latent_pages(site)[int(page)]
    browser.open(path, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requested()
    assert all(url.startswith(site.resolve().as_uri()) for url in browser.requested())
    assert browser.run("document.querySelectorAll('img, main script, iframe, object').length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_hostile_text_is_shown_as_text(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html")
    for place in ("h1", "dl.findings", "#table tbody", ".heat figcaption", ".facts"):
        assert HOSTILE in browser.run(f"document.querySelector('{place}').textContent"), place
    assert HOSTILE in browser.run("document.querySelector('.panels svg').getAttribute('aria-label')")
    browser.open(latent_pages(site)[0])
    for place in ("#concepts + div", "#patching + div", ".prompt figcaption"):
        assert HOSTILE in browser.run(f"document.querySelector('{place}').textContent"), place
    assert HOSTILE.replace(" ", "␣") in browser.run(
        "[...document.querySelectorAll('.tokens')].at(-1).textContent"
    )


def test_script_draws_the_first_page_as_it_was_written(browser: Browser, site: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(site / "index.html")
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    written = browser.run(ROWS)
    assert len(written) == 50
    assert browser.run("document.querySelector('.controls').hidden")
    browser.open(site / "index.html")
    assert browser.run(ROWS) == written
    assert not browser.run("document.querySelector('.controls').hidden")


def test_search_filters(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html")
    assert browser.run(STATUS) == "1–50 of 240"
    search(browser, "L2.mlp grows")
    rows = browser.run(ROWS)
    assert rows and all(row[0] == "L2.mlp_out" and row[6] == "grows" for row in rows)
    assert browser.run(STATUS) == f"1–{len(rows)} of {len(rows)} (240 in all)"
    search(browser, "no such latent")
    assert browser.run(ROWS) == []
    assert browser.run(STATUS).startswith("No latent matches")
    search(browser, HOSTILE)
    assert len(browser.run(ROWS)) == 1
    assert browser.complaints() == []
    search(browser, "")
    assert browser.run(STATUS) == "1–50 of 240"
    browser.run("document.getElementById('paged').click()")
    rows = browser.run(ROWS)
    assert len(rows) == len(latent_pages(site)) == browser.run("document.querySelectorAll('#table a').length")


def test_sorting_and_paging_by_keyboard(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html")
    first = browser.run(ROWS)
    heading = "document.querySelectorAll('#table thead th')[4]"
    browser.run(f"{heading}.firstElementChild.focus()")
    orders = []
    for expected in ("descending", "ascending", "none"):
        browser.press("Enter", 13)
        assert browser.run(f"{heading}.getAttribute('aria-sort')") == expected
        orders.append(browser.run(ROWS))
    slopes = [[float(row[4].replace("−", "-")) for row in rows] for rows in orders]
    assert slopes[0] == sorted(slopes[0], reverse=True)
    assert slopes[1] == sorted(slopes[1])
    assert slopes[0][0] > slopes[1][-1]
    assert orders[2] == first
    browser.run("document.getElementById('forth').focus()")
    browser.press("Enter", 13)
    assert browser.run(STATUS) == "51–100 of 240"
    assert browser.run(ROWS)[0] != first[0]


def test_undefined_values_sort_last_both_ways(browser: Browser, site: Path) -> None:
    browser.open(site / "index.html")
    button = "document.querySelectorAll('#table thead button')[8]"
    for _ in range(2):
        browser.run(f"{button}.click()")
        column = [row[8] for row in browser.run(ROWS)]
        assert column[0] != "–"
        assert "–" in column and set(column[column.index("–") :]) == {"–"}


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, site: Path, scheme: str) -> None:
    worst = """
    (() => {
      const channels = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      const luminance = (c) => channels(c).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const paper = luminance(getComputedStyle(document.body).backgroundColor);
      const ratio = (c) => (Math.max(luminance(c), paper) + .05) / (Math.min(luminance(c), paper) + .05);
      const words = [...document.querySelectorAll('p, dd, dt, td, th, figcaption, h1, h2, a, .chart text')];
      const seen = words.filter(e => !e.closest('.heat svg') && !e.matches('.skip'));
      return Math.min(...seen.map(e => ratio(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'])));
    })()
    """
    for page in (site / "index.html", latent_pages(site)[1]):
        browser.open(page, scheme=scheme)
        assert browser.run(worst) >= 4.5
