"""Two runs beside each other: what differs, and rows only where they mean the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import iclens
from iclens.errors import RunError, SiteError, TableError
from iclens.study.flow import FOLDERS
from iclens.study.results import TABLES


@pytest.fixture(scope="module")
def other(first, tmp_path_factory) -> Path:
    """The first run with another seed, another SAE at L1.mlp_out, and changed growth."""
    path = Path(shutil.copytree(first.run, tmp_path_factory.mktemp("other") / first.run.name))
    config = path / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("seed: 2", "seed: 9"), encoding="utf-8")
    for name in (path / "card.json", path / FOLDERS["saes"] / "saes.json"):
        held = json.loads(name.read_text(encoding="utf-8"))
        held["saes"]["L1.mlp_out"]["sae_id"] = "another"
        name.write_text(json.dumps(held), encoding="utf-8")
    file = path / FOLDERS["growth"] / "growth.parquet"
    growth = pd.read_parquet(file)
    growth["slope"] += 0.5
    growth.loc[growth["site"].str.contains("blocks.2") & (growth["latent"] == 7), "verdict"] = "changed"
    growth.to_parquet(file, index=False)
    return path


@pytest.fixture(scope="module")
def both(first, other: Path):
    return iclens.open(first.run).compare(other)


def test_differences_are_named(both) -> None:
    rows = both.differences.set_index("what")
    assert rows.loc["config sweep.seed"].tolist() == ["2", "9"]
    assert rows.loc["card saes.L1.mlp_out.sae_id", "b"] == "another"
    assert len(rows) == 2


def test_rows_are_joined_where_the_saes_are_the_same(both) -> None:
    joined = both.table("growth")
    assert set(joined["site"]) == {"L2.resid_post"}
    assert len(joined) == (both.a.growth["site"] == "L2.resid_post").sum()
    finite = joined["slope_a"].notna()
    np.testing.assert_allclose(joined.loc[finite, "slope_difference"], 0.5, atol=1e-9)
    assert "shortlisted_difference" not in joined and "shortlisted_b" in joined
    assert both.df.equals(joined.df)
    assert joined.about["meaning"].str.contains("not a column").sum() == 0
    moved = both.changed.query("verdict_a != verdict_b")
    assert moved["latents"].sum() == 2, "latent 7 at both roles"


def test_rows_that_name_no_latent_are_joined_everywhere(both) -> None:
    assert set(both.table("quality")["site"]) == {"L1.mlp_out", "L2.resid_post"}
    assert (both.table("beliefs")["mean_difference"].dropna() == 0).all()
    responses = both.table("latent_tests")["response"]
    assert responses.str.startswith("L2.resid_post").all()


def test_latents_of_another_sae_are_refused_in_one_line(both) -> None:
    with pytest.raises(SiteError) as caught:
        both.table("growth", site="L1.mlp_out")
    assert "latents of L2.resid_post are compared; those of L1.mlp_out are not: their SAEs differ" in str(
        caught.value
    )
    with pytest.raises(SiteError, match="Nearest: growth"):
        both.table("growht")
    with pytest.raises(RunError, match="no row in common"):
        both.table("stability")
    with pytest.raises(TableError, match="words alone"):
        both.plot("falsifiers")


@pytest.mark.parametrize("name", ["growth", "patches", "beliefs", "quality", "sweep"])
def test_a_table_is_drawn_with_the_line_of_equal_values(both, name: str) -> None:
    spec = both.plot(name).to_dict()
    line, points = spec["layer"]
    assert line["mark"]["type"] == "line"
    assert points["encoding"]["color"]["field"] == points["encoding"]["shape"]["field"]
    ends = spec["datasets"][line["data"]["name"]]
    assert all(len(set(end.values())) == 1 for end in ends)


def test_it_is_shown_and_saved(both, tmp_path: Path) -> None:
    html = both._repr_html_()
    assert "config sweep.seed" in html and "verdict_b" in html
    assert "2 differences" in repr(both)
    assert len(pd.read_parquet(both.save(tmp_path / "both.parquet"))) == len(both.df)


def test_a_run_is_itself(first) -> None:
    run = iclens.open(first.run)
    same = run.compare(run)
    assert len(same.differences) == 0
    for name in TABLES:
        if len(run.table(name)):
            assert len(same.table(name)) == len(run.table(name)), name
