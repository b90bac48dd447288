"""Arrays of a file, mapped: what is read from the middle of them is what stands there."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from iclens.activations import LatentActs
from iclens.core import Site
from iclens.table import mapped_arrays, stretch


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
