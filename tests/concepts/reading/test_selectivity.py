import numpy as np
import pytest

from iclens.concepts.tuning import operand_map, task_means, tuning
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, SiteError, TableError
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task

RULES = {name: parse_task(name) for name in ("3x", "word:parity")}
X = np.array([["1", "2", "2"], ["5", "4", "2"], ["0", "1", "2"]])
Y = np.array([["3", "6", "6"], ["odd", "even", "even"], ["0", "3", "6"]])
TOKENS = np.zeros((3, PREFIX_LENGTH + 3 * TOKENS_PER_EXAMPLE), dtype=np.int64)
PROMPTS = PromptSet(np.array(["3x", "word:parity", "3x"]), "T", X, Y, Y, TOKENS, 0, "none")
#                  3x          word        3x
FIRST = np.array([[9.0, 1, 3], [9, 0, 4], [9, 0, 2]]).ravel()
SECOND = np.array([[9.0, 0, 0], [9, 5, 0], [9, 0, 0]]).ravel()


@pytest.fixture
def acts(as_latents):
    return as_latents(np.column_stack([np.zeros(9), FIRST, SECOND]), 3)


def test_task_means_golden(acts) -> None:
    means = task_means(acts, PROMPTS, RULES, np.array([1, 2]), first_example=1)
    assert means.groups.tolist() == ["3x", "word:parity"]
    assert means.n_rows.tolist() == [4, 2]
    # zeros count: (1 + 3 + 0 + 2) / 4, not / 3; the first example is left out
    np.testing.assert_allclose(means.mean, [[1.5, 2.0], [0.0, 2.5]])
    assert means.latent_ids.tolist() == [1, 2]


def test_tuning_golden(acts) -> None:
    by_y = tuning(acts, PROMPTS, RULES, np.array([1]), by="y", first_example=1)
    assert by_y.groups.tolist() == [3, 6]  # words have no place on the axis
    assert by_y.n_rows.tolist() == [1, 3]
    np.testing.assert_allclose(by_y.mean, [[0.0, 2.0]])
    by_x = tuning(acts, PROMPTS, RULES, np.array([1, 0]), by="x", first_example=1)
    assert by_x.groups.tolist() == [1, 2, 4]
    np.testing.assert_allclose(by_x.mean, [[0.0, 2.5, 0.0], [0, 0, 0]])


def test_tuning_to_the_distance_from_twice_x(acts) -> None:
    by = tuning(acts, PROMPTS, RULES, np.array([1]), by="y-2x", first_example=1)
    # y - 2x: 6 - 4, 6 - 4 | words | 3 - 2, 6 - 4 with activations 1, 3 | 0, 2
    assert by.groups.tolist() == [1, 2]
    np.testing.assert_allclose(by.mean, [[0.0, 2.0]])


def test_operand_map_golden(acts) -> None:
    """Boxes of width 2: x 2, y 6 holds three rows (1, 3, 2), x 0, y 2 one (0)."""
    found = operand_map(acts, PROMPTS, RULES, np.array([1, 2]), width=2, first_example=1)
    assert found.groups.tolist() == [[0, 2], [2, 6]]
    assert found.n_rows.tolist() == [1, 3]
    np.testing.assert_allclose(found.mean, [[0.0, 2.0], [0.0, 0.0]])


def test_unknown_axis_latent_or_prompts_are_refused(acts) -> None:
    with pytest.raises(TableError, match="Choose one of y, x, y-2x"):
        tuning(acts, PROMPTS, RULES, np.array([0]), by="z")
    with pytest.raises(SiteError, match="0 to 2"):
        task_means(acts, PROMPTS, RULES, np.array([3]))
    with pytest.raises(TableError, match="other prompts"):
        task_means(acts, PROMPTS.select(np.array([0, 1])), RULES, np.array([0]))
