import subprocess
import sys

import numpy as np
import pytest

import iclens
from iclens.errors import RunError, SiteError
from iclens.study.pipeline import Outcome


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
        (lambda run: run.trajectory("L2.resid_post", 192), "latents 0 to 191"),
        (lambda run: run.trajectory("L2.resid_post", 0, role="lib"), "Nearest: lab"),
        (lambda run: run.trajectory("L2.resid_post", 0, arm="R"), "arm 'R'"),
        (lambda run: run.sel(site="L9.resid_post"), "Nearest: L2.resid_post"),
        (lambda run: run.sel(role="close"), "role 'close'"),
        (lambda run: run.sel(latents=[500]), "latent 500"),
        (lambda run: run.sel(examples=slice(1, 4)), "Give site and role"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=slice(4, 40)), "examples 0 to 5"),
        (lambda run: run.sel(site="L2.resid_post", role="pre", examples=slice(4, 5)), "two or more"),
        (lambda run: run.sel().top(3, by="slop"), "Nearest: slope"),
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
    values = [run.results.latents(arm, site, "lab").dense()[:, :, 2:5] for arm in ("T", "S")]
    difference = (values[0] - values[1]).mean(axis=1)
    expected = (difference[:, 2] - difference[:, 0]) / 2 * run.results.decoder_norms[site.short]
    np.testing.assert_allclose(rows["slope"].fillna(0.0), expected, rtol=1e-4, atol=1e-4)
    whole = run.sel(site=site, role="lab").df.sort_values("latent")
    assert not np.allclose(whole["slope"].fillna(0.0), expected)


def test_latents_restrict_the_rows(run: iclens.Run) -> None:
    assert set(run.sel(latents=[3, 5]).df["latent"]) == {3, 5}


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
