"""What a read-out at a role has seen: evidence and designs stand one example later once the label is read."""

import numpy as np
import pytest

from iclens.builtin.model import build_tokenizer
from iclens.growth.accounts import design_of
from iclens.growth.bayes import evidence_regression
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.study.growth import ArmEvidence, comparable

N, J = 40, 8
TOKENIZER = build_tokenizer()
PROMPTS = {
    arm: build_prompts(TOKENIZER, parse_task("2x+3"), arm=arm, n_prompts=N, n_examples=J, seed=0)
    for arm in ("T", "N2", "D")
}


def shown() -> ArmEvidence:
    rng = np.random.default_rng(0)
    llr = {arm: rng.exponential(1.0, (N, J)) for arm in PROMPTS}
    for values in llr.values():
        values[:, -1] = np.nan
    near = {arm: rng.random((N, J)) for arm in PROMPTS}
    designs = {arm: design_of(prompts) for arm, prompts in PROMPTS.items()}
    return ArmEvidence(llr, near, designs, frozenset({"T", "N2"}))


def bayesian(given: ArmEvidence, role: str) -> dict[str, np.ndarray]:
    """A perfect Bayesian at a role: one nat per nat of what it has read."""
    found = {}
    for arm, llr in given.llr.items():
        read = np.concatenate([np.zeros((N, 1)), np.nan_to_num(llr).cumsum(axis=1)], axis=1)
        found[arm] = (read[:, 1:] if role in ("lab", "close") else read[:, :-1])[None]
    return found


@pytest.mark.parametrize("role", ["open", "x", "pre", "lab", "close"])
def test_a_bayesian_weighs_evidence_at_every_role(role: str) -> None:
    given = shown()
    seen, held = given.at(role, bayesian(given, role))
    fit = evidence_regression(held, seen.llr, seen.similarity)
    assert fit.evidence[0] == pytest.approx(1.0) and fit.count[0] == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(fit.similarity[0]) == (role in ("x", "pre")), "the query has to be known"


def test_after_a_label_probed_arms_and_the_last_example_are_left_out() -> None:
    given = shown()
    seen, held = given.at("lab", bayesian(given, "lab"))
    assert set(held) == set(seen.designs) == {"T", "N2"}
    assert held["T"].shape == (1, N, J - 1) and seen.hinted == given.hinted - 1
    shape = seen.designs["T"].right.shape
    assert shape[:2] == (N, J - 1)
    np.testing.assert_array_equal(seen.designs["T"].right[:, 0].sum(axis=1), 1)


def test_arms_without_an_exact_posterior_are_compared_only_when_too_few_have_one() -> None:
    known, unknown = np.zeros((3, 4)), np.full((3, 4), np.nan)
    assert comparable({"T": known, "S": unknown, "D": known}) == ["T", "D"]
    assert comparable({"T": known, "S": unknown}) == ["T", "S"]
