"""Bands over prompts: what the interval is taken of."""

import numpy as np

from iclens.stats import prompt_band, resample_prompts


def test_the_interval_is_the_quantiles_of_the_resampled_means() -> None:
    values = np.random.default_rng(3).normal(size=(12, 2, 3))
    values[:, 0, 1] = np.nan
    values[1:, 1, 2] = np.nan
    band = prompt_band(values, np.random.default_rng(0), 200)
    draws = resample_prompts(12, 200, np.random.default_rng(0))
    means = np.einsum("rp,pij->rij", draws, values[:, :, [0]]) / 12
    np.testing.assert_allclose(band.low[:, 0], np.quantile(means[..., 0], 0.025, axis=0))
    np.testing.assert_allclose(band.high[:, 0], np.quantile(means[..., 0], 0.975, axis=0))
    assert np.isnan(band.low[0, 1]) and np.isnan(band.high[0, 1]) and band.n_prompts[0, 1] == 0
    # One prompt with a value: every resample that drew it has its value as the mean.
    np.testing.assert_allclose([band.low[1, 2], band.high[1, 2]], values[0, 1, 2])
