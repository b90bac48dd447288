"""Latents of a mapped file, and trajectories of chosen latents over the examples seen."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from iclens.activations import LatentActs, Trajectories, examples_seen
from iclens.core import BELIEFS, Site, SiteError, TableError
from iclens.table import mapped_arrays, stretch
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


def test_a_stretch_is_the_slice_wherever_it_lies(tmp_path: Path) -> None:
    """Across pages, at both ends, of nothing; of a mapped array, of a part of one, and of one in memory."""
    rng = np.random.default_rng(0)
    kept = {"long": rng.integers(0, 99, 20_000), "short": rng.integers(0, 99, 3, dtype=np.int32)}
    save_file(kept, tmp_path / "arrays.safetensors")
    arrays, _ = mapped_arrays(tmp_path / "arrays.safetensors", "Write it again.")
    for name, values in kept.items():
        assert isinstance(arrays[name], np.memmap)
        n = len(values)
        for first, last in ((0, n), (0, 1), (n - 1, n), (n // 2, n // 2), (n, n), (n // 3, n // 2 + 1)):
            for held in (arrays[name], values):
                assert np.array_equal(stretch(held, first, last), values[first:last])
        assert np.array_equal(stretch(arrays[name][1:], 0, 2), values[1:3])


@pytest.mark.parametrize("n_latents", [1, 3000])
def test_trajectories_of_a_file_are_those_in_memory(tmp_path: Path, n_latents: int) -> None:
    rng = np.random.default_rng(1)
    dense = rng.exponential(size=(12, n_latents)) * (rng.random((12, n_latents)) < 0.3)
    rows, index = dense.nonzero()
    acts = LatentActs(
        Site(1, "mlp_out"), "pre", "some", n_latents, 3, 4, np.searchsorted(rows, np.arange(13)), index,
        dense[rows, index].astype(np.float32), np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32),
    )  # fmt: skip
    acts.save(tmp_path / "acts.safetensors")
    opened = LatentActs.open(tmp_path / "acts.safetensors")
    for latent in {0, n_latents // 2, n_latents - 1}:
        expected = dense[:, latent].astype(np.float32).reshape(3, 4)
        assert np.array_equal(opened.trajectory(latent), expected)
        assert np.array_equal(acts.trajectory(latent), expected)
