import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.names import Site
from iclens.transforms.subspace import period_subspaces

RNG = np.random.default_rng(0)
VALUE = RNG.integers(0, 100, 1200).astype(float)
TRAIN = np.arange(1200) < 700
NAMES = {"site": Site(2, "mlp_out"), "role": "lab", "representation": "latents", "of": "y", "seed": 0}


def read(features, value=VALUE, periods=(2, 10), **kw):
    table = period_subspaces(features, value, TRAIN, ~TRAIN, **(NAMES | kw), periods=periods)
    return table.df.set_index("period")


def noise(n):
    return RNG.standard_normal((1200, n))


@pytest.fixture(scope="module")
def spread():
    """Period 10 spread over two features, neither of which has it whole, among noise."""
    angle = 2 * np.pi * VALUE / 10
    code = np.stack([np.cos(angle + 0.4), np.sin(angle + 0.4)], axis=1)
    return np.column_stack([noise(20), code + 0.1 * noise(2), noise(20)])


def test_a_period_of_two_features_is_found_and_needs_both(spread) -> None:
    found = read(spread)
    assert found.loc[10, "r2"] > 0.9
    assert found.loc[10, "p_value"] == pytest.approx(1 / 21)
    assert found.loc[10, "n_for_90"] == 2
    assert found.loc[2, "r2"] < 0.1
    assert found.loc[2, "p_value"] > 0.05
    assert (found.loc[10, "n_train"], found.loc[10, "n_held"]) == (700, 500)


def test_one_feature_of_the_two_is_half_of_it(spread) -> None:
    assert 0.3 < read(spread[:, :21]).loc[10, "r2"] < 0.6


def test_parity_is_one_number() -> None:
    found = read(np.column_stack([VALUE % 2, noise(5)]))
    assert found.loc[2, "r2"] > 0.99
    assert found.loc[2, "n_for_90"] == 1


def test_a_code_that_does_not_hold_on_other_tasks_is_not_found() -> None:
    angle = 2 * np.pi * VALUE / 10
    code = np.stack([np.cos(angle), np.sin(angle)], axis=1) * TRAIN[:, None]
    assert read(np.column_stack([code, noise(10)])).loc[10, "r2"] < 0.1


def test_sparse_features_read_as_dense_ones_and_rare_ones_are_left_out(spread) -> None:
    shifted = np.abs(spread) * (spread > 0)
    rare = np.zeros((1200, 1))
    rare[:5] = 1
    one = read(csr_array(np.column_stack([shifted, rare])))
    two = read(shifted)
    np.testing.assert_allclose(one["r2"], two["r2"], atol=1e-6)
    assert one["n_features"].tolist() == two["n_features"].tolist()


def test_rows_without_a_number_and_long_periods_are_left_out() -> None:
    value = VALUE.copy()
    value[::3] = np.nan
    found = read(noise(8), value, periods=(2, 10, 200))
    assert found.index.tolist() == [2, 10]
    assert found.loc[2, "n_train"] == int((TRAIN & ~np.isnan(value)).sum())


def test_too_few_rows_say_so() -> None:
    value = np.where(np.arange(1200) < 760, VALUE, np.nan)
    table = period_subspaces(noise(4), value, TRAIN, ~TRAIN, **NAMES)
    assert np.isnan(table["r2"]).all()
    assert table["reason"].tolist() == ["700 and 60 rows, 128 of each needed"]
