"""A direction that context writes is found, and grows on prompts that did not give it."""

import numpy as np
import pytest

from iclens.core import Site, TableError
from iclens.model.load import LanguageModel
from iclens.model.run import record
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.tracking import direction_growth

SITE = Site(1, "resid_post")


@pytest.fixture(scope="module")
def arms(tiny_model: LanguageModel):
    return [
        build_prompts(tiny_model.tokenizer, parse_task("2x+3"), arm=arm, n_prompts=10, n_examples=5, seed=3)
        for arm in "TS"
    ]


def test_projections_are_those_of_the_difference_of_means(tiny_model: LanguageModel, arms) -> None:
    fit, test = np.arange(4), np.arange(4, 10)
    found = direction_growth(tiny_model, *arms, [SITE], fit=fit, test=test, batch=3)[SITE]
    one, other = (record(tiny_model, arm.tokens, [SITE], arm.positions("pre"))[SITE] for arm in arms)
    difference = one.astype(float) - other
    u = difference[fit, -1].mean(axis=0)
    np.testing.assert_allclose(found, difference[test] @ u / np.linalg.norm(u), rtol=1e-4, atol=1e-4)
    assert np.abs(found[:, 0]).max() < 1e-3, "before any example the arms are one text"


def test_a_prompt_that_gave_the_direction_is_not_tested(tiny_model: LanguageModel, arms) -> None:
    with pytest.raises(TableError, match="prompt 3 both fits and tests"):
        direction_growth(tiny_model, *arms, [SITE], fit=np.arange(4), test=np.arange(3, 6))


def test_equal_arms_are_refused(tiny_model: LanguageModel, arms) -> None:
    with pytest.raises(TableError, match="activations are equal"):
        direction_growth(tiny_model, arms[0], arms[0], [SITE], fit=np.arange(4), test=np.arange(4, 6))
