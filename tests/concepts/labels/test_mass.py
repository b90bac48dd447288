import numpy as np
import pytest

from iclens.concepts.labels import role_mass
from iclens.core import TableError

N_PROMPTS, N_EXAMPLES = 30, 8


@pytest.fixture
def both(as_latents):
    """Latents at lab and pre: mostly lab, all pre, half and half, never, lab in the first examples alone."""
    rng = np.random.default_rng(0)
    n = N_PROMPTS * N_EXAMPLES
    example = np.tile(np.arange(N_EXAMPLES), N_PROMPTS)
    size = 1 + rng.random(n)
    lab = np.column_stack([19 * size, 0 * size, size, 0 * size, size * (example < 4)])
    pre = np.column_stack([size, size, size, 0 * size, 0 * size])
    return as_latents(lab, N_EXAMPLES, "lab"), as_latents(pre, N_EXAMPLES, "pre")


def test_where_the_mass_is(both) -> None:
    frame = role_mass(*both, seed=0).df.set_index("latent")
    assert frame["kind"].tolist() == ["detection", "execution", "", "", ""]
    assert frame["lab_share"][0] == pytest.approx(0.95)
    assert (frame["lab_share"][1], frame["ci_high"][1]) == (0, 0)
    assert frame["lab_share"][2] == pytest.approx(0.5)
    # the first examples do not count: the task cannot be known yet
    assert np.isnan(frame["lab_share"][[3, 4]]).all()
    assert frame["reason"][3] == "active in fewer than 20 rows"
    assert (frame["ci_low"][:3] <= frame["lab_share"][:3]).all()


def test_other_prompts_are_refused(both, as_latents) -> None:
    with pytest.raises(TableError, match="n_prompts differs"):
        role_mass(both[0], as_latents(np.ones((N_EXAMPLES, 5)), N_EXAMPLES, "pre"), seed=0)
