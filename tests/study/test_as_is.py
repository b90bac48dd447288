"""Pages of an unfinished or damaged run: what is there is shown, and what is missing is said."""

import shutil
from pathlib import Path

import pytest

from iclens.cli import app
from iclens.core import RunError
from iclens.pages.site import write_as_is
from iclens.study.pipeline import Outcome
from iclens.study.run import FOLDERS


@pytest.fixture
def copy(first: Outcome, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first.run, tmp_path / first.run.name))


def told(index: Path) -> str:
    """The notices of a page."""
    return index.read_text(encoding="utf-8").split('class="misfit"')[1].split("</div>")[0]


def test_a_half_finished_run_shows_what_it_has(copy: Path) -> None:
    (copy / "DONE").unlink()
    for stage in ("transforms", "sweep", "patch", "dashboard"):
        shutil.rmtree(copy / FOLDERS[stage])
    index = write_as_is(copy)
    assert index == copy / "as_is" / "index.html"
    said = told(index)
    assert "unfinished: it lacks transforms, sweep, patch, dashboard" in said
    text = index.read_text(encoding="utf-8")
    assert "Do latents grow with the examples seen?" in text
    assert "Not decided here: 10_sweep/redundancy_ladder.parquet of run" in text
    concepts = (index.parent / "concepts.html").read_text(encoding="utf-8")
    assert "Not run: the stage `transforms` has left no probes.parquet." in concepts
    assert (index.parent / "latents.html").read_text(encoding="utf-8").count("<tr") > 10
    assert "it lacks" in told(index.parent / "growth.html")


def test_only_growth_is_enough_for_the_table_of_latents(copy: Path) -> None:
    (copy / "DONE").unlink()
    for stage in ("identify", "transforms", "sweep", "patch", "dashboard"):
        shutil.rmtree(copy / FOLDERS[stage])
    table = (write_as_is(copy).parent / "latents.html").read_text(encoding="utf-8")
    assert "384 latents" in table


def test_a_damaged_table_takes_only_its_own_parts_away(copy: Path) -> None:
    (copy / FOLDERS["patch"] / "patches.parquet").write_bytes(b"PAR1 no more")
    index = write_as_is(copy)
    assert "patches.parquet" in told(index)
    patching = (index.parent / "patching.html").read_text(encoding="utf-8")
    assert "Not shown: patches.parquet is damaged or of another version of iclens." in patching
    assert "Which heads does the answer need?" in patching and "lens" in patching


def test_a_whole_run_gets_latent_pages_that_say_what_needs_the_model(copy: Path) -> None:
    pages = sorted((write_as_is(copy).parent / "latents").glob("*.html"))
    assert len(pages) == 6
    text = pages[0].read_text(encoding="utf-8")
    assert (
        text.count("These pages were written from the run’s tables, without its model.".replace("’", "&#39;"))
        >= 3
    )
    assert "In every arm" in text


def test_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        write_as_is(tmp_path / "nothing")


def test_the_command(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["dashboard", str(copy), "--as-is"], standalone_mode=False)
    assert capsys.readouterr().out == f"pages: {(copy / 'as_is' / 'index.html').resolve()}\n"


def test_named_latents_get_a_page_first(copy: Path) -> None:
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    named = "  latents:\n    blocks.2.hook_resid_post: [5, 7]\n"
    (copy / "config.yaml").write_text(config.replace("  latents: {}\n", named), encoding="utf-8")
    pages = {page.name for page in (write_as_is(copy).parent / "latents").glob("*.html")}
    assert {"L2.resid_post-5.html", "L2.resid_post-7.html"} < pages
    strange = config.replace("  latents: {}\n", "  latents: {L2.resid_post: [192]}\n")
    (copy / "config.yaml").write_text(strange, encoding="utf-8")
    index = write_as_is(copy)
    assert not (index.parent / "latents").exists()
    assert "384 latents" in (index.parent / "latents.html").read_text(encoding="utf-8")
