"""The belief table, and trajectories."""

import numpy as np
import pytest

from iclens.activations import Trajectories, examples_seen
from iclens.core import BELIEFS, SiteError, TableError
from iclens.growth.bayes import belief_table


def test_belief_table_has_means_beside_the_exact_ones() -> None:
    rng = np.random.default_rng(1)
    model = rng.standard_normal((40, 3, 5))
    model[..., BELIEFS.index("copy")] = np.nan
    exact = model + 1
    table = belief_table(np.arange(3), {"T": model, "S": model - 2}, exact={"T": exact}).df
    row = table.query("belief == 'odd' and arm == 'T' and n_seen == 2").iloc[0]
    odd = model[:, 2, BELIEFS.index("odd")]
    assert row["mean"] == pytest.approx(odd.mean())
    assert row["exact_mean"] == pytest.approx(odd.mean() + 1)
    assert row["probability"] == pytest.approx((1 / (1 + np.exp(-odd))).mean())
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    assert row["n_prompts"] == 40 and row["reason"] == ""
    copy = table.query("belief == 'copy'")
    assert (copy["reason"] == "undefined on every prompt").all() and copy["mean"].isna().all()
    control = table.query("arm == 'S' and belief == 'odd'")
    assert (control["reason"] == "no exact posterior").all() and control["exact_mean"].isna().all()
    assert len(table) == 2 * 3 * 5


def test_exact_mean_runs_over_the_same_prompts() -> None:
    model, exact = np.zeros((3, 1, 5)), np.arange(15.0).reshape(3, 1, 5)
    model[2, 0, 0] = np.nan
    table = belief_table(np.arange(1), {"T": model}, exact={"T": exact}).df
    assert table.loc[0, "exact_mean"] == pytest.approx((0 + 5) / 2)


def test_belief_axes_must_agree() -> None:
    with pytest.raises(TableError, match="prompt"):
        belief_table(np.arange(3), {"T": np.zeros((4, 3, 5))}, exact={"T": np.zeros((5, 3, 5))})


def test_examples_seen_count_labels_read() -> None:
    assert list(examples_seen("pre", 3)) == list(examples_seen("x", 3)) == [0, 1, 2]
    assert list(examples_seen("lab", 3)) == list(examples_seen("close", 3)) == [1, 2, 3]
    with pytest.raises(SiteError):
        examples_seen("label", 3)


def test_trajectories_of_chosen_latents(planted) -> None:
    values = np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4)
    beliefs = np.random.default_rng(0).standard_normal((3, 4, 5))
    found = Trajectories.of(
        planted(values), np.array([1]), arm="T", beliefs=beliefs, decoder_norm=np.array([1.0, 2.0])
    )
    assert (found.values == 2 * values[1:]).all()
    frame = found.df
    row = frame.query("latent == 1 and prompt == 2 and n_seen == 3").iloc[0]
    assert row["activation"] == 2 * values[1, 2, 3]
    assert row["odd"] == beliefs[2, 3, BELIEFS.index("odd")]
    assert len(frame) == 12
    summary = found.summary(seed=1)
    assert np.allclose(summary["mean"], 2 * values[1].mean(axis=0))
    assert (summary["ci_low"] <= summary["mean"]).all() and (summary["n_prompts"] == 3).all()


def test_trajectories_refuse_what_does_not_fit(planted) -> None:
    latents, beliefs = planted(np.ones((2, 3, 4))), np.zeros((3, 4, 5))
    with pytest.raises(SiteError, match="latent 2 of"):
        Trajectories.of(latents, np.array([0, 2]), arm="T", beliefs=beliefs)
    with pytest.raises(TableError, match="twice"):
        Trajectories.of(latents, np.array([0, 0]), arm="T", beliefs=beliefs)
    with pytest.raises(TableError, match="beliefs"):
        Trajectories.of(latents, np.array([0]), arm="T", beliefs=beliefs[:, :3])
