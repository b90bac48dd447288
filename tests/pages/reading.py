"""A page as a reader meets it, and a run folder whose tables are made up one at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from iclens.pages.section import Chrome, Page, Source
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.config import parse_study_config
from iclens.study.run import FOLDERS, RunFolder
from iclens.table import Table

STUDY = """
study: fake
model: {{folder: {folder}}}
saes: {{train: {folder}/training of mine.yaml}}
prompts: {{task: 2x+3, arms: [T, S]}}
sweep: {{ladder_steps: 0}}
transforms: {{concepts: [odd, double, offset], roles: [pre, lab]}}
"""
ZERO = {"int": 0, "float": 0.0, "str": "", "bool": False}


@dataclass
class Part:
    """What stands below a heading: its words, its tables as rows of cells, and the words of its charts."""

    words: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Heading → what stands below it; of equal headings the second ends with #2."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: dict[str, Part] = {}
        self._heading, self._part = "", Part()
        self._in_heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch("h[1-4]", tag):
            self._heading, self._in_heading, self._part = "", True, Part()
        elif tag == "table":
            self._part.tables.append([])
        elif tag == "tr":
            self._part.tables[-1].append([])
        elif tag in ("td", "th"):
            self._part.tables[-1][-1].append("")
            self._in_cell = True
        elif tag == "svg" and (label := dict(attrs).get("aria-label")):
            self._part.charts.append(label)

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch("h[1-4]", tag):
            name, n = self._heading.strip(), 2
            while name in self.parts:
                name, n = f"{self._heading.strip()} #{n}", n + 1
            self.parts[name] = self._part
            self._in_heading = False
        elif tag in ("td", "th"):
            self._in_cell = False

    _in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._heading += data
        elif self._in_cell:
            self._part.tables[-1][-1][-1] += data
        else:
            self._part.words += data


def read(page: Page, source: Source) -> dict[str, Part]:
    """A page of a run."""
    return Reader(page.write(source, Chrome("fake"))).parts


def table_of(kind: type[Table], *rows: Mapping[str, Any]) -> Table:
    """A table with these rows; what a row leaves out is 0, empty or false."""
    filled = [{name: ZERO[column.kind] for name, column in kind.COLUMNS.items()} | dict(row) for row in rows]
    return kind({name: [row[name] for row in filled] for name in kind.COLUMNS})


class Fake:
    """A run folder whose tables are made up, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, parse_study_config(STUDY.format(folder=folder), "fake.yaml")

    @property
    def source(self) -> Source:
        """Its tables, opened anew: they are read once."""
        return Source(Results(RunFolder(self.folder, self.config)))

    def save(self, name: str, *rows: Mapping[str, Any]) -> None:
        """Write a table where its stage would."""
        kind = TABLES[name]
        table_of(kind, *rows).save(self.place(kind.stage) / f"{name}.parquet")

    def place(self, stage: str) -> Path:
        """A stage's folder."""
        path = self.folder / FOLDERS[stage]
        path.mkdir(exist_ok=True)
        return path
