"""One error rate for a study of many sites, roles and latents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iclens.stats import benjamini_hochberg, study_q_values

p_values = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12).map(np.array)


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4 / rank: .02 .02 .04 .04.
    # Bonferroni would give .02 .04 .12 .16, Holm .02 .03 .06 .06.
    assert np.allclose(benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005])), [0.02, 0.04, 0.04, 0.02])


def test_a_larger_p_lowers_a_smaller_ones_adjusted_value() -> None:
    # .04·2/1 = .08 and .05·2/2 = .05: the step-up minimum gives .05 to both.
    assert np.allclose(benjamini_hochberg(np.array([0.04, 0.05])), [0.05, 0.05])


def test_tests_not_made_are_not_counted() -> None:
    adjusted = benjamini_hochberg(np.array([0.01, np.nan, 0.5]))
    assert np.isnan(adjusted[1])
    assert np.allclose(adjusted[[0, 2]], [0.02, 0.5])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@given(p_values)
def test_agrees_with_scipy(p: np.ndarray) -> None:
    assert np.allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


@given(p_values)
def test_a_study_of_one_family_is_plain_benjamini_hochberg(p: np.ndarray) -> None:
    assert np.allclose(study_q_values([p])[0], benjamini_hochberg(p))


def two_step(families: list[np.ndarray], q: float) -> list[np.ndarray]:
    """The procedure as its paper states it: select families by BH on Simes p, then BH at q·R/m in each."""
    simes = []
    for p in families:
        ordered = np.sort(p)
        simes.append((ordered * len(p) / np.arange(1, len(p) + 1)).min())
    m = len(simes)
    ordered = np.sort(simes)
    passing = [r for r in range(1, m + 1) if ordered[r - 1] <= q * r / m]
    level = q * max(passing, default=0) / m
    called = []
    for p in families:
        ordered = np.sort(p)
        below = [i for i in range(1, len(p) + 1) if ordered[i - 1] <= level * i / len(p)]
        called.append(p <= ordered[max(below) - 1] if below and level > 0 else np.zeros(len(p), bool))
    return called


@given(st.lists(p_values, min_size=1, max_size=5), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_q_values_reproduce_the_two_steps(families: list[np.ndarray], q: float) -> None:
    for q_value, called in zip(study_q_values(families), two_step(families, q), strict=True):
        certain = np.abs(q_value - q) > 1e-9
        assert ((q_value <= q) == called)[certain].all()


def test_families_without_a_test_are_not_counted() -> None:
    p = np.array([0.001, 0.4])
    assert np.allclose(study_q_values([p, np.array([np.nan, np.nan])])[0], benjamini_hochberg(p))


def test_many_families_of_pure_noise_rarely_give_any_discovery() -> None:
    rng = np.random.default_rng(0)
    runs = [study_q_values(list(rng.random((48, 40)))) for _ in range(400)]
    shares = np.mean([any((q <= 0.05).any() for q in run) for run in runs])
    within_only = np.mean(
        [any((benjamini_hochberg(p) <= 0.05).any() for p in rng.random((48, 40))) for _ in range(100)]
    )
    assert shares <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert within_only > 0.7  # Benjamini–Hochberg in each family alone does not control the study
