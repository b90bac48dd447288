"""Files that can be opened but hold something else: one line, and what can be shown is shown."""

import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

import iclens
from iclens.core import REDO_STAGE, ConfigError, IclensError, RunWarning, TableError
from iclens.pages.site import write_as_is
from iclens.study.config import load_study_config
from iclens.study.run import FOLDERS, RunFolder, find_run
from iclens.study.store import EVERY, check_form, load_json

GARBAGE = b"\xff\xfe\x00garbage\x80"
SAES, BAYES = ("saes", "saes.json"), ("growth", "bayes.json")
GROWTH, GRID = ("growth", "growth.json"), ("identify", "grid.json")
NORMS, MEANS = ("saes", "decoder_norms.safetensors"), ("identify", "task_means.safetensors")
BELIEFS = ("track", "beliefs_T.safetensors")


@pytest.fixture
def copy(first, tmp_path: Path) -> Path:
    """A copy of the first run, to damage."""
    return Path(shutil.copytree(first.run, tmp_path / first.run.name))


def opened(path: Path) -> iclens.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        return iclens.open(path)


def test_a_form_says_what_is_not_there() -> None:
    form = {"saes": {EVERY: {"sae_id": str, "d_sae": int}}}
    path = Path("saes.json")
    whole = {"saes": {"L1.mlp_out": {"sae_id": "a", "d_sae": 4, "k": 2}}, "model": "m"}
    assert check_form(whole, form, path) is whole
    for value, words in (
        ([], "of another form"),
        ({}, "lacks saes"),
        ({"saes": None}, "of another form at saes"),
        ({"saes": {}}, "empty at saes"),
        ({"saes": {"L1.mlp_out": {"sae_id": "a"}}}, "lacks d_sae at saes.L1.mlp_out"),
        ({"saes": {"L1.mlp_out": {"sae_id": "a", "d_sae": "4"}}}, "of another form at saes.L1.mlp_out.d_sae"),
    ):
        with pytest.raises(TableError) as caught:
            check_form(value, form, path)
        assert str(caught.value) == f"saes.json: unreadable: {words}. {REDO_STAGE}"
    with pytest.raises(TableError, match=r"lacks latent at 1"):
        check_form([{"latent": 3}, {}], [{"latent": int}], path)


def test_what_is_no_text_is_one_line(copy: Path) -> None:
    (copy / "card.json").write_bytes(GARBAGE)
    (copy / "config.yaml").write_bytes(GARBAGE)
    (copy / FOLDERS["growth"] / "stage.json").write_bytes(GARBAGE)
    with pytest.raises(TableError, match=r"card.json: unreadable \("):
        load_json(copy / "card.json")
    with pytest.raises(ConfigError, match=r"config.yaml': unreadable \(") as caught:
        load_study_config(copy / "config.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="unreadable"):
        write_as_is(copy)


@pytest.mark.parametrize("held", [b"[1]", b"3", GARBAGE, b'{"outputs": {}}'])
def test_a_record_of_another_form_is_no_record(copy: Path, held: bytes) -> None:
    run = find_run(copy)
    assert RunFolder.record(run, FOLDERS["growth"]) is not None
    (copy / FOLDERS["growth"] / "stage.json").write_bytes(held)
    assert run.record(FOLDERS["growth"]) is None


CASES = [
    (SAES, b"{}", "lacks saes"),
    (SAES, b"[]", "of another form"),
    (SAES, b'{"model": "x", "saes": null}', "of another form at saes"),
    (SAES, GARBAGE, "unreadable"),
    (BAYES, b'{"exact": {}}', "lacks model at exact"),
    (BAYES, b"{}", "empty"),
    (BAYES, GARBAGE, "unreadable"),
    (GROWTH, b"[]", "of another form"),
    (GROWTH, b"{}", "lacks accounts"),
    (GRID, b"{}", "lacks discovery"),
]


@pytest.mark.parametrize(("place", "held", "words"), CASES)
def test_json_of_another_form_is_one_line_of_what_needs_it(copy, place, held: bytes, words: str) -> None:
    stage, name = place
    (copy / FOLDERS[stage] / name).write_bytes(held)
    if place is SAES:  # else the card stands for it
        (copy / "card.json").write_bytes(b'{"saes": null}')
    run = opened(copy)
    part = {
        SAES: lambda: run.sites,
        BAYES: lambda: run.bayes,
        GROWTH: lambda: run.results.facts_of_growth,
        GRID: lambda: run.results.grid,
    }[place]
    with pytest.raises(TableError, match=words) as caught:
        part()
    assert name in str(caught.value) and "\n" not in str(caught.value)
    asks_never_raise_otherwise(run)


@pytest.mark.parametrize(
    ("place", "source", "words"),
    [
        (NORMS, BELIEFS, "lacks L1.mlp_out"),
        (BELIEFS, NORMS, "lacks model"),
        (MEANS, BELIEFS, "lacks tasks"),
    ],
)
def test_arrays_of_another_kind_are_one_line(copy: Path, place, source, words: str) -> None:
    whole = (copy / FOLDERS[source[0]] / source[1]).read_bytes()
    (copy / FOLDERS[place[0]] / place[1]).write_bytes(whole)
    run = opened(copy)
    part = {
        NORMS: lambda: run.trajectory("L2.resid_post", 1),
        BELIEFS: lambda: run.trajectory("L2.resid_post", 1),
        MEANS: lambda: run.results.task_means,
    }[place]
    with pytest.raises(TableError, match=f"unreadable: {words}"):
        part()
    asks_never_raise_otherwise(run)


@pytest.mark.parametrize("held", [b"[1]", b"3", b"{}", GARBAGE])
def test_a_card_of_another_form_leaves_the_rest(copy: Path, held: bytes) -> None:
    (copy / "card.json").write_bytes(held)
    run = opened(copy)
    if held == b"{}":
        assert run.card == {}
    else:
        with pytest.raises(TableError, match=r"card\.json"):
            run.card  # noqa: B018
    assert run.sites == ("L1.mlp_out", "L2.resid_post")
    asks_never_raise_otherwise(run)


@pytest.mark.parametrize("column", ["latent", "verdict", "role"])
def test_growth_without_a_column_is_one_line(copy: Path, column: str) -> None:
    file = copy / FOLDERS["growth"] / "growth.parquet"
    pd.read_parquet(file).drop(columns=column).to_parquet(file, index=False)
    run = opened(copy)
    assert f"lacks {column}" in run._repr_html_() or column == "latent"
    asks_never_raise_otherwise(run)


def asks_never_raise_otherwise(run: iclens.Run) -> None:
    """Every question of a run is answered, or refused in one line; what a notebook shows is always there."""
    asks = (
        lambda: run.sites,
        lambda: run.top(3),
        lambda: run.sel(site="L2.resid_post", latents=[1]).df,
        lambda: run.sel(site="L2.resid_post", role="pre", examples=slice(1, 4)).df,
        lambda: run.trajectory("L2.resid_post", 1).summary,
        lambda: run.features("L2.resid_post").df,
        lambda: run.features("L2.resid_post", [1]).found,
        lambda: run.features("L2.resid_post", [1]).batch,
        lambda: run.compare(run).df,
        lambda: run.compare(run).changed,
        lambda: run.compare(run).plot(),
        run.check,
    )
    for ask in asks:
        try:
            ask()
        except IclensError as problem:
            assert "\n" not in str(problem)
    assert run._repr_html_() and repr(run)
    both = run.compare(run)
    assert both._repr_html_() and repr(both)
    for shown in (lambda: run.sel(role="pre"), lambda: run.sel(site="L2.resid_post")):
        try:
            chosen = shown()
        except IclensError:
            continue
        assert chosen._repr_html_()


BROKEN = [
    (("", "card.json"), b"[1]", "how.html", "the run has no readable card.json"),
    (SAES, b"{}", "index.html", "every latent of 0 SAEs"),
    (BAYES, b"{}", "index.html", "bayes.json"),
    (GROWTH, b"{}", "growth.html", "lacks accounts"),
    (GRID, b"{}", "concepts.html", "lacks discovery"),
    (("track", "calibration.json"), b'{"guess": 0.2}', "how.html", "KeyError: &#39;guess_low&#39;"),
    (("shape", "stage.json"), b'{"seconds": "abc"}', "how.html", "could not convert string to float"),
]


@pytest.mark.parametrize(("place", "held", "page", "words"), BROKEN)
def test_one_part_never_takes_the_pages_away(copy: Path, place, held: bytes, page: str, words: str) -> None:
    stage, name = place
    (copy / FOLDERS.get(stage, "") / name).write_bytes(held)
    if place is SAES:
        (copy / "card.json").unlink()
    folder = write_as_is(copy).parent
    assert words in (folder / page).read_text(encoding="utf-8")
    assert "Quality of the SAEs" in (folder / "how.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", ["growth", "agreement", "transforms", "sweep", "response_fits", "patches"])
def test_a_table_without_rows_leaves_the_other_pages(copy: Path, table: str) -> None:
    for file in copy.glob(f"*/{table}.parquet"):
        pd.read_parquet(file).iloc[:0].to_parquet(file, index=False)
    folder = write_as_is(copy).parent
    assert len(list(folder.glob("*.html"))) == 7
    assert "What was run" in (folder / "index.html").read_text(encoding="utf-8")
