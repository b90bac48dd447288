"""What is a page of the site, and how is one drawn?

A page is a path, what it rests on, and a function that writes it. What it rests on is hashed, with the code
that draws: a page whose hash is that of the earlier site is kept as it is, and not drawn again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from iclens.core import ROLES
from iclens.dashboards import text
from iclens.dashboards.charts import svg
from iclens.schemas import LADDER


@dataclass(frozen=True)
class Place:
    """An entry of the site's navigation: its `name` and `path`."""

    name: str
    path: str


@dataclass(frozen=True)
class Chrome:
    """What stands around every page.

    Args:
        title: of the study.
        places: the pages of the navigation.
        misfits: (site, in what its SAE does not fit the model), stated on every page made with it.
        notices: stated on every page.
    """

    title: str
    places: tuple[Place, ...] = ()
    misfits: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A file of the site.

    Args:
        path: relative to the site, with forward slashes.
        rests_on: records and strings that decide its text: equal ones give equal bytes.
        write: gives the text.
    """

    path: str
    rests_on: tuple[object, ...]
    write: Callable[[], str]

    @property
    def key(self) -> str:
        """Hash of what it rests on and of the code that draws it."""
        return hashlib.sha256(f"{code_key()} {self.path} {self.rests_on!r}".encode()).hexdigest()


@cache
def code_key() -> str:
    """Hash of whatever draws: the dashboards' modules, templates and assets, and what they draw with."""
    versions = {name: version(name) for name in ("altair", "vl-convert-python", "jinja2", "markupsafe")}
    found, todo = (
        hashlib.sha256(repr((LADDER, ROLES, versions)).encode()),
        [resources.files("iclens.dashboards")],
    )
    while todo:
        for entry in sorted(todo.pop().iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                todo.append(entry)
            elif entry.name.endswith((".py", ".j2", ".css", ".js")):
                found.update(entry.name.encode() + entry.read_bytes())
    return found.hexdigest()


@cache
def environment() -> Environment:
    """Jinja with autoescape everywhere, and the site's ways of writing numbers and tokens."""
    made = Environment(
        loader=PackageLoader("iclens.dashboards"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": text.number,
        "count": text.count,
        "percent": text.percent,
        "visible": text.visible,
        "minus": text.minus,
    }
    made.tests["finite"] = math.isfinite
    made.globals |= {"interval": text.interval, "svg": svg}
    return made


def draw(template: str, chrome: Chrome, path: str, **values: object) -> str:
    """A page from its template.

    Args:
        template: file name.
        chrome: what stands around it.
        path: of the page, from which `root` (the way up to the site) follows.
        **values: what the template shows.
    """
    root = "../" * path.count("/")
    return environment().get_template(template).render(chrome=chrome, root=root, here=path, **values)
