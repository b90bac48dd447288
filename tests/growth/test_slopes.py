"""Per-prompt slopes of the paired difference, from active entries only."""

from pathlib import Path

import numpy as np
import pytest

from iclens.activations import LatentActs
from iclens.core import Site, TableError
from iclens.growth.detect import slope_moments


def sparse_values(seed: int, shape: tuple[int, ...], share: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.exponential(size=shape), 0.0)


def test_matches_least_squares_prompt_by_prompt(planted) -> None:
    treated, control = sparse_values(1, (7, 30, 6)), sparse_values(2, (7, 30, 6))
    treated[3] = control[3] = 0.0
    moments = slope_moments(planted(treated), planted(control))
    slopes = np.array([[np.polyfit(np.arange(6), d, 1)[0] for d in latent] for latent in treated - control])
    assert np.allclose(moments.mean, slopes.mean(axis=1))
    assert np.allclose(moments.sd, slopes.std(axis=1, ddof=1))
    used = ((treated > 0) | (control > 0)).any(axis=2).sum(axis=1)
    assert (moments.n_active == used).all()
    assert moments.n_active[3] == moments.n_differing[3] == 0


def test_nearly_equal_slopes_keep_their_spread(planted) -> None:
    ramp = np.arange(5.0)
    jitter = np.linspace(-1e-6, 1e-6, 20)
    treated = (1000 * ramp + jitter[:, None] * ramp)[None]
    moments = slope_moments(planted(treated), planted(np.zeros_like(treated)))
    assert np.allclose(moments.sd, jitter.std(ddof=1), rtol=1e-3)


def test_one_slope_everywhere_has_the_p_of_agreeing_coins(planted) -> None:
    treated = np.broadcast_to(np.arange(4.0), (1, 12, 4))
    moments = slope_moments(planted(treated), planted(np.zeros((1, 12, 4))))
    assert moments.p_rising() == 0.5**12
    assert moments.p_falling() == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"site": Site(3, "resid_post")}, "site"),
        ({"role": "lab"}, "role"),
        ({"sae_id": "another"}, "sae_id"),
    ],
)
def test_arms_of_other_latents_are_refused(planted, change: dict, said: str) -> None:
    values = sparse_values(3, (4, 12, 5))
    with pytest.raises(TableError, match=said):
        slope_moments(planted(values), planted(values + 1, **change))


def test_arms_of_other_prompts_are_refused(planted) -> None:
    values = sparse_values(3, (4, 12, 5))
    with pytest.raises(TableError, match="n_prompts 12 and 11"):
        slope_moments(planted(values), planted(values[:, 1:]))


def test_identical_arms_are_refused(planted) -> None:
    values = sparse_values(3, (4, 12, 5))
    with pytest.raises(TableError, match="identical activations"):
        slope_moments(planted(values), planted(values.copy()))


def test_a_slope_needs_two_examples(planted) -> None:
    values = sparse_values(3, (4, 12, 1), share=1)
    with pytest.raises(TableError, match="12 prompts of 1 examples"):
        slope_moments(planted(values), planted(values + 1))


def test_a_stored_nan_is_refused_before_anything_is_tested(planted, tmp_path: Path) -> None:
    """A mapped store is not read when it is opened, so this is where what is wrong in it has to show."""
    treated, control = (planted(sparse_values(seed, (4, 12, 5))) for seed in (3, 4))
    entry = treated.value.size // 2
    row = int(np.searchsorted(treated.indptr, entry, side="right")) - 1
    treated.value[entry] = np.nan
    treated.save(tmp_path / "T.safetensors")
    stored = LatentActs.open(tmp_path / "T.safetensors")
    said = f"latent {treated.index[entry]}, prompt {row // 5}"
    for arms in ((stored, control), (control, stored)):
        with pytest.raises(TableError, match=f"L2.resid_post pre: NaN or infinite in {said}"):
            slope_moments(*arms)
