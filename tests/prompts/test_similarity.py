"""How near an example is to the query after it, inline and probed."""

import numpy as np
import pytest

from iclens.builtin.model import build_tokenizer
from iclens.prompts.build import PromptSet, build_prompts, example_similarity
from iclens.prompts.tasks import parse_task

TOKENIZER = build_tokenizer()


def arm(code: str, task: str = "2x+3") -> PromptSet:
    return build_prompts(TOKENIZER, parse_task(task), arm=code, n_prompts=5, n_examples=6, seed=0)


def near(prompts: PromptSet) -> np.ndarray:
    found = example_similarity(prompts)
    assert found is not None
    return found


def test_inline_by_hand() -> None:
    prompts = arm("T")
    x = prompts.x.astype(int)
    found = near(prompts)
    widest = x.max() - x.min()
    assert found[1, 2] == pytest.approx(1 - abs(x[1, 2] - x[1, 3]) / widest)
    assert np.isnan(found[:, -1]).all() and np.isfinite(found[:, :-1]).all()
    assert found[:, :-1].min() >= 0 and found[:, :-1].max() <= 1


def test_a_probed_arm_asks_what_stands_last_in_the_querys_own_context() -> None:
    prompts = arm("D")
    x = prompts.x.astype(int)
    found = near(prompts)
    assert found[2, 3] == pytest.approx(1 - abs(x[2, 0] - x[2, 4]) / (x.max() - x.min()))
    np.testing.assert_allclose(near(arm("P")), near(arm("T")))


def test_words_have_no_distance() -> None:
    assert example_similarity(arm("T", "word:opposite")) is None
