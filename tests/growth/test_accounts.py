"""Accounts of growth: hand-built heads, frozen curves and noise are each named for what they are."""

import numpy as np
import pytest

from iclens.core import TableError
from iclens.growth.accounts import ACCOUNTS, BEHAVIOUR, EXACT, Design, compare, compare_all, design_of
from planted import ARMS, NAMES, contexts, head_output, named, noisy_outputs

N = 60


@pytest.mark.parametrize("head", NAMES)
def test_hand_built_heads_are_named(head: str) -> None:
    """Seeds below 1,000; the calibration reports others."""
    assert sum(named(head, seed=seed) == NAMES[head] for seed in range(5)) >= 4


def test_heads_by_hand() -> None:
    design = contexts("C3", 1)
    np.testing.assert_allclose(head_output("sum pool", design)[0, :6], [0, 1, 2, 3, 2, 3])
    np.testing.assert_allclose(head_output("softmax with sink", design)[0, :3], [0, 1 / 4, 2 / 5])
    np.testing.assert_allclose(head_output("recency", design)[0, :3], [0, 1, 1.6])
    np.testing.assert_allclose(head_output("latch", design)[0, :3], [0, 1, 1])


def test_the_exact_curve_wins_only_when_it_is_given_and_true() -> None:
    rng = np.random.default_rng(0)
    exact = {arm: rng.standard_normal((N, 16)).cumsum(axis=1) for arm in ARMS}
    designs = {arm: Design(contexts(arm, N).right, contexts(arm, N).new, exact[arm]) for arm in ARMS}
    responses = {arm: 0.8 * exact[arm] + 0.3 * rng.standard_normal((N, 16)) for arm in ARMS}
    found = compare(responses, designs)
    assert found.best == "exact posterior" and not found.tied
    assert found.table["behind"][0] == 0 and (found.table["behind"][1:] > 0).all()
    hidden = {arm: Design(d.right, d.new) for arm, d in designs.items()}
    assert "exact posterior" not in compare(responses, hidden).table["account"]


def test_many_read_outs_are_each_compared_as_alone() -> None:
    designs = {arm: contexts(arm, N) for arm in ARMS}
    heads = [noisy_outputs(head, n_prompts=N, seed=s) for s, head in enumerate(NAMES)]
    together = compare_all({arm: np.stack([head[arm] for head in heads]) for arm in ARMS}, designs)
    for head, found in zip(heads, together, strict=True):
        alone = compare(head, designs)
        assert (found.best, found.tied) == (alone.best, alone.tied)
        assert found.table["account"].tolist() == alone.table["account"].tolist()
        for column in ("behind", "behind_low", "behind_high", "r2"):
            np.testing.assert_allclose(found.table[column], alone.table[column], rtol=1e-9, atol=1e-9)


def test_the_fit_is_generalised_least_squares_with_a_slope_that_is_not_negative() -> None:
    """Against the normal equations written out, on the fitted half; a fall is fitted as a constant."""
    rng = np.random.default_rng(3)
    designs = {arm: contexts(arm, N) for arm in ARMS}
    counting = tuple(a for a in ACCOUNTS if a.name == "counting")
    rising = {arm: 0.3 * designs[arm].right.sum(axis=2) + rng.standard_normal((N, 16)) for arm in ARMS}
    halves = np.array_split(np.random.default_rng(0).permutation(N), 2)
    xtx, xty, weights = np.zeros((2, 2)), np.zeros(2), {}
    for arm in ARMS:
        y = rising[arm][halves[0]]
        c = np.cov(y.T)
        own = np.diag(np.diag(c)) + 1e-6 * np.trace(c) * np.eye(16)
        weights[arm] = np.linalg.inv(0.9 * c + 0.1 * own)
        for row, phi in zip(y, designs[arm].right.sum(axis=2)[halves[0]], strict=True):
            x = np.stack([np.ones(16), phi], axis=1)
            xtx += x.T @ weights[arm] @ x
            xty += x.T @ weights[arm] @ row
    a, b = np.linalg.solve(xtx, xty)
    held = {arm: rising[arm][halves[1]] - a - b * designs[arm].right.sum(axis=2)[halves[1]] for arm in ARMS}
    grand = np.mean([rising[arm][halves[1]].mean() for arm in ARMS])
    missed = sum(np.square(held[arm].mean(axis=0)).sum() for arm in ARMS)
    spread = sum(np.square(rising[arm][halves[1]].mean(axis=0) - grand).sum() for arm in ARMS)
    found = compare(rising, designs, accounts=counting)
    assert found.table["r2"][0] == pytest.approx(1 - missed / spread)
    falling = {arm: -values for arm, values in rising.items()}
    assert compare(falling, designs).best == "nothing"


def test_a_latent_that_follows_the_models_belief_is_told_from_one_that_follows_bayes() -> None:
    rng = np.random.default_rng(0)
    exact = {arm: rng.standard_normal((N, 16)).cumsum(axis=1) for arm in ARMS}
    own = {arm: np.tanh(exact[arm]) + 0.5 * rng.standard_normal((N, 16)) for arm in ARMS}
    shown = {arm: contexts(arm, N) for arm in ARMS}
    designs = {arm: Design(shown[arm].right, shown[arm].new, exact[arm], own[arm]) for arm in ARMS}
    noise = {arm: 0.2 * rng.standard_normal((2, N, 16)) for arm in ARMS}
    latents = {arm: np.stack([2 * own[arm], exact[arm]]) + noise[arm] for arm in ARMS}
    assert [found.best for found in compare_all(latents, designs)] == [BEHAVIOUR, EXACT]
    blind = {arm: Design(d.right, d.new, d.exact) for arm, d in designs.items()}
    assert BEHAVIOUR not in compare_all(latents, blind)[0].table["account"]


def test_after_a_label_the_design_is_that_of_the_next_query() -> None:
    exact = np.arange(N * 16.0).reshape(N, 16)
    before = Design(contexts("C3", N).right, contexts("C3", N).new, exact)
    after = before.after_labels()
    assert after.right.shape == (N, 15, 15) and after.behaviour is None
    np.testing.assert_array_equal(after.right[0, 0], [1] + [0] * 14)
    np.testing.assert_array_equal(after.exact, exact[:, 1:])
    np.testing.assert_array_equal(before.select(np.array([3])).exact, exact[[3]])


def test_an_example_at_which_all_prompts_agree_has_no_say() -> None:
    designs = {arm: contexts(arm, N) for arm in ARMS}
    outputs = noisy_outputs("recency", n_prompts=N, seed=2)
    moved = {arm: values.copy() for arm, values in outputs.items()}
    for values in moved.values():
        values[:, 0] = 7.0
    found = compare(moved, designs)
    assert found.best == compare(outputs, designs).best == "recency"
    assert found.table["behind"][1] < 3 * compare(outputs, designs).table["behind"][1]


def test_noise_alone_names_nothing() -> None:
    rng = np.random.default_rng(0)
    designs = {arm: contexts(arm, N) for arm in ARMS}
    found = compare({arm: rng.standard_normal((N, 16)) for arm in ARMS}, designs)
    assert found.best == "nothing"


def test_one_arm_or_few_prompts_are_refused() -> None:
    outputs = noisy_outputs("sum pool", n_prompts=64, seed=0)
    designs = {arm: contexts(arm, 64) for arm in ARMS}
    with pytest.raises(TableError, match="One curve cannot separate"):
        compare({"T": outputs["T"]}, {"T": designs["T"]})
    with pytest.raises(TableError, match="at least 8"):
        compare({a: outputs[a][:5] for a in ARMS}, {a: designs[a].select(np.arange(5)) for a in ARMS})


def test_designs_read_labels_and_repeats(pair) -> None:
    treated, control = pair(3, 5)
    design = design_of(treated)
    assert design.right[0].tolist() == np.tri(5, 4, -1).tolist()
    assert (design_of(control).right.sum(axis=2) < design.right.sum(axis=2))[:, 1:].all()
