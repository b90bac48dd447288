"""Trajectories of chosen latents against the examples seen, with the beliefs beside them."""

import numpy as np
import pytest

from iclens.activations import Trajectories, examples_seen
from iclens.core import BELIEFS, SiteError, TableError
from planted import as_latent_acts


def test_examples_seen_count_labels_read() -> None:
    assert list(examples_seen("pre", 3)) == list(examples_seen("x", 3)) == [0, 1, 2]
    assert list(examples_seen("lab", 3)) == list(examples_seen("close", 3)) == [1, 2, 3]
    with pytest.raises(SiteError):
        examples_seen("label", 3)


def test_trajectories_of_chosen_latents() -> None:
    values = np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4)
    beliefs = np.random.default_rng(0).standard_normal((3, 4, 5))
    found = Trajectories.of(
        as_latent_acts(values, threshold=0.0),
        np.array([1]),
        arm="T",
        beliefs=beliefs,
        decoder_norm=np.array([1.0, 2.0]),
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


def test_trajectories_refuse_what_does_not_fit() -> None:
    latents, beliefs = as_latent_acts(np.ones((2, 3, 4)), threshold=0.0), np.zeros((3, 4, 5))
    with pytest.raises(SiteError, match="latent 2 of"):
        Trajectories.of(latents, np.array([0, 2]), arm="T", beliefs=beliefs)
    with pytest.raises(TableError, match="twice"):
        Trajectories.of(latents, np.array([0, 0]), arm="T", beliefs=beliefs)
    with pytest.raises(TableError, match="beliefs"):
        Trajectories.of(latents, np.array([0]), arm="T", beliefs=beliefs[:, :3])
