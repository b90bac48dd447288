"""Sites of made-up studies, one browser, and a plain static server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from iclens.pages.site import Assembled, files, write_site

from .chromium import Browser
from .made_up import make_site


def one_of_each(site: Assembled) -> dict[str, str]:
    """A page of each kind: kind → path; of latents two."""
    paths = [path for path, _ in files(site) if path.endswith(".html")]
    found: dict[str, str] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        found.setdefault(f"{folder}/" if folder else name.removesuffix(".html"), path)
    return found | {"latents/, second": [path for path in paths if path.startswith("latents/")][1]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `page_path` runs on a page of every kind: its path in `site`."""
    if "page_path" in metafunc.fixturenames:
        kinds = one_of_each(make_site())
        metafunc.parametrize("page_path", list(kinds.values()), ids=list(kinds))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a built site with 240 latents and four pages."""
    folder = tmp_path_factory.mktemp("pages") / "site"
    write_site(make_site(), folder)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a worker."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.fail("no chromium on this machine: install it (apt-get install chromium) to test the pages")
    started = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """The address of a plain static server of the built site, without a slash at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
