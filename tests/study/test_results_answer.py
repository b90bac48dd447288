"""What a run answers with: frames that explain, draw and save themselves, read once and by site."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import iclens
import iclens.results.read
from iclens.core import SiteError, TableError
from iclens.results.answer import Answer, frame_html
from iclens.results.plot import categories, largest, main_axis, spread
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.run import find_run

WITHOUT = {"falsifiers": "words alone"}


@pytest.fixture(scope="module")
def run(first) -> iclens.Run:
    return iclens.open(first.run)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_drawn_or_says_why_not(run: iclens.Run, name: str) -> None:
    answer = run.table(name)
    if name in WITHOUT:
        with pytest.raises(TableError, match=WITHOUT[name]):
            answer.plot()
        return
    if not np.isfinite(answer[main_axis(name).column]).any():
        with pytest.raises(TableError, match=r"there are no rows|no row has a value"):
            answer.plot()
        return
    spec = answer.plot().to_dict()
    assert all(len(rows) <= 5000 for rows in spec["datasets"].values())
    titles = axis_titles(spec)
    assert titles
    assert all("(" in title for title in titles), "a number's axis has its unit"


def axis_titles(spec: dict) -> list[str]:
    """Titles of every axis of numbers in a Vega-Lite spec."""
    found = []
    for key, value in spec.items():
        if key == "encoding":
            axes = [value[axis] for axis in ("x", "y") if axis in value]
            found += [axis["title"] for axis in axes if axis.get("type") == "quantitative"]
            found += ["(cells)" for colour in [value.get("color", {})] if colour.get("field") == "shade"]
        elif isinstance(value, dict):
            found += axis_titles(value)
        elif isinstance(value, list):
            found += [title for one in value if isinstance(one, dict) for title in axis_titles(one)]
    return found


def test_a_chart_in_panels_holds_its_rows_once_and_draws(run: iclens.Run, tmp_path: Path) -> None:
    spec = run.beliefs.plot().to_dict()
    layers = spec["spec"]["layer"]
    assert not any("data" in layer for layer in layers), "else every panel shows the rows of all"
    curves = {row["series"] for rows in spec["datasets"].values() for row in rows}
    assert curves == {"T", "T, exact", "S", "D", "W"}
    for name in ("heads", "patches", "growth"):
        drawn = run.table(name).save(tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn.startswith("<svg") and drawn.count("<path") > 5


def test_a_frame_without_the_chart_s_columns_is_drawn_by_what_it_has(run: iclens.Run) -> None:
    spec = run.growth[["site", "slope"]].plot().to_dict()
    assert spec["encoding"]["y"]["title"] == "site"
    assert spec["encoding"]["x"]["field"] == "slope"
    with pytest.raises(TableError, match="no column of numbers"):
        run.growth[["site", "role"]].plot()
    with pytest.raises(TableError, match="no column of words"):
        run.growth[["slope"]].plot()


def test_what_pandas_makes_of_an_answer_is_an_answer(run: iclens.Run) -> None:
    grown = run.growth.query("slope > 0").sort_values("slope").head(4)
    assert isinstance(grown, Answer)
    assert grown.table == "growth"
    assert type(grown.df) is pd.DataFrame
    least = 1e9  # noqa: F841 (the query reads it)
    assert len(run.growth.query("slope > @least")) == 0
    assert run.growth.merge(run.shapes, on=["site", "role", "latent"]).table in ("", "growth")
    pd.testing.assert_frame_equal(grown[["site"]].df, grown.df[["site"]])


def test_every_column_is_explained(run: iclens.Run) -> None:
    for name, kind in TABLES.items():
        about = run.table(name).about
        assert about["column"].tolist() == list(kind.COLUMNS)
        assert (about["kind"] == [column.kind for column in kind.COLUMNS.values()]).all()
    for made in (run.top(3), run.bayes, run.trajectory("L2.resid_post", 1).summary, run.sel().answer):
        assert not made.about["meaning"].str.contains("not a column").any(), made.table
    own = run.growth.assign(mine=1.5).about.iloc[-1]
    assert own.tolist() == ["mine", "float64", "not a column of this table"]


def test_saved_rows_are_the_rows(run: iclens.Run, tmp_path: Path) -> None:
    shapes = run.shapes
    assert shapes.save(tmp_path / "a.parquet") == tmp_path / "a.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), shapes.df)
    shapes.save(str(tmp_path / "a.csv"))
    read = pd.read_csv(tmp_path / "a.csv", keep_default_na=False, na_values={"exponent": [""]})
    assert read["reason"].tolist() == shapes["reason"].tolist()
    np.testing.assert_allclose(read["exponent"], shapes["exponent"])
    shapes.save(tmp_path / "a.json")
    records = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert records[0]["latent"] == shapes["latent"].iloc[0]
    for asked in (run.sel(site="L2.resid_post"), run.trajectory("L2.resid_post", [1])):
        assert len(pd.read_parquet(asked.save(tmp_path / "b.parquet"))) == len(asked.df)


@pytest.mark.parametrize(
    ("name", "words"), [("a.xls", ".parquet, .csv, .json"), ("no/a.csv", "cannot be written")]
)
def test_a_file_that_cannot_be_says_so_and_leaves_nothing(run, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(TableError, match=words):
        run.quality.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(run: iclens.Run, tmp_path: Path) -> None:
    old = run.quality.save(tmp_path / "q.svg").read_bytes()
    with pytest.raises(TableError, match="no rows"):
        run.quality.query("d_sae < 0").save(tmp_path / "q.svg")
    assert (tmp_path / "q.svg").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["q.svg"]


def test_text_is_escaped_and_rows_are_counted() -> None:
    frame = pd.DataFrame({"<b>": ["<script>"] * 21})
    html = frame_html("a<b", frame)
    assert "<script" not in html and "<b>&" not in html
    assert "a&lt;b</b>: 21 rows, the first 20 shown" in html
    assert html.count("&lt;script&gt;") == 20
    assert "1 row<" in frame_html("x", frame.head(1))


def test_an_unknown_column_keeps_pandas_error_and_names_the_nearest(run: iclens.Run) -> None:
    with pytest.raises(KeyError) as caught:
        run.growth["slop"]
    assert caught.value.__notes__[0].startswith("Nearest: slope")
    with pytest.raises(pd.errors.UndefinedVariableError) as undefined:
        run.growth.query("slop > 1")
    assert undefined.value.__notes__[0].startswith("Nearest: slope")


def test_an_unknown_attribute_names_the_nearest(run: iclens.Run) -> None:
    with pytest.raises(AttributeError, match=r"growth has no 'qurey'\. Nearest: query"):
        run.growth.qurey  # noqa: B018
    with pytest.raises(AttributeError, match=r"Nearest: slope"):
        run.growth.slpe  # noqa: B018
    assert not hasattr(run.growth, "_nothing")
    with pytest.raises(AttributeError, match="sparse"):
        run.growth.sparse  # noqa: B018
    assert "slope" in dir(run.growth)
    pd.testing.assert_frame_equal(copy.deepcopy(run.quality).df, run.quality.df)


def test_a_named_index_is_kept(run: iclens.Run, tmp_path: Path) -> None:
    means = run.growth.groupby("site").mean(numeric_only=True)
    assert pd.read_csv(means.save(tmp_path / "m.csv"))["site"].tolist() == list(run.sites)
    assert pd.read_parquet(means.save(tmp_path / "m.parquet"))["site"].tolist() == list(run.sites)
    assert "L1.mlp_out" in means._repr_html_()
    both = run.growth.set_index(["site", "latent"]).save(tmp_path / "two.csv")
    assert pd.read_csv(both, nrows=1).columns[:2].tolist() == ["site", "latent"]
    twice = run.growth.set_index("site", drop=False).head(2)
    assert pd.read_csv(twice.save(tmp_path / "t.csv")).columns.tolist() == list(run.growth.columns)
    plain = run.growth.query("slope > 0").head(2).save(tmp_path / "p.csv")
    assert pd.read_csv(plain).columns.tolist() == list(run.growth.columns)


def test_an_unknown_table_names_the_nearest(run: iclens.Run) -> None:
    with pytest.raises(AttributeError, match=r"no 'growht'. Nearest: growth"):
        run.growht  # noqa: B018
    with pytest.raises(SiteError, match=r"table 'growht': not in this run. Nearest: growth"):
        run.table("growht")
    with pytest.raises(SiteError, match=r"Nearest: L2.resid_post"):
        run.table("growth", site="L9.resid_post")
    assert TABLES.keys() <= set(dir(run))


def test_a_changed_answer_does_not_change_the_next(run: iclens.Run) -> None:
    mine = run.growth
    mine["slope"] = 0.0
    mine.loc[0, "verdict"] = "mine"
    assert run.growth["slope"].abs().max() > 0
    assert "mine" not in set(run.growth["verdict"])


def test_one_site_is_read_without_the_others(first, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[str, int]] = []
    load = iclens.results.read.load_rows

    def counted(path, site=None):
        rows = load(path, site)
        handed.append((path.stem, rows.num_rows))
        return rows

    monkeypatch.setattr(iclens.results.read, "load_rows", counted)
    run = iclens.open(first.run)
    assert handed == [], "tables are read when they are asked for"
    chosen = run.sel(site="L2.resid_post").df
    own = dict(handed)
    handed.clear()
    for name, rows in own.items():
        whole = run.table(name).df
        assert handed[-1] == (name, len(whole))
        mine = whole[whole["site"] == "L2.resid_post"].reset_index(drop=True)
        assert rows == len(mine) <= len(whole)
        pd.testing.assert_frame_equal(run.results.frame(name, run.site("L2.resid_post")), mine)
    assert own["transforms"] < len(run.transforms)
    assert len(chosen) == own["growth"]
    handed.clear()
    run.growth, run.growth, run.sel(site="L1.mlp_out").df
    assert handed == [], "what was read is kept"


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_same_by_either_way_and_their_keys_name_rows(first, run, name: str) -> None:
    results, kind = Results(find_run(first.run)), TABLES[name]
    table = results.table(name)
    assert kind.KEY
    assert not table.duplicated(list(kind.KEY)).any()
    if len(table):
        pd.testing.assert_frame_equal(table, run.table(name).df)


def test_thinning_keeps_what_it_says() -> None:
    rows = pd.DataFrame({"g": ["a"] * 4 + ["b"], "v": [1.0, -5.0, 2.0, 3.0, 0.1]})
    kept, left = largest(rows, ["g"], "v", 2)
    assert kept["v"].tolist() == [-5.0, 3.0, 0.1]
    assert left == ["2 rows of smaller |v|"]
    kept, left = spread(rows, ["g"], "v", 2)
    assert kept["v"].tolist() == [-5.0, 2.0, 0.1], "ranks 0 and 2 of a"
    assert left == ["2 rows, evenly over the ranks"]
    many = pd.DataFrame({"m": [str(i) for i in range(9)] + ["0"]})
    told, notes = categories(many, "m", [])
    assert told["mark"].nunique() == 8
    assert (told["mark"] == "others").sum() == 2
    assert notes == ["names of 2 rare values of m"]


def test_top_gives_each_latent_once_by_what_it_has_once(run: iclens.Run) -> None:
    top = run.top(5, by="effect")
    assert not top.duplicated(["site", "latent"]).any()
    pd.testing.assert_frame_equal(
        run.top(4, site="L2.resid_post", role="pre").df,
        run.sel(site="L2.resid_post", role="pre").top(4).df,
    )
    assert run.sel(role="pre").plot().to_dict()["title"]["text"] == "selection"
    assert "Selection(role=pre)" in run.sel(role="pre")._repr_html_()
