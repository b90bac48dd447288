"""Two runs beside each other: what differs, and rows only where they mean the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import iclens
from iclens.core import RunError, SiteError, TableError
from iclens.schemas import TABLES
from iclens.study.run import FOLDERS


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
    assert moved["tests"].sum() == 2, "latent 7 at both roles"
    assert both.changed["tests"].sum() == len(joined)


def test_rows_that_name_no_latent_are_joined_everywhere(both) -> None:
    assert set(both.table("quality")["site"]) == {"L1.mlp_out", "L2.resid_post"}
    assert (both.table("beliefs")["mean_difference"].dropna() == 0).all()
    responses = both.table("latent_tests")["response"]
    assert responses.str.startswith("L2.resid_post").all()


def test_latents_of_another_sae_are_refused_in_one_line(both) -> None:
    with pytest.raises(SiteError) as caught:
        both.table("growth", site="L1.mlp_out")
    assert str(caught.value) == (
        "latents cannot be matched at L1.mlp_out: the runs' SAEs differ. "
        "Other tables compare, such as table('beliefs')."
    )
    said = "latents of L2.resid_post are compared; those of L1.mlp_out are not compared: their SAEs differ"
    assert both.sites_said == said
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


@pytest.fixture
def copy(first, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first.run, tmp_path / first.run.name))


def test_runs_of_other_saes_compare_where_no_latent_is_named(first, copy: Path, tmp_path: Path) -> None:
    file = copy / FOLDERS["saes"] / "saes.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    for fact in held["saes"].values():
        fact["sae_id"] = "another"
    file.write_text(json.dumps(held), encoding="utf-8")
    both = iclens.open(first.run).compare(copy)
    line = "latents cannot be matched at L1.mlp_out, L2.resid_post: the runs' SAEs differ"
    for ask in (
        lambda: both.df, lambda: both.changed, both.plot, lambda: both.save(tmp_path / "a.csv"),
        lambda: both.table("transforms"),
    ):  # fmt: skip
        with pytest.raises(SiteError, match=line):
            ask()
    for name in ("screens", "latent_accounts", "patch_controls"):
        with pytest.raises(SiteError, match=r"latents cannot be matched at .*L2\.resid_post: the runs' SAEs"):
            both.table(name)
    assert (both.table("ladder")["latent_a"] == "").all(), "rungs that are no single latent"
    assert len(both.table("beliefs")) and len(both.table("quality")) and len(both.table("tests"))
    assert "latents cannot be matched at" in both._repr_html_()
    assert both.sites_said == "latents of L1.mlp_out, L2.resid_post are not compared: their SAEs differ"


def test_ids_have_no_difference(first) -> None:
    run = iclens.open(first.run)
    screens = run.compare(run).table("screens")
    assert {"worst_latent_a", "worst_latent_b", "r2_difference"} <= set(screens)
    assert "worst_latent_difference" not in screens


@pytest.mark.parametrize("column", ["verdict", "slope", "latent"])
def test_a_table_that_lacks_a_column_is_one_line(first, copy: Path, column: str) -> None:
    file = copy / FOLDERS["growth"] / "growth.parquet"
    pd.read_parquet(file).drop(columns=column).to_parquet(file, index=False)
    with pytest.warns(iclens.core.RunWarning):
        both = iclens.open(first.run).compare(copy)
    asks = {"verdict": lambda: both.changed, "slope": both.plot, "latent": lambda: both.df}
    with pytest.raises(TableError, match=f"growth of two runs: one lacks {column}"):
        asks[column]()
    assert both._repr_html_()


def test_what_one_config_or_card_lacks_is_a_difference(first, copy: Path) -> None:
    config = (
        (copy / "config.yaml").read_text(encoding="utf-8").replace("growth:\n", "more: {a: 1}\ngrowth:\n")
    )
    (copy / "config.yaml").write_text(config.replace("study: small\n", ""), encoding="utf-8")
    (copy / "card.json").write_text("[1]", encoding="utf-8")
    with pytest.warns(iclens.core.RunWarning):
        rows = iclens.open(first.run).compare(copy).differences.set_index("what")
    assert rows.loc["config more.a"].tolist() == ["–", "1"]
    assert rows.loc["config study"].tolist() == ["small", "–"]
    assert rows.loc["card dtype"].tolist() == ["float32", "–"]


def test_what_is_no_run_is_one_line(first) -> None:
    run = iclens.open(first.run)
    for other in (3, None, ["a"]):
        with pytest.raises(RunError, match="neither a run nor a path") as caught:
            run.compare(other)
        assert "\n" not in str(caught.value)


def test_a_run_is_itself(first) -> None:
    run = iclens.open(first.run)
    same = run.compare(run)
    assert len(same.differences) == 0
    for name in TABLES:
        if len(run.table(name)):
            assert len(same.table(name)) == len(run.table(name)), name
