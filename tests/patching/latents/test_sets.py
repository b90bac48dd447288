"""Sets of latents: sums of what each adds, neurons that are the whole MLP, and fair random sets."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import Site
from iclens.model.load import LanguageModel
from iclens.patching.latents import linear_screen, patch_ladder, patch_latents, single_effects
from iclens.patching.receiver import DIRECTIONS, Direction, gather
from iclens.patching.sets import (
    FULL,
    GREEDY,
    HALF,
    NEURONS,
    OWN,
    Members,
    _distinct,
    _neurons_by_effect,
    greedy_order,
    joint,
    own_order,
    patch_sets,
    random_sets,
    writer,
)
from iclens.schemas import SetTable

from ..conftest import MakeRuns, MakeSae, same


def of(table: SetTable, kind: str, size: int | None = None, belief: str = "exact") -> SetTable:
    rows = (table["kind"] == kind) & (table["belief"] == belief)
    return table.where(rows if size is None else rows & (table["size"] == size))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sets_begin_with_single_latents_and_end_with_the_ladder(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, direction: Direction
) -> None:
    held = gather(exact_model, make_sae(), make_runs(n_prompts=12), direction=direction)
    effects = single_effects(held, held.differing)
    table = patch_sets(held, effects, largest=6, n_controls=4)
    first = of(table, OWN, 1)
    alone = effects[held.test][:, list(held.differing).index(int(first["members"][0]))].mean(axis=0)
    for b, belief in enumerate(held.beliefs):
        assert of(table, OWN, 1, belief)["effect"][0] == pytest.approx(alone[b], abs=1e-4)
    ladder = patch_ladder(held, patch_latents(held, n_tested=1, n_controls=2))
    for kind in ("all latents", FULL):
        row = ladder.where((ladder["rung"] == kind) & (ladder["belief"] == "exact"))
        for name in ("effect", "normalised", "ci_low"):
            assert of(table, kind)[name][0] == pytest.approx(row[name][0], abs=1e-4, nan_ok=True)
    assert of(table, FULL)["share_of_full"][0] == pytest.approx(1)
    assert list(of(table, OWN)["size"]) == [1, 2, 4, 6]
    greedy = of(table, GREEDY)
    assert list(greedy["size"]) == list(range(1, len(greedy) + 1)) and set(
        of(table, NEURONS)["n_controls"]
    ) == {0}
    enough = greedy["size"][greedy["screen_share"] >= HALF][:1]
    assert {1, len(greedy), *enough} <= set(greedy["size"][greedy["n_controls"] == 4])
    way = np.sign((held.target - held.base)[held.screen, 3].mean())
    gains = way * effects[held.screen][..., 3].mean(axis=0)
    assert int(first["members"][0]) == held.differing[gains.argmax()]


def test_the_greedy_order_never_loses_and_starts_with_the_best(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(exact_model, make_sae("L2.mlp_out"), make_runs(n_prompts=12))
    effects = single_effects(held, held.differing)
    order = own_order(held, effects, 3)
    greedy = greedy_order(held, order[:20], 3, 5)
    assert greedy[0] == order[0] and len(set(greedy.tolist())) == len(greedy) <= 5
    way = np.sign((held.target - held.base)[held.screen, 3].mean())

    def together(ids: np.ndarray) -> float:
        moved = joint(held, ids)
        return way * float(np.mean([held.effects(i, moved[i][None])[0, 3] for i in held.screen.tolist()]))

    reached = [together(greedy[:k]) for k in range(1, len(greedy) + 1)]
    assert (np.diff(reached) > 0).all()
    for other in order[:20]:
        if other != greedy[0] and len(greedy) > 1:
            assert together(np.array([greedy[0], other])) <= reached[1] + 1e-4


@pytest.mark.parametrize("role", ["pre", "comma"])
def test_all_neurons_together_are_the_mlps_output(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, role: str
) -> None:
    held = gather(exact_model, make_sae("L2.mlp_out"), make_runs(), role=role)
    width = exact_model.network.config.intermediate_size
    pushes, ids = _neurons_by_effect(held, 2, 3, width)
    assert sorted(ids.tolist()) == list(range(width))
    torch.testing.assert_close(pushes.sum(dim=1), held.everything, rtol=1e-3, atol=1e-3)
    few, some = _neurons_by_effect(held, 2, 3, 3)
    assert some.tolist() == ids[:3].tolist() and few.shape == (8, 3, exact_model.d_model)


def test_which_mlp_writes_last_into_a_site() -> None:
    expected = {"resid_pre": 2, "resid_mid": 2, "resid_post": 3, "mlp_out": 3, "attn_out": None}
    assert {hook: writer(Site(3, hook)) for hook in expected} == expected
    assert writer(Site(0, "resid_pre")) is None


def test_random_sets_hold_no_member_and_go_as_far(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(exact_model, make_sae(), make_runs())
    ids = held.differing[:4]
    seen: list[torch.Tensor] = []

    def caught(prompts: np.ndarray, deltas: Iterable[torch.Tensor]) -> list[np.ndarray]:
        seen.extend(deltas)
        return [np.zeros((7, len(held.beliefs)))] * len(prompts)

    watched = replace(held)
    object.__setattr__(watched, "effects_of", caught)
    one = Members(OWN, ids, 4, joint(held, ids))
    random_sets(watched, one, 7, np.random.default_rng(0))
    assert len(seen) == len(held.test)
    for i, delta in zip(held.test.tolist(), seen, strict=True):
        torch.testing.assert_close(delta.norm(dim=1), one.delta[i].norm().expand(7), rtol=1e-4, atol=1e-4)
    drawn = np.stack([_distinct([np.arange(9)] * 5, np.random.default_rng(i)) for i in range(20)])
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    among: list[set[int]] = []

    def directions(latents: np.ndarray) -> torch.Tensor:
        among.append(set(np.asarray(latents).tolist()))
        return held.directions(latents)

    object.__setattr__(watched, "directions", directions)
    random_sets(watched, one, 7, np.random.default_rng(1))
    assert among[0] == set(ids.tolist()) and len(among[1]) > 4 and not among[1] & set(ids.tolist())
    only = replace(held, density=np.where(np.isin(np.arange(held.sae.d_sae), ids), held.density, 0))
    assert random_sets(only, one, 7, np.random.default_rng(0)).shape == (0, len(held.beliefs))


def test_a_donor_that_is_the_recipient_moves_nothing(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(exact_model, make_sae(), same(make_runs()), donor_value="instance")
    table = patch_sets(held, single_effects(held, held.differing))
    assert set(table["kind"]) == {"all latents", NEURONS, "difference of means", FULL}
    assert (np.abs(table["effect"]) < 1e-5).all()
    assert all("less than 1 nat" in reason for reason in table["reason"])
    screened = linear_screen(held, held.differing, single_effects(held, held.differing))
    assert set(screened["reason"]) == {"no latent differs"}


def test_the_screen_says_where_it_misses(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(exact_model, make_sae(), make_runs(n_prompts=12))
    effects = single_effects(held, held.differing)
    screened = linear_screen(held, held.differing, effects)
    row = screened.where(screened["belief"] == "exact")
    assert row["r2"][0] < 1 and row["n_effects"][0] == effects[held.test][..., 3].size
    exact = row["worst_exact"][0]
    column = list(held.differing).index(int(row["worst_latent"][0]))
    assert np.abs(effects[held.test][:, column, 3] - exact).min() < 1e-9
    assert row["worst_miss"][0] == pytest.approx(abs(exact - row["worst_linear"][0]))
