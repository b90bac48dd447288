"""Sets of latents: sums of what each adds, neurons that are the whole MLP, random sets and controls."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site, SiteError, position
from iclens.model.architectures import Adapter
from iclens.model.run import Edit
from iclens.patching.latents import carry_levels, linear_screen, patch_latents, single_effects
from iclens.patching.receiver import DIRECTIONS, prepare_patch, query_answers
from iclens.patching.sets import (
    ALL,
    FULL,
    GREEDY,
    HALF,
    NEURONS,
    OWN,
    Members,
    _distinct,
    _neurons_by_effect,
    greedy_order,
    own_order,
    patch_controls,
    patch_sets,
    random_sets,
    writer,
)
from iclens.prompts.beliefs import parse_belief
from iclens.schemas import ControlTable, SetTable

from .conftest import same
from .planted_latents import BIAS, plant, planted_runs


def of(table: SetTable, kind: str, size: int | None = None, belief: str = "exact") -> SetTable:
    rows = (table["kind"] == kind) & (table["belief"] == belief)
    return table.where(rows if size is None else rows & (table["size"] == size))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sets_begin_with_single_latents_and_end_with_carry_levels(
    exact_model, make_runs, make_sae, direction
):
    receiver = prepare_patch(exact_model, make_sae(), make_runs(n_prompts=12), direction=direction)
    effects = single_effects(receiver, receiver.differing)
    table = patch_sets(receiver, effects, largest=6, n_controls=4)
    first = of(table, OWN, 1)
    alone = effects[receiver.test][:, list(receiver.differing).index(int(first["members"][0]))].mean(axis=0)
    for b, belief in enumerate(receiver.beliefs):
        assert of(table, OWN, 1, belief)["effect"][0] == pytest.approx(alone[b], abs=1e-4)
    levels = carry_levels(receiver, patch_latents(receiver, n_tested=1, n_controls=2))
    for kind in ("all latents", FULL):
        row = levels.where((levels["rung"] == kind) & (levels["belief"] == "exact"))
        for name in ("effect", "normalised", "ci_low"):
            assert of(table, kind)[name][0] == pytest.approx(row[name][0], abs=1e-4, nan_ok=True)
    assert of(table, FULL)["share_of_full"][0] == pytest.approx(1)
    assert list(of(table, OWN)["size"]) == [1, 2, 4, 6]
    greedy = of(table, GREEDY)
    assert list(greedy["size"]) == list(range(1, len(greedy) + 1))
    assert set(of(table, NEURONS)["n_controls"]) == {0}
    enough = greedy["size"][greedy["screen_share"] >= HALF][:1]
    assert {1, len(greedy), *enough} <= set(greedy["size"][greedy["n_controls"] == 4])
    way = np.sign(receiver.span[receiver.screen, 3].mean())
    gains = way * effects[receiver.screen][..., 3].mean(axis=0)
    assert int(first["members"][0]) == receiver.differing[gains.argmax()]


def test_the_greedy_order_never_loses_and_starts_with_the_best(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae("L2.mlp_out"), make_runs(n_prompts=12))
    effects = single_effects(receiver, receiver.differing)
    order = own_order(receiver, effects, 3)
    greedy = greedy_order(receiver, order[:20], 3, 5)
    assert greedy[0] == order[0] and len(set(greedy.tolist())) == len(greedy) <= 5
    way = np.sign(receiver.span[receiver.screen, 3].mean())

    def together(ids: np.ndarray) -> float:
        moved = receiver.joint(ids)
        return way * float(
            np.mean([receiver.effects(i, moved[i][None])[0, 3] for i in receiver.screen.tolist()])
        )

    reached = [together(greedy[:k]) for k in range(1, len(greedy) + 1)]
    assert (np.diff(reached) > 0).all()
    for other in order[:20]:
        if other != greedy[0] and len(greedy) > 1:
            assert together(np.array([greedy[0], other])) <= reached[1] + 1e-4


@pytest.mark.parametrize("role", ["pre", "comma"])
def test_all_neurons_together_are_the_mlps_output(exact_model, make_runs, make_sae, role):
    receiver = prepare_patch(exact_model, make_sae("L2.mlp_out"), make_runs(), role=role)
    width = exact_model.network.config.intermediate_size
    pushes, ids = _neurons_by_effect(receiver, 2, 3, width)
    assert sorted(ids.tolist()) == list(range(width))
    torch.testing.assert_close(pushes.sum(dim=1), receiver.everything, rtol=1e-3, atol=1e-3)
    few, some = _neurons_by_effect(receiver, 2, 3, 3)
    assert some.tolist() == ids[:3].tolist() and few.shape == (8, 3, exact_model.d_model)


def test_there_are_no_sets_of_neurons_that_write_through_a_norm(
    exact_model, make_runs, make_sae, monkeypatch
):
    receiver = prepare_patch(exact_model, make_sae(), same(make_runs()), donor_value="instance")
    effects = single_effects(receiver, receiver.differing)
    assert NEURONS in set(patch_sets(receiver, effects)["kind"])
    monkeypatch.setattr(Adapter, "neurons_normed", True)
    assert set(patch_sets(receiver, effects)["kind"]) == {ALL, "difference of means", FULL}


def test_which_mlp_writes_last_into_a_site():
    expected = {"resid_pre": 2, "resid_mid": 2, "resid_post": 3, "mlp_out": 3, "attn_out": None}
    assert {hook: writer(Site(3, hook)) for hook in expected} == expected
    assert writer(Site(0, "resid_pre")) is None


def test_random_sets_hold_no_member_and_go_as_far(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), make_runs())
    ids = receiver.differing[:4]
    seen: list[torch.Tensor] = []

    def caught(prompts: np.ndarray, deltas: Iterable[torch.Tensor]) -> list[np.ndarray]:
        seen.extend(deltas)
        return [np.zeros((7, len(receiver.beliefs)))] * len(prompts)

    watched = replace(receiver)
    object.__setattr__(watched, "effects_of", caught)
    one = Members(OWN, ids, 4, receiver.joint(ids))
    random_sets(watched, one, 7, np.random.default_rng(0))
    assert len(seen) == len(receiver.test)
    for i, delta in zip(receiver.test.tolist(), seen, strict=True):
        torch.testing.assert_close(delta.norm(dim=1), one.delta[i].norm().expand(7), rtol=1e-4, atol=1e-4)
    drawn = np.stack([_distinct([np.arange(9)] * 5, np.random.default_rng(i)) for i in range(20)])
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    among: list[set[int]] = []

    def directions(latents: np.ndarray) -> torch.Tensor:
        among.append(set(np.asarray(latents).tolist()))
        return receiver.directions(latents)

    object.__setattr__(watched, "directions", directions)
    random_sets(watched, one, 7, np.random.default_rng(1))
    assert among[0] == set(ids.tolist()) and len(among[1]) > 4 and not among[1] & set(ids.tolist())
    only = replace(
        receiver, density=np.where(np.isin(np.arange(receiver.sae.d_sae), ids), receiver.density, 0)
    )
    assert random_sets(only, one, 7, np.random.default_rng(0)).shape == (0, len(receiver.beliefs))


def test_planted_sets_add_up_and_the_greedy_order_finds_the_causal_latents_first(tiny_model):
    for case in (plant(tiny_model, seed) for seed in range(6)):
        receiver = prepare_patch(case.model, case.sae, planted_runs(case.model))
        effects = single_effects(receiver, receiver.differing)
        table = patch_sets(receiver, effects, chosen_for=case.belief, n_controls=20)
        rows = of(table, GREEDY, belief=case.belief)
        causal = set(np.flatnonzero(case.share).tolist())
        for size, members, share in zip(rows["size"], rows["members"], rows["share_of_full"], strict=True):
            ids = [int(i) for i in str(members).split()]
            assert len(ids) == size and (set(ids) <= causal or causal <= set(ids))
            assert share == pytest.approx(case.share[ids].sum(), abs=BIAS)
        whole = rows.where(rows["size"] == rows["size"].max())
        assert whole["control_high"][0] < whole["share_of_full"][0]
        assert whole["control_p"][0] == pytest.approx(1 / 21)
        for kind in (ALL, FULL):
            share = of(table, kind, belief=case.belief)["share_of_full"][0]
            assert share == pytest.approx(1, abs=BIAS)
        screened = linear_screen(receiver, receiver.differing, effects)
        linear = screened.where(screened["belief"] == case.belief)
        assert linear["r2"][0] > 0.98 and linear["slope"][0] == pytest.approx(1, abs=0.1)


def test_a_donor_that_is_the_recipient_moves_nothing(exact_model, make_runs, make_sae):
    receiver = prepare_patch(exact_model, make_sae(), same(make_runs()), donor_value="instance")
    table = patch_sets(receiver, single_effects(receiver, receiver.differing))
    assert set(table["kind"]) == {"all latents", NEURONS, "difference of means", FULL}
    assert (np.abs(table["effect"]) < 1e-5).all()
    assert all("less than 1 nat" in reason for reason in table["reason"])
    screened = linear_screen(receiver, receiver.differing, single_effects(receiver, receiver.differing))
    assert set(screened["reason"]) == {"no latent differs"}


PUSH = 1e-5
"""The model is in float64; what is added is a float32 of the SAE."""


def effect(table: ControlTable, latents: str, control: str, belief: str = "exact") -> float:
    rows = (table["latents"] == latents) & (table["control"] == control) & (table["belief"] == belief)
    (found,) = table["effect"][rows]
    return float(found)


def test_controls_are_what_their_names_say(exact_model, make_runs, make_sae):
    runs = replace(make_runs(n_prompts=12), declared=(parse_belief("against:3x"),))
    receiver = prepare_patch(exact_model, make_sae(), runs)
    one, pair = receiver.differing[:1], receiver.differing[1:3]
    table = patch_controls(
        receiver, [one, pair], wrong=make_runs(n_prompts=12, task="4x+5"), roles=("x", "comma")
    )
    name = str(one[0])
    both = f"{pair[0]} {pair[1]}"
    controls = {"own", "sign flip", "wrong role x", "wrong role comma", "wrong task 4x+5"}
    assert set(table["control"]) == controls
    own = single_effects(receiver, one)[receiver.test].mean(axis=0)[0]
    for b, belief in enumerate(receiver.beliefs):
        assert effect(table, name, "own", belief) == pytest.approx(own[b], abs=PUSH)
    assert receiver.beliefs[-1] == "against:3x"
    flipped = np.mean(
        [receiver.effects(int(i), -receiver.joint(pair)[int(i)][None])[0, 3] for i in receiver.test]
    )
    assert effect(table, both, "sign flip") == pytest.approx(flipped, abs=PUSH)
    where = np.array([position("x", runs.recipient.n_examples - 1)])
    edit = Edit(receiver.sae.site, "add", where, receiver.joint(pair)[:, None].numpy())
    after = receiver.reader.log_odds(query_answers(exact_model, runs.recipient, receiver.words, [edit]))
    wanted = (after - receiver.base)[receiver.test].mean(axis=0)
    for b, belief in enumerate(receiver.beliefs):
        assert effect(table, both, "wrong role x", belief) == pytest.approx(wanted[b], abs=PUSH)
    assert effect(table, both, "wrong role x") != pytest.approx(effect(table, both, "own"), abs=1e-3)


def test_values_of_the_same_task_are_its_own_and_of_another_are_not(exact_model, make_runs, make_sae):
    runs = make_runs(n_prompts=12)
    receiver = prepare_patch(exact_model, make_sae(), runs)
    groups = [receiver.differing]
    name = " ".join(str(f) for f in receiver.differing)
    alike = patch_controls(receiver, groups, wrong=runs, roles=())
    assert effect(alike, name, "wrong task 2x+3") == pytest.approx(effect(alike, name, "own"), abs=PUSH)
    other = patch_controls(receiver, groups, wrong=make_runs(n_prompts=12, task="x+7"), roles=())
    assert effect(other, name, "wrong task x+7") != pytest.approx(effect(other, name, "own"), abs=1e-3)


def test_controls_that_cannot_be_made_are_one_line(tiny_model, make_runs, make_sae):
    receiver = prepare_patch(tiny_model, make_sae(), make_runs())
    needed = prepare_patch(tiny_model, make_sae(), make_runs(), direction="necessity")
    groups = [receiver.differing[:1]]
    for into, given, error, said in (
        (receiver, {"wrong": make_runs(n_prompts=7)}, EditError, "other queries"),
        (receiver, {"roles": ("coma",)}, SiteError, "Nearest: comma"),
        (needed, {"wrong": make_runs()}, EditError, "direction='sufficiency'"),
    ):
        with pytest.raises(error, match=said):
            patch_controls(into, groups, **given)
    with pytest.raises(EditError, match="Give a list of lists"):
        patch_controls(receiver, receiver.differing[:1])
