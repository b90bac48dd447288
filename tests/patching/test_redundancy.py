"""Delay, backup and the ladder: told apart where they were planted, and decided as defined where made up."""

from dataclasses import replace

import numpy as np
import pytest

from iclens.core import BELIEFS, EditError
from iclens.model.load import LanguageModel
from iclens.patching.heads import (
    ABLATED,
    GIVEN,
    HEADS_GIVEN,
    LATER,
    LATER_HEADS,
    WHOLE_LAYER,
    Ablation,
    DirectEffects,
    ablate_heads,
    ablation_edits,
)
from iclens.patching.redundancy import (
    SATURATED,
    WORKS,
    Arrival,
    arrival,
    control_sets,
    first_layer,
    iterative_ablation,
    judge,
    redundancy_index,
    verdict,
)
from iclens.patching.runs import ZERO, Runs
from iclens.schemas import RedundancyLadderTable
from iclens.stats import prompt_weights

from .planted_heads import BELIEF, KINDS, Planted, build, plant, plant_causal, plant_chain
from .planted_latents import planted_runs

BIAS, SEEDS = 0.05, 8


@pytest.fixture(scope="module")
def runs(tiny_model):
    return planted_runs(tiny_model)


def first(ne: np.ndarray) -> float:
    return float(np.argmax(ne >= 0.5)) if (ne >= 0.5).any() else np.nan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_delay_and_backup_are_told_apart(tiny_model, runs, kind, seed):
    planted = plant(kind, seed)
    model, ablation = build(planted, tiny_model.tokenizer), Ablation(planted.ablated)
    found = judge(model, runs, ablation, belief=BELIEF, draws=200)
    assert found.name == kind, found
    weights = prompt_weights(12, 100, np.random.default_rng(0))
    for edits, ablated in (((), ()), (ablation_edits(model, runs, ablation), planted.ablated)):
        swept, true = arrival(model, runs, BELIEF, edits), planted.normalised(runs, ablated)
        np.testing.assert_allclose(swept.normalised(weights).value, true, atol=BIAS)
        assert first_layer(swept, weights).value == first(true)


def test_where_nothing_is_left_no_layer_works(tiny_model, runs):
    planted = plant_chain(0, n_writers=1)
    model = build(planted, tiny_model.tokenizer)
    found = judge(model, runs, Ablation(planted.ablated), belief=BELIEF, draws=100)
    assert (found.name, found.reason) == ("neither", "no layer works any more")


@pytest.mark.parametrize("seed", range(10))
def test_the_index_is_what_was_planted(tiny_model, runs, seed):
    """Without rivals log-odds are linear and effects add up; with them the heads hide each other's loss."""
    planted = plant_causal(seed)
    model = build(planted, tiny_model.tokenizer)
    table = redundancy_index(model, runs, Ablation(planted.ablated), beliefs=[BELIEF], draws=200)
    joint = planted.total(runs, planted.ablated).mean()
    singles = sum(planted.total(runs, (head,)).mean() for head in planted.ablated)
    assert table["joint"][0] == pytest.approx(joint, rel=BIAS, abs=0.01)
    assert table["singles"][0] == pytest.approx(singles, rel=BIAS, abs=0.01)
    assert table["index"][0] == pytest.approx(joint - singles, abs=BIAS * abs(joint))
    assert table["index"][0] == pytest.approx(table["joint"][0] - table["singles"][0])
    spans = (planted.log_odds(planted.run(prompts).end) for prompts in (runs.target, runs.recipient))
    assert table["span"][0] == pytest.approx(-np.diff([s.mean() for s in spans])[0], rel=BIAS)
    assert table["index_low"][0] - 1e-9 <= table["index"][0] <= table["index_high"][0] + 1e-9
    if planted.n_rivals:
        assert table["index_high"][0] < 0
    else:
        assert abs(table["index"][0]) < BIAS * abs(joint)


def test_a_set_of_one_has_no_index(tiny_model, make_runs):
    runs = make_runs(ZERO)
    table = redundancy_index(tiny_model, runs, Ablation.parse("L2"), draws=50)
    np.testing.assert_allclose(table["index"], 0, atol=1e-12)
    heads = ablate_heads(tiny_model, runs, layers=[2], draws=50)
    whole = heads.where((heads["head"] == WHOLE_LAYER) & (heads["scale"] == "nats"))
    np.testing.assert_allclose(table["joint"], whole["effect"], atol=1e-9)
    assert list(table["belief"]) == list(BELIEFS) and list(table["n_units"]) == [1] * len(BELIEFS)


def test_a_chain_saturates(tiny_model, make_runs):
    runs = make_runs(ZERO, donor_examples=12)
    table = redundancy_index(tiny_model, runs, Ablation.parse("L2 L3"), beliefs=["exact"], draws=50)
    assert table["reason"][0] == SATURATED and table["index_low"][0] > 0
    assert table["singles"][0] < -table["span"][0] < -5


def test_an_undefined_belief_has_no_index(tiny_model, make_runs):
    table = redundancy_index(tiny_model, make_runs(ZERO, task="x%7"), Ablation.parse("L2"))
    double = table.where(table["belief"] == "double")
    assert np.isnan(double["index"][0]) and double["reason"][0] == "undefined for this task"


def swept(first_works: list[int], n_layers: int = 5) -> Arrival:
    """Prompts that each work from a layer on (never, where it is none); one nat of a span of two before."""
    layers = np.arange(n_layers)
    effect = np.array([[2.0 if layer >= start else 0.2 for layer in layers] for start in first_works])
    return Arrival(layers, effect, np.full(len(first_works), 2.0), effect, effect)


def test_the_first_layer_and_its_interval():
    weights = prompt_weights(8, 500, np.random.default_rng(0))
    sure = first_layer(swept([2] * 8), weights)
    assert (sure.value, sure.low, sure.high, sure.reason) == (2, 2, 2, "")
    mixed = first_layer(swept([1, 1, 1, 1, 1, 3, 3, 3]), weights)
    assert mixed.value == 1 and mixed.low == 1 and mixed.high == 3
    never = first_layer(swept([9] * 8), weights)
    assert np.isnan([never.value, never.low, never.high]).all() and never.reason == "no layer works"
    at_times = first_layer(swept([2, 2, 2, 2, 9, 9, 9, 9]), weights)
    assert at_times.value == 2 and at_times.low == 2 and np.isnan(at_times.high)
    short = replace(swept([2] * 8), span=np.full(8, 0.5))
    assert "less than 1 nat" in first_layer(short, weights).reason


def effects(
    direct: float, heads: float, later: float, spread: float = 0.1, given: tuple[float, float] = (0.0, 0.0)
) -> DirectEffects:
    """Made-up direct effects of 8 prompts, the same on every belief."""
    noise = spread * np.linspace(-1, 1, 8)[:, None]
    parts = {ABLATED: direct, LATER_HEADS: heads, LATER: later, HEADS_GIVEN: given[0], GIVEN: given[1]}
    sums = {name: np.tile(value + noise, (1, len(BELIEFS))) for name, value in parts.items()}
    return DirectEffects(np.zeros((8, len(BELIEFS))), sums, (), np.zeros((8, 0, len(BELIEFS))))


@pytest.mark.parametrize(
    ("ablated_from", "direct", "heads", "later", "name", "said"),
    [
        (4, -5.0, 0.0, 0.0, "delay", ""),
        (4, -5.0, -3.0, -4.0, "delay", ""),
        (2, -5.0, 2.0, 2.0, "backup", ""),
        (4, -5.0, 2.0, 2.0, "both", ""),
        (2, -5.0, 0.0, 3.0, "neither", ""),
        (9, -5.0, 0.0, 0.0, "neither", "no layer works any more"),
        (9, -5.0, 2.0, 2.0, "backup", "no layer works any more"),
        (4, -5.0, 0.9, 0.9, "delay", ""),  # a rise below a fifth of the loss
        (4, -5.0, 0.0, 2.0, "neither", "later MLPs rise"),
        (4, -0.5, 0.1, 0.1, "delay", ""),  # too small a rise to be a backup of anything
        (4, -0.5, 0.8, 0.8, "undecided", "too small"),
        (4, 0.0, 0.0, 0.8, "undecided", "later MLPs rise"),
        (4, 5.0, 2.0, 2.0, "delay", ""),  # the ablated heads worked against the task: nothing is given back
    ],
)
def test_verdicts_follow_their_definitions(ablated_from, direct, heads, later, name, said):
    weights = prompt_weights(8, 300, np.random.default_rng(0))
    intact, ablated = (first_layer(swept([start] * 8), weights) for start in (2, ablated_from))
    found = verdict(intact, ablated, effects(direct, heads, later), 3, weights)
    assert found.name == name and said in found.reason


def test_a_rise_that_only_shows_given_the_loss_is_a_backup():
    weights = prompt_weights(8, 300, np.random.default_rng(0))
    intact, ablated = (first_layer(swept([start] * 8), weights) for start in (2, 4))
    hidden = effects(-5.0, 0.3, 0.3, given=(4.0, 4.0))
    assert verdict(intact, ablated, hidden, 3, weights).name == "both"
    by_mlps = effects(-5.0, 0.0, 0.0, given=(0.0, 4.0))
    assert "later MLPs rise" in verdict(intact, ablated, by_mlps, 3, weights).reason


def test_a_rise_or_a_shift_must_be_sure():
    weights = prompt_weights(8, 300, np.random.default_rng(0))
    intact = first_layer(swept([2] * 8), weights)
    wide = effects(-5.0, 1.5, 1.5, spread=6.0)
    assert verdict(intact, intact, wide, 3, weights).name == "neither"
    unsure = first_layer(swept([2, 2, 2, 4, 4, 4, 4, 4]), weights)
    found = verdict(intact, unsure, effects(-5.0, 0.0, 0.0), 3, weights)
    assert unsure.value == 4 and found.name == "neither" and "includes 0" in found.reason
    absent = first_layer(swept([9] * 8), weights)
    assert "intact" in verdict(absent, intact, effects(-5.0, 0.0, 0.0), 3, weights).reason


def climb(planted: Planted, tiny_model: LanguageModel, runs: Runs, **asked: object) -> RedundancyLadderTable:
    model = build(planted, tiny_model.tokenizer)
    return iterative_ablation(model, runs, belief=BELIEF, draws=100, n_controls=3, **asked)  # pyright: ignore


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("unit", ["layer", "heads"])
def test_the_ladder_climbs_the_planted_heads(tiny_model, runs, seed, unit):
    planted = plant_chain(seed)
    table = climb(planted, tiny_model, runs, unit=unit, n_heads=1)
    places = [(head.layer, head.head) for head in planted.heads]
    assert list(table["added"]) == ["", *(f"L{i}" if unit == "layer" else f"L{i}H{h}" for i, h in places)]
    firsts = [first(planted.normalised(runs, tuple(places[:step]))) for step in range(4)]
    np.testing.assert_array_equal(table["first_layer"], firsts)
    assert list(table["verdict"]) == ["", "delay", "delay", "neither"]
    assert table["reason"][-1] == "no layer works any more" and list(table["step"]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(table["before_layer"][1:], table["first_layer"][:-1])
    assert (table["ne"][:-1] >= WORKS).all() and (table["ne_before"][1:] < 0.2).all()
    for step in range(4):
        donor = planted.log_odds(planted.run(runs.donor, tuple(places[:step])).end)
        assert table["donor"][step] == pytest.approx((1 / (1 + np.exp(-donor))).mean() / 1000, rel=0.05)


def test_controls_leave_what_the_ladder_takes(tiny_model, runs):
    table = climb(plant_chain(1), tiny_model, runs, unit="heads", n_heads=1)
    assert (table["n_controls"][1:] == 3).all() and table["n_controls"][0] == 0
    assert (table["control_ne_least"][1:] > 0.8).all() and (table["ne_before"][1:] < 0.2).all()
    assert (table["control_moved"][1:] == 0).all()


def test_the_ladder_starts_where_it_is_told_and_stops_in_time(tiny_model, runs):
    planted = plant_chain(2)
    start = ((planted.heads[1].layer, WHOLE_LAYER), (planted.heads[0].layer, planted.heads[0].head))
    table = climb(planted, tiny_model, runs, start=start, max_steps=1)
    assert list(table["step"]) == [0, 1] and table["ablated"][1] == Ablation(start).text
    assert (
        "stopped after 1 steps" in table["reason"][1]
        and table["first_layer"][1] == planted.heads[2].layer + 1
    )


def test_without_a_task_there_is_nothing_to_climb(tiny_model, runs):
    table = climb(plant_chain(0, n_writers=0), tiny_model, runs)
    assert len(table) == 1 and np.isnan(table["first_layer"][0]) and "nat" in table["reason"][0]


def test_control_sets_are_others_of_the_same_layers(tiny_model):
    rng = np.random.default_rng(0)
    heads = ((2, 0), (2, 3), (4, 1))
    for some in control_sets(tiny_model, heads, 4, rng):
        assert sorted(layer for layer, _ in some) == [2, 2, 4] and not set(some) & set(heads)
    assert len(control_sets(tiny_model, heads, 10, rng)) == 3  # two left of block 2, three of block 4
    layers = control_sets(tiny_model, ((1, WHOLE_LAYER), (2, WHOLE_LAYER)), 5, rng)
    assert len(set(layers)) == 5 and all({i for i, _ in some} <= {0, 3, 4, 5} for some in layers)
    assert control_sets(tiny_model, ((2, 0), (2, 1), (2, 2)), 3, rng) == []
    assert control_sets(tiny_model, tuple((i, WHOLE_LAYER) for i in range(4)), 3, rng) == []


def test_what_cannot_be_climbed_is_one_line(tiny_model, make_runs):
    runs = make_runs(ZERO)
    for asked, said in (
        ({"unit": "mlp"}, "One of layer, heads"),
        ({"kind": "noise"}, "One of zero, mean, resample"),
        ({"kind": "mean"}, "as many recipient_examples"),
        ({"place": "lab"}, "One of pre, all positions"),
        ({"belief": "even"}, "Nearest"),
        ({"n_heads": 0}, "n_heads and max_steps of 1 or more"),
        ({"start": ((2, 9),)}, "it has 4 heads"),
    ):
        with pytest.raises(EditError, match=said):
            iterative_ablation(tiny_model, runs, draws=20, n_controls=1, **asked)


def test_a_head_beside_its_whole_layer_is_refused(tiny_model, make_runs):
    with pytest.raises(EditError, match="layer 2 stands there whole and in part"):
        redundancy_index(tiny_model, make_runs("S arm"), Ablation.parse("L2 L2H1"))
