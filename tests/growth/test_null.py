"""The relabelled null on planted latents."""

import numpy as np

from iclens.core import Site
from iclens.growth.detect import test_arms as judge_study
from planted import null_discoveries, relabelled

N, J, D = 96, 8, 60


def study(planted, seed: int) -> tuple[dict, dict]:
    """Six places of correlated, sparse latents, a third of which truly grow in T."""
    rng = np.random.default_rng(seed)
    treated, control = {}, {}
    for layer in (1, 2, 3):
        for role in ("pre", "lab"):
            shared = rng.standard_normal((2, 1, N, J))
            own = rng.standard_normal((2, D, N, J))
            levels = 0.7 * shared + own - np.linspace(-1, 2.5, D)[:, None, None]
            levels[0, ::3] += 0.25 * np.arange(J)
            place = (Site(layer, "mlp_out"), role)
            treated[place] = planted(np.maximum(levels[0], 0), *place)
            control[place] = planted(np.maximum(levels[1], 0), *place)
    return treated, control


def test_true_arms_are_discovered_and_relabelled_ones_are_not(planted, pair) -> None:
    treated, control = study(planted, 1)
    prompts = pair(N, J)
    assert len(judge_study(treated, control, prompts=prompts).growing()) > 50
    counts = null_discoveries(treated, control, prompts=prompts, n_runs=60, seed=0)
    assert counts.shape == (60,)
    assert (counts > 0).sum() <= 3 + 5  # .05 of 60, and three standard errors


def test_relabelling_is_a_function_of_the_seed(planted, pair) -> None:
    treated, control = study(planted, 2)
    runs = [null_discoveries(treated, control, prompts=pair(N, J), n_runs=3, seed=7, q=0.9) for _ in range(2)]
    assert (runs[0] == runs[1]).all()


def test_relabelling_swaps_whole_prompts_everywhere(planted) -> None:
    treated, control = study(planted, 3)
    swapped = np.random.default_rng(0).random(N) < 0.5
    one, other = relabelled(treated, control, swapped)
    for place, acts in treated.items():
        before, after = acts.dense(), one[place].dense()
        assert (after[:, ~swapped] == before[:, ~swapped]).all()
        assert (after[:, swapped] == control[place].dense()[:, swapped]).all()
    back, _ = relabelled(one, other, swapped)
    assert all((back[place].dense() == acts.dense()).all() for place, acts in treated.items())
