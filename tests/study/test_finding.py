"""A finding is declared once: a table class and the function that fills it, and it is everywhere."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import iclens
from iclens.pages.section import Chrome, Page, Section, Source
from iclens.schemas import BELIEF, SITE, TABLES
from iclens.study.inputs import CHECKOUT
from iclens.study.run import FOLDERS
from iclens.table import Axis, Float, Int, Points, Table


def declare() -> type[Table]:
    class ReachTable(Table, name="reach", stage="patch"):
        """How far one latent alone moves a belief: one row per site and belief."""

        key = SITE, BELIEF
        n_latents = Int("latents patched")
        reach = Float("largest |effect|, nats")
        chart = Points(Axis("reach", "nats"), ("site",), panel=("belief",))

    return ReachTable


def fill(kind: type[Table], patches: pd.DataFrame) -> Table:
    size = patches.assign(size=patches["effect"].abs()).groupby(["site", "belief"])["size"]
    return kind.from_rows(
        {"site": site, "belief": belief, "n_latents": len(sizes), "reach": sizes.max()}
        for (site, belief), sizes in size
    )


@pytest.fixture
def run(first, tmp_path: Path) -> Iterator[iclens.Run]:
    kind, path = declare(), shutil.copytree(first.run, tmp_path / first.run.name)
    fill(kind, iclens.open(path).patches).save(path / FOLDERS[kind.stage] / kind.file)
    yield iclens.open(path)
    del TABLES["reach"]


def test_a_finding_is_asked_drawn_compared_and_documented(run: iclens.Run, tmp_path: Path) -> None:
    assert "reach" in dir(run) and not run.problems
    assert run.reach["reach"].max() == run.patches["effect"].abs().max()
    assert run.reach.about.set_index("column").loc["reach", "meaning"] == "largest |effect|, nats"
    assert run.reach.save(tmp_path / "reach.svg").is_file()
    assert run.compare(run).table("reach")["reach_difference"].abs().max() == 0
    spec = importlib.util.spec_from_file_location("make_reference", CHECKOUT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = Page("reach.html", "Reach", "Reach", "How far latents reach.", [Section("Reach", "reach")])
    written = page.write(Source(run.results), Chrome("small"))
    assert ">Reach</h2>" in written and 'title="largest |effect|, nats">reach</th>' in written
    assert written.count("role=img") == 1 and f">{run.reach['site'].iloc[0]}</th>" in written
    assert "### `reach`: `11_patch/reach.parquet`\n\nHow far one latent alone" in script.schemas()


def test_a_table_is_declared_once_and_with_its_own_columns() -> None:
    with pytest.raises(TypeError, match="a second 'growth'"):
        type("Again", (Table,), {}, name="growth", stage="growth")
    with pytest.raises(TypeError, match="no columns"):
        type("Typo", (Table,), {"key": (SITE,), "chart": Points(Axis("slop", ""), ("site",))})
