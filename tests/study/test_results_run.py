import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import iclens
from iclens.activations import select_rows
from iclens.core import RunError, RunWarning, SiteError
from iclens.growth.detect import slope_moments
from iclens.stats import split_prompts
from iclens.study.pipeline import Outcome
from iclens.study.run import FOLDERS


@pytest.fixture(scope="module")
def run(first: Outcome) -> iclens.Run:
    return iclens.open(first.run)


def test_frames_have_the_documented_columns(run: iclens.Run) -> None:
    found = run.growth.query("q_value < .05 and verdict == 'grows'")
    assert (found["slope"] > 0).all()
    assert list(run.growth.columns[:5]) == ["site", "role", "latent", "verdict", "reason"]
    assert {"concept", "auroc", "label"} <= set(run.transforms.columns)
    assert {"latent", "belief", "effect"} <= set(run.patches.columns)
    assert set(run.bayes["source"]) == {"model", "exact"}
    for name in ("beliefs", "agreement", "tests", "accounts", "falsifiers", "shapes", "evidence"):
        assert len(getattr(run, name)) > 0
    for name in ("dose", "closure", "sweep", "graded", "ladder", "quality"):
        assert len(getattr(run, name)) > 0


def test_a_trajectory_is_the_saved_activation(run: iclens.Run) -> None:
    busy = int(run.growth.sort_values("n_active")["latent"].iloc[-1])
    one = run.trajectory("blocks.2.hook_resid_post", latent=busy)
    short = run.trajectory("L2.resid_post", latent=[busy], role="pre", arm="T")
    assert one.df.equals(short.df)
    assert len(one.df) == 40 * 6
    assert set(one.df["site"]) == {"L2.resid_post"}
    saved = run.results.latents("T", run.site("L2.resid_post"), "pre").dense(np.array([busy]))
    np.testing.assert_allclose(
        one.trajectories.values, saved * run.results.decoder_norms["L2.resid_post"][busy]
    )
    assert one.summary["arm"].unique().tolist() == ["T", "S"]
    np.testing.assert_allclose(
        one.summary.query("arm == 'T'")["mean"], one.trajectories.values[0].mean(axis=0), rtol=1e-6
    )


def test_notebook_display_draws_without_a_network(run: iclens.Run) -> None:
    html = run.trajectory("L2.resid_post", latent=[0, 1])._repr_html_()
    assert "<svg" in html
    assert "<script" not in html
    assert "L2.resid_post" in run._repr_html_()
    assert "2x+3" in run._repr_html_()
    assert "<table" in run.sel(role="pre")._repr_html_()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda run: run.trajectory("L2.mlp_out", 0), "Nearest: L1.mlp_out"),
        (lambda run: run.trajectory("L2.resid_post", 192), "Choose one from 0 to 191"),
        (lambda run: run.trajectory("L2.resid_post", 0, role="lib"), "Nearest: lab"),
        (lambda run: run.trajectory("L2.resid_post", 0, arm="R"), "arm 'R'"),
        (lambda run: run.sel(site="L9.resid_post"), "Nearest: L2.resid_post"),
        (lambda run: run.sel(role="close"), "role 'close'"),
        (lambda run: run.sel(latents=[500]), "latent 500"),
        (lambda run: run.sel(examples=slice(1, 4)), "Give site and role"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=slice(4, 40)), "examples 0 to 5"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=slice(4, 5)), "two or more"),
        (lambda run: run.sel().top(3, by="slop"), "Nearest: slope"),
        (lambda run: run.top(0), "not a positive integer"),
        (lambda run: run.sel().top(2.5), "not a positive integer"),
        (lambda run: run.trajectory("L2.resid_post", 5.7), "not whole numbers"),
        (lambda run: run.trajectory("L2.resid_post", True), "not whole numbers"),
        (lambda run: run.trajectory("L2.resid_post", [[5, 6]]), "not whole numbers"),
        (lambda run: run.trajectory(["L2.resid_post"], 5), "not in this run"),
        (lambda run: run.sel(latents=["a"]), "not whole numbers"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=5), "not a slice of integers"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=slice(4, 1)), "two or more"),
    ],
)
def test_an_unknown_label_names_the_nearest(run: iclens.Run, ask, words: str) -> None:
    with pytest.raises(SiteError) as caught:
        ask(run)
    assert words in str(caught.value)


def test_top_orders_by_the_asked_column(run: iclens.Run) -> None:
    chosen = run.sel(site="L2.resid_post", role="pre")
    top = chosen.top(5)
    assert len(top) == 5
    assert (np.diff(top["slope"]) <= 0).all()
    assert top["slope"].iloc[0] == chosen.df["slope"].max()
    q = chosen.top(5, by="q_value")["q_value"]
    assert (np.diff(q) >= 0).all()
    effect = chosen.top(3, by="effect")["effect"].abs()
    assert effect.iloc[0] == run.patches["effect"].abs().max()


def test_a_slice_of_examples_measures_the_slope_over_these_alone(run: iclens.Run) -> None:
    site = run.site("L2.resid_post")
    rows = run.sel(site=site, role="lab", examples=slice(2, 5)).df.sort_values("latent")
    prompts = split_prompts(40, 6, seed=0).discovery
    values = [run.results.latents(arm, site, "lab").dense()[:, prompts, 2:5] for arm in ("T", "S")]
    difference = (values[0] - values[1]).mean(axis=1)
    expected = (difference[:, 2] - difference[:, 0]) / 2 * run.results.decoder_norms[site.short]
    np.testing.assert_allclose(rows["slope"].fillna(0.0), expected, rtol=1e-4, atol=1e-4)
    whole = run.sel(site=site, role="lab").df.sort_values("latent")
    assert not np.allclose(whole["slope"].fillna(0.0), expected)


def test_all_examples_are_the_study_s_own_test(run: iclens.Run) -> None:
    chosen = run.sel(site="L2.resid_post", role="pre", examples=slice(None))
    own = run.detection.query("site == 'L2.resid_post' and role == 'pre'")
    anew = chosen.df.set_index("latent").loc[own["latent"]]
    for column in ("slope", "ci_low", "p_value", "n_active", "n_prompts"):
        np.testing.assert_allclose(anew[column].to_numpy(), own[column].to_numpy(), err_msg=column)
    about = chosen.answer.about.set_index("column")["meaning"]
    assert not about.str.contains("not a column").any()
    assert "of this site and role" in about["q_value"]
    assert chosen.plot().to_dict()["title"]["text"] == "selection over examples"


@pytest.fixture
def controlled(first: Outcome, tmp_path: Path) -> iclens.Run:
    """The first run as if growth had to be beyond D and S."""
    path = Path(shutil.copytree(first.run, tmp_path / first.run.name))
    config = (path / "config.yaml").read_text(encoding="utf-8")
    changed = config.replace("  controls: null\n", "  controls: [D, S]\n")
    assert changed != config
    (path / "config.yaml").write_text(changed, encoding="utf-8")
    return iclens.open(path)


def test_every_control_counts(run: iclens.Run, controlled: iclens.Run) -> None:
    assert run.controls == ("S",) and controlled.controls == ("D", "S")
    site, role, over = "L2.resid_post", "pre", slice(1, 6)
    two = controlled.sel(site=site, role=role, examples=over).df.sort_values("latent")
    prompts, chosen = split_prompts(40, 6, seed=0).discovery, np.arange(1, 6)
    acts = {
        arm: select_rows(run.results.latents(arm, run.site(site), role), prompts, chosen)
        for arm in ("T", "D", "S")
    }
    against = [slope_moments(acts["T"], acts[arm]) for arm in ("D", "S")]
    tested = two["p_value"].notna().to_numpy()
    largest = np.max([one.p_rising() for one in against], axis=0)
    assert tested.any()
    np.testing.assert_allclose(two["p_value"].to_numpy()[tested], largest[tested])
    scaled = against[0].mean * run.results.decoder_norms[site]
    np.testing.assert_allclose(two["slope"].to_numpy()[tested], scaled[tested])


def test_the_first_control_stands_beside_a_trajectory(run: iclens.Run, controlled: iclens.Run) -> None:
    def shown(one: iclens.Run, **asked: str) -> list[str]:
        return [part.arm for part in one.trajectory("L2.resid_post", 1, **asked).arms]

    assert shown(run) == ["T", "S"]
    assert shown(controlled) == ["T", "D"]
    assert shown(controlled, arm="D") == ["D", "T"]
    assert shown(controlled, arm="S") == ["S", "T", "D"]


def test_latents_restrict_the_rows(run: iclens.Run) -> None:
    assert set(run.sel(latents=[3, 5]).df["latent"]) == {3, 5}
    assert set(run.sel(latents=3).df["latent"]) == {3}
    assert len(run.sel(latents=np.array([3, 5])).top(2)) == 2
    nothing = run.sel(latents=[])
    assert len(nothing.df) == 0 and "0 rows" in nothing._repr_html_()


def test_a_run_that_has_no_growth_still_shows_its_selection(first: Outcome, tmp_path: Path) -> None:
    path = Path(shutil.copytree(first.run, tmp_path / first.run.name))
    (path / FOLDERS["growth"] / "growth.parquet").unlink()
    with pytest.warns(RunWarning):
        run = iclens.open(path)
    assert "growth.parquet" in run.sel(role="pre")._repr_html_()
    assert "there are no rows" in run.trajectory("L2.resid_post", [])._repr_html_()


def test_a_study_folder_opens_its_newest_finished_run(first: Outcome) -> None:
    assert iclens.open(first.run.parent).path.parent == first.run.parent
    with pytest.raises(RunError, match="no such folder"):
        iclens.open(first.run.parent.with_name("smalll"))


def test_opening_a_run_loads_no_torch(first: Outcome) -> None:
    code = f"""
import sys, iclens
assert not {{"torch", "pandas", "numpy"}} & set(sys.modules), "import iclens is not cheap"
run = iclens.open({str(first.run)!r})
run.growth, run.sel(site="L2.resid_post", role="pre").top(2), run.trajectory("L2.resid_post", 1).df
print(*{{"torch", "transformers", "sae_lens", "transformer_lens"}} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def test_a_name_that_iclens_lacks_is_an_attribute_error() -> None:
    assert "open" in dir(iclens)
    with pytest.raises(AttributeError, match="opem"):
        iclens.opem  # noqa: B018
