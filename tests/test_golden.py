"""The small demo still finds, shows and is asked what `tests/golden` holds.

`ICLENS_GOLDEN=exact` compares floats to 1e-12 and all rows, for the machine that recorded them. Without it,
`golden.record` says by how much other processors' kernels may move a float.
"""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from .docs.blocks import ROOT
from .docs.conftest import shared as shared
from .docs.running import in_process
from .golden import record

EXACT = os.environ.get("ICLENS_GOLDEN") == "exact"
TABLES, PAGES, CLI = (record.golden(name) for name in ("tables.json.gz", "pages.json", "cli.json"))
LISTED = 20
"""Differences in a message."""


@pytest.fixture(scope="module")
def run(shared: Path) -> Path:
    return record.newest(shared / "runs")


@pytest.fixture(scope="module")
def tables(run: Path) -> dict[str, pd.DataFrame]:
    return record.read_tables(run)


@pytest.fixture(scope="module")
def pages(run: Path) -> dict[str, list[record.Page]]:
    return record.read_pages(run)


def listed(what: str, lines: list[str]) -> str:
    return "\n".join([f"{what}: {len(lines)} differences", *lines[:LISTED]])


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_hold_what_they_held(name: str, tables: dict[str, pd.DataFrame]) -> None:
    lines = record.differences(TABLES[name], tables.get(name), exact=EXACT)
    assert not lines, listed(name, lines)


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_show_what_they_showed(name: str, pages: dict[str, list[record.Page]]) -> None:
    lines = record.missing(PAGES[name], pages.get(name, []))
    assert not lines, listed(name, lines)


def test_every_command_takes_what_it_took() -> None:
    now = record.read_help()
    for command, kept in CLI["help"].items():
        assert command in now, f"no command {command!r} any more"
        for option, how in kept["options"].items():
            assert now[command]["options"].get(option, [])[:2] == how[:2], f"{command} {option}"
    assert not EXACT or now == CLI["help"]


def test_json_has_the_keys_that_it_had(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    copied = Path(shutil.copytree(run.parents[1], tmp_path / "runs")) / run.parent.name / run.name
    for name, words in record.json_commands(copied, tmp_path).items():
        code, out, err = in_process(" ".join(["iclens", *words, "--json"]))
        assert code == 0, f"{name}: {err}"
        gone = set(CLI["json"][name]) - record.key_paths(json.loads(out))
        assert not gone, f"{name} --json: keys gone: {sorted(gone)}"
