"""A run of another version, a damaged one, a half-finished one: a line each, and the rest is still there."""

import json
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

import iclens
from iclens.core import ConfigError, IclensError, RunError, RunWarning, TableError
from iclens.study.run import FOLDERS


@pytest.fixture
def copy(first, tmp_path: Path) -> Path:
    """A copy of the first run, to damage."""
    return Path(shutil.copytree(first.run, tmp_path / "small" / first.run.name))


def edit(path: Path, **changes) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(held | changes), encoding="utf-8")


def opened(path: Path) -> tuple[iclens.Run, list[str]]:
    """The run, and the warnings of opening it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = iclens.open(path)
    assert all(one.category is RunWarning for one in said)
    assert all(one.filename == __file__ for one in said), "they point at the caller"
    shown = [str(one.message) for one in said]
    assert all("\n" not in line for line in (*shown, *run.problems, repr(run)))
    assert run._repr_html_()
    return run, shown


def test_a_whole_run_has_no_problems(first) -> None:
    run = iclens.open(first.run)
    assert run.problems == run.check() == ()


def test_a_run_of_another_version_opens_with_one_warning(copy: Path) -> None:
    edit(copy / "card.json", iclens={"version": "0.0.7", "commit": "unknown"})
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(
        config.replace("growth:\n", "growht: {a: 1}\ngrowth:\n"), encoding="utf-8"
    )
    growth = copy / FOLDERS["growth"] / "growth.parquet"
    whole = pd.read_parquet(growth)
    whole.drop(columns="share").assign(extra=1).to_parquet(growth, index=False)
    run, said = opened(copy)
    assert len(said) == 1
    assert "written by iclens 0.0.7, this is" in said[0]
    assert "and 2 more, see run.problems" in said[0]
    assert run.problems[1].startswith("config.yaml: key 'growht': unknown. Nearest: growth")
    assert run.problems[2] == "07_growth/growth.parquet: lacks share and also has extra"
    assert (run.growth["extra"] == 1).all()
    assert run.sites == ("L1.mlp_out", "L2.resid_post")
    assert (run.roles, run.arms) == (("pre", "lab"), ("T", "S", "D", "W"))
    assert run.config["growht"] == {"a": 1}
    assert len(run.sel(site="L2.resid_post", role="pre").top(3)) == 3
    assert "against:word:size" in run.trajectory("L2.resid_post", 1).df
    with pytest.raises(ConfigError, match="growht"):
        run.results.config  # noqa: B018
    with pytest.raises(TableError, match="share"):
        run.results.table("growth")


def test_a_missing_and_a_damaged_table_leave_the_others(copy: Path) -> None:
    (copy / FOLDERS["dose"] / "dose.parquet").unlink()
    (copy / FOLDERS["patch"] / "sets.parquet").write_bytes(b"PAR1 not a table")
    (copy / FOLDERS["growth"] / "bayes.json").write_text("{", encoding="utf-8")
    run, said = opened(copy)
    assert run.problems[0] == "06_dose/dose.parquet: not there"
    assert run.problems[1].startswith("11_patch/sets.parquet: unreadable (")
    assert len(run.problems) == 2 and len(said) == 1
    assert run.check()[2:] == (
        "07_growth/bayes.json: not what its stage wrote", "11_patch/sets.parquet: not what its stage wrote"
    )  # fmt: skip
    for ask, kind in (
        (lambda: run.dose, RunError),
        (lambda: run.sets, TableError),
        (lambda: run.bayes, TableError),
    ):
        with pytest.raises(kind) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert len(run.growth) and len(run.dose_curves) and len(run.patches)


def test_damaged_tables_beside_growth_leave_the_selection(copy: Path) -> None:
    patches = copy / FOLDERS["patch"] / "patches.parquet"
    pd.read_parquet(patches).drop(columns="control_p").to_parquet(patches, index=False)
    (copy / FOLDERS["identify"] / "transforms.parquet").write_bytes(b"")
    run, _ = opened(copy)
    top = run.top(3)
    assert len(top) == 3 and not {"auroc", "effect"} & set(top.columns)


def test_a_changed_file_is_found_by_its_hash_alone(copy: Path) -> None:
    stage = copy / FOLDERS["growth"]
    (stage / "tests.parquet").write_bytes((stage / "accounts.parquet").read_bytes())
    (copy / FOLDERS["track"] / "calibration.json").write_text("{}", encoding="utf-8")
    run, _ = opened(copy)
    assert run.check()[-2:] == (
        "03_track/calibration.json: not what its stage wrote",
        "07_growth/tests.parquet: not what its stage wrote",
    )


def test_files_that_no_stage_wrote_are_named(copy: Path) -> None:
    stage = copy / FOLDERS["growth"]
    (stage / "mine.csv").write_text("a", encoding="utf-8")
    (stage / "more").mkdir()
    (stage / "more" / "b.txt").write_text("b", encoding="utf-8")
    for i in range(7):
        (copy / FOLDERS["dose"] / f"copy{i}.parquet").write_bytes(b"")
    run, said = opened(copy)
    assert said == [] and run.problems == ()
    assert run.check() == (
        "06_dose: its stage did not write 7 of its files, such as copy0.parquet",
        "07_growth/mine.csv: its stage did not write it",
        "07_growth/more/b.txt: its stage did not write it",
    )


def test_a_config_that_the_folder_is_not_named_after(copy: Path) -> None:
    named, text = copy.name[-8:], (copy / "config.yaml").read_text(encoding="utf-8")
    fewer = text.replace("  split_seed: 0\n", "")
    assert fewer != text
    (copy / "config.yaml").write_text(fewer, encoding="utf-8")
    assert opened(copy)[0].check() == (), "a default that is not written out is the same config"
    (copy / "config.yaml").write_text(text.replace("split_seed: 0", "split_seed: 5"), encoding="utf-8")
    run, said = opened(copy)
    assert said == [] and len(run.check()) == 1
    assert run.check()[0].startswith("config.yaml: its hash is ")
    assert run.check()[0].endswith(f", the folder is named {named}")
    other = copy.rename(copy.with_name("mine"))
    assert opened(other)[0].check() == (), "a folder that bears no hash"
    (other / "config.yaml").write_text(f"{text}more: 1\n", encoding="utf-8")
    other = other.rename(other.with_name(copy.name))
    assert not any("its hash is" in line for line in opened(other)[0].check())


@pytest.mark.parametrize("text", [None, "a: [", "- 1", "{study: 3, prompts: x}"])
def test_a_config_that_cannot_be_read_leaves_the_tables(copy: Path, text: str | None) -> None:
    if text is None:
        (copy / "config.yaml").unlink()
    else:
        (copy / "config.yaml").write_text(text, encoding="utf-8")
    run, said = opened(copy)
    assert "config.yaml" in said[0] and len(said) == 1
    assert len(run.growth) and len(run.sel(site="L2.resid_post").df)
    assert run.sites == ("L1.mlp_out", "L2.resid_post")
    with pytest.raises(RunError, match="its config names none"):
        run.trajectory("L2.resid_post", 1)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"iclens": 3}'])
def test_a_card_that_cannot_be_read_leaves_the_rest(copy: Path, text: str | None) -> None:
    if text is None:
        (copy / "card.json").unlink()
    else:
        (copy / "card.json").write_text(text, encoding="utf-8")
    run, said = opened(copy)
    assert len(said) == len(run.problems) == 1 and "card.json" in said[0]
    assert len(run.top(3)) == 3


def test_a_half_finished_run_says_what_it_lacks_and_shows_the_rest(copy: Path) -> None:
    (copy / "DONE").unlink()
    for stage in ("identify", "patch", "dashboard"):
        shutil.rmtree(copy / FOLDERS[stage])
    run, said = opened(copy)
    assert said == [], "an unfinished run is nothing to warn of"
    assert run.problems == ("unfinished: it lacks identify, patch, dashboard",)
    assert "problems=1" in repr(run)
    assert "it lacks identify, patch, dashboard" in run._repr_html_()
    assert run.index is None
    top = run.top(3)
    assert len(top) == 3 and "effect" not in top
    with pytest.raises(RunError, match="not there"):
        run.transforms  # noqa: B018
    with pytest.raises(RunError, match="only unfinished runs"):
        iclens.open(copy.parent)


def test_a_stage_that_went_missing_after_all_were_done_is_damage(copy: Path) -> None:
    shutil.rmtree(copy / FOLDERS["sweep"])
    (copy / FOLDERS["prompts"] / "stage.json").write_text("{", encoding="utf-8")
    for site in (copy / FOLDERS["dashboard"] / "site").rglob("*.html"):
        site.unlink()
    run, said = opened(copy)
    assert run.problems[0] == "10_sweep: not there"
    assert run.problems[1] == "02_prompts/stage.json: not there or unreadable"
    assert (
        run.problems[2].startswith("12_dashboard: ")
        and "files are not there, such as site/" in run.problems[2]
    )
    assert len(said) == 1


def test_nothing_but_a_card_still_opens(copy: Path) -> None:
    for folder in FOLDERS.values():
        shutil.rmtree(copy / folder)
    (copy / "config.yaml").unlink()
    run, _ = opened(copy)
    assert run.sites == ("L1.mlp_out", "L2.resid_post"), "the card holds the SAEs as well"
    (copy / "card.json").unlink()
    run, _ = opened(copy)
    assert "sites=unknown" in repr(run)
    for ask in (
        lambda: run.growth,
        lambda: run.sel().df,
        lambda: run.features("L1.mlp_out"),
        lambda: run.sites,
    ):
        with pytest.raises(IclensError):
            ask()
