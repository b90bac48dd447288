"""Who weighs evidence is told from who counts; every Bayesian test says what a planted learner does."""

import numpy as np
import pytest

from iclens.core import TableError
from iclens.growth.accounts import ACCOUNTS, BEHAVIOUR, EXACT, Design, compare, compare_all, design_of
from iclens.growth.bayes import bayes_tests, duplicates, evidence_regression, order, reversal, separability
from planted import ARMS, NAMES, contexts, head_output, named, noisy_outputs

N, J = 60, 12


def llr(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(1.0, (N, J))


def learner(
    evidence: np.ndarray, by_evidence: float, by_count: float, noise: float = 0.3, seed: int = 1
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = by_evidence * evidence + by_count
    total = np.concatenate([np.zeros((N, 1)), steps[:, :-1].cumsum(axis=1)], axis=1)
    return total + noise * rng.standard_normal((N, J)) + rng.standard_normal((N, 1))


@pytest.mark.parametrize(
    ("by_evidence", "by_count", "said"),
    [(0.8, 0.0, "evidence"), (0.0, 0.5, "count"), (0.8, 0.5, "both"), (0.0, 0.0, "neither")],
)
def test_planted_learners_are_told_apart(by_evidence: float, by_count: float, said: str) -> None:
    given = llr()
    fit = evidence_regression({"T": learner(given, by_evidence, by_count)[None]}, {"T": given})
    assert fit.weighting == [said]
    assert fit.evidence_low[0] <= by_evidence <= fit.evidence_high[0]
    assert fit.count_low[0] <= by_count <= fit.count_high[0]
    assert (fit.n_prompts, fit.n_increments) == (N, N * (J - 1))


def test_intervals_cover_and_false_evidence_is_rare() -> None:
    covered, false = 0, 0
    for seed in range(200):
        given = llr(seed)
        fit = evidence_regression({"T": learner(given, 0.0, 0.5, seed=seed)[None]}, {"T": given})
        covered += bool(fit.evidence_low[0] <= 0 <= fit.evidence_high[0])
        false += bool(fit.evidence_low[0] > 0)
    assert 0.91 <= covered / 200 <= 0.985
    assert false / 200 <= 0.055


def test_many_read_outs_are_what_each_is_alone() -> None:
    given = llr()
    held = np.stack([learner(given, 0.8, 0.0), learner(given, 0.0, 0.5, seed=2)])
    together = evidence_regression({"T": held}, {"T": given})
    alone = [evidence_regression({"T": row[None]}, {"T": given}).evidence[0] for row in held]
    np.testing.assert_allclose(together.evidence, alone)


def test_a_copier_from_near_examples_is_told_from_who_weighs_evidence() -> None:
    given, rng = llr(), np.random.default_rng(5)
    near = {"T": rng.random((N, J))}
    copier = learner(given, 0.0, 0.4) + np.pad(near["T"][:, :-1], ((0, 0), (1, 0))).cumsum(axis=1)
    fit = evidence_regression({"T": np.stack([copier, learner(given, 0.8, 0.0)])}, {"T": given}, near)
    assert fit.similarity_low[0] <= 1.0 <= fit.similarity_high[0] and fit.similarity_low[0] > 0.5
    assert fit.similarity_low[1] <= 0.0 <= fit.similarity_high[1]
    assert fit.weighting == ["count", "evidence"]
    alone = evidence_regression({"T": copier[None]}, {"T": given})
    assert np.isnan(alone.similarity[0]) and np.isfinite(alone.evidence[0])
    even = evidence_regression({"T": copier[None]}, {"T": given}, {"T": np.full((N, J), 0.3)})
    np.testing.assert_allclose(even.evidence, alone.evidence)


def test_nearness_stands_in_the_row_of_the_evidence_test() -> None:
    given = llr()
    near = {"T": np.random.default_rng(5).random((N, J))}
    rows = [
        bayes_tests({"T": learner(given, 1.0, 0.0)}, {"T": given}, response="model", similarity=known)
        for known in (near, None)
    ]
    said = [str(row["meaning"][row["test"] == "evidence"][0]) for row in rows]
    assert "nearest example" in said[0] and "nearest example" not in said[1]


def test_what_cannot_be_told_apart_has_a_reason() -> None:
    flat = np.ones((N, J))
    assert "same evidence" in evidence_regression({"T": learner(flat, 1, 0)[None]}, {"T": flat}).reason
    by_age = np.tile(np.arange(J, dtype=float), (N, 1))
    assert "apart from count" in evidence_regression({"T": learner(by_age, 1, 0)[None]}, {"T": by_age}).reason
    unknown = np.full((N, J), np.nan)
    assert "8 needed" in evidence_regression({"T": learner(flat, 1, 0)[None]}, {"T": unknown}).reason
    with pytest.raises(TableError, match="not finite"):
        evidence_regression({"T": np.full((1, N, J), np.nan)}, {"T": flat})


def test_duplicates_by_hand() -> None:
    n = np.arange(J, dtype=float)
    distinct = n + 0.01 * np.random.default_rng(0).standard_normal((N, J))
    half = distinct.copy()
    half[:, 2:] = distinct[:, 1:2] + 0.5 * (distinct[:, 2:] - distinct[:, 1:2])
    found = duplicates(distinct, half)
    assert found["estimate"] == pytest.approx(0.5) and found["low"] == pytest.approx(0.5)
    assert duplicates(distinct, distinct)["verdict"] == "repeated examples add as much as new ones"


def test_order_is_told_from_sets() -> None:
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((1, N, J))
    exchangeable = order(np.repeat(sets, 4, axis=0) + 1e-3 * rng.standard_normal((4, N, J)))
    assert float(exchangeable["high"]) < 0.01  # type: ignore[arg-type]
    ordered = order(0.2 * np.repeat(sets, 4, axis=0) + rng.standard_normal((4, N, J)))
    assert float(ordered["low"]) > 1  # type: ignore[arg-type]


def test_reversal_and_hints_by_hand() -> None:
    n = np.arange(J, dtype=float)
    kept = np.tile(n, (N, 1)) + 0.01 * np.random.default_rng(0).standard_normal((N, J))
    switched = kept.copy()
    switched[:, J // 2 :] = kept[:, J // 2 : J // 2 + 1] * np.linspace(1, 0, J - J // 2)
    assert reversal(kept, switched)["estimate"] == pytest.approx(1.0, abs=0.01)
    prior = separability(kept, kept - 2, 2)
    assert prior["verdict"] == "the hint acts as a prior" and prior["estimate"] == pytest.approx(1.0)
    overcome = separability(kept, kept - 2 * np.exp(-n / 3), 2)
    assert overcome["verdict"] == "the hint is overcome"


def test_missing_arms_are_rows_with_a_reason() -> None:
    given = llr()
    table = bayes_tests({"T": learner(given, 1.0, 0.0)}, {"T": given}, response="model")
    assert len(table) == 7 and (table["response"] == "model").all()
    tested = dict(zip(table["test"], table["verdict"], strict=True))
    assert tested["evidence"] == "increments follow the evidence, not the count"
    assert tested["duplicates"] == "not tested"
    assert "arm D" in table["reason"][0]


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


def test_without_an_exact_posterior_every_test_of_it_has_a_reason() -> None:
    unknown = np.full((N, J), np.nan)
    table = bayes_tests({"T": unknown, "D": unknown}, {"T": llr()}, response="exact posterior")
    assert set(table["verdict"]) == {"not tested"} and all(table["reason"])


def test_a_ratio_to_nothing_is_undefined() -> None:
    rng = np.random.default_rng(0)
    still = rng.standard_normal((N, J))
    found = duplicates(still, still + 1)
    assert np.isnan(float(found["estimate"])) and "not clearly different from 0" in str(found["reason"])  # type: ignore[arg-type]
