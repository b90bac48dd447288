"""Rows of several prompts in common batches are those of each prompt alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site
from iclens.model.load import LanguageModel
from iclens.model.tail import Tail, added_together, tails_of

from ..conftest import InFloat64

Random = Callable[..., LanguageModel]


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "mlp_out"])
@pytest.mark.parametrize("suffix", [1, 5])
def test_each_prompt_has_the_answers_it_has_alone(
    tiny_model: LanguageModel, random_model: Random, in_float64: InFloat64, hook: str, kind: str, suffix: int
) -> None:
    """Also at the last block, with no row, with more rows than a sequence holds, and in tiny batches."""
    model, rng = in_float64(random_model(tiny_model, 5, 3, 4, 2, kind)), np.random.default_rng(5)
    tokens = rng.integers(0, 1000, (5, 20))
    counts = (3, 0, 150, 1, 64)
    deltas = [torch.as_tensor(rng.normal(size=(n, model.d_model)).astype(np.float32)) for n in counts]
    where = np.array([20 - suffix])
    for layer in (0, 2):
        site, tails = Site(layer, hook), tails_of(model, tokens, first=20 - suffix)
        found = added_together(tails, site, deltas, where)
        for tail in tails:
            tail.memory = 2**18
        assert tails[0].rows_at_once() < 60
        narrow = added_together(tails, site, deltas, where)
        for tail, delta, wide, few in zip(tails, deltas, found, narrow, strict=True):
            alone = tail.added(site, delta, positions=where).log_prob
            assert wide.log_prob.shape == (len(delta), 1000)
            np.testing.assert_allclose(wide.log_prob, alone, rtol=0, atol=1e-5)
            np.testing.assert_allclose(few.log_prob, alone, rtol=0, atol=1e-5)


def test_prompts_of_other_lengths_are_refused(tiny_model: LanguageModel) -> None:
    tails = [Tail(tiny_model, np.arange(2, end)) for end in (9, 10)]
    with pytest.raises(EditError, match="their lengths differ"):
        added_together(tails, Site(1, "mlp_out"), [torch.zeros(1, tiny_model.d_model)] * 2)
    assert added_together([], Site(1, "mlp_out"), []) == []
