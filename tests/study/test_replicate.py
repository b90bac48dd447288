"""Verdicts follow tolerances; a model of the recorded shape runs the recorded protocol, others their own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import iclens.study.inputs
from iclens.core import ConfigError, ModelError, RunError, Site, TokenizerError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import answer_probs, record
from iclens.model.tail import tails_of
from iclens.patching.heads import WHOLE_LAYER, heads_by_layer
from iclens.seed_post.observe import (
    EVERYWHERE,
    ablation_edits,
    donors_of,
    mean_outputs,
    patched_tops,
    random_like,
    read_lens,
    run_donor,
    swept_probs,
    swept_tops,
)
from iclens.seed_post.protocol import (
    Observations,
    brightest,
    context_x,
    derived_protocol,
    encoded,
    recorded,
    without_task,
)
from iclens.seed_post.verdicts import Replication, check_table, pearson, replicate_seed_post, replicated

TINY = iclens.study.inputs.CHECKOUT / "checkpoints" / "icl-tiny"
SOURCE = recorded()
TARGETS = SOURCE.targets


def quiet(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def tiny_model() -> LanguageModel:
    return load_model(TINY)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the recorded shape with random weights, and widths as small as they get."""
    folder = tmp_path_factory.mktemp("alike") / "model"
    torch.manual_seed(0)
    vocabulary = len(load_model(TINY, blocks=1).tokenizer)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=32, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=2, max_position_embeddings=128,
        initializer_range=0.5, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def on_alike(alike: Path, tmp_path_factory: pytest.TempPathFactory) -> Replication:
    return replicate_seed_post(str(alike), out=tmp_path_factory.mktemp("out") / "replication")


def verdicts(ours: Observations, dtype: str = "float32") -> dict[str, str]:
    table = check_table(ours, SOURCE, SOURCE.protocol, TARGETS, dtype)
    return dict(zip(table["check"], table["verdict"], strict=True))


def differing(ours: Observations, dtype: str = "float32") -> set[str]:
    return {check for check, verdict in verdicts(ours, dtype).items() if verdict == "differs"}


def test_the_record_is_what_the_observations_say() -> None:
    """Counts and values that the observations state in words."""
    lengths = {name: 1 + len(prompt.tokens) for name, prompt in SOURCE.prompts.items()}
    assert (lengths["lens"], lengths["sweep donor"], lengths["attention"]) == (86, 78, 84)
    assert (lengths["x donor"], lengths["x recipient"], lengths["sweep recipient"]) == (98, 7, 5)
    table = check_table(TARGETS, SOURCE, SOURCE.protocol, TARGETS, "float32")
    target = dict(zip(table["check"], table["target"], strict=True))
    assert target["resid_pre 15: top-1 is 2x, of 99 x"] == "78"
    assert target["resid_pre 15: 2x in the top 5, of 99 x"] == "98"
    assert target["resid_pre 15: 2x+3 in the top 5, of 99 x"] == "18"
    firsts = [target[f"{name}: first layer whose patch gives 30"] for name in SOURCE.protocol.ablations]
    assert firsts == ["12", "14", "16", "none"]
    assert [target[key] for key in target if key.startswith("first block")] == ["19", "20", "21"]
    assert target["5 heads, ref 15: ablated heads with score 0"] == "5"
    assert target["L10+11+13+15, ref 16: ablated heads with score 0"] == "128"
    assert set(next(iter(SOURCE.protocol.ablations.values()))) == set(
        brightest(TARGETS.maps["intact, ref 15"], 5)
    )
    pattern = TARGETS.attention
    labels = [i for i in range(6, 83, 6)]
    assert len(labels) == 13 and pattern[25, -1, labels].sum() == pytest.approx(0.6831, abs=1e-4)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-4)


def test_the_record_agrees_with_itself() -> None:
    found = verdicts(TARGETS)
    assert set(found.values()) == {"agrees"} and len(found) > 35


def changed_sweep(name: str, layers: int) -> Observations:
    rows = [("0", *row[1:]) if i < layers else row for i, row in enumerate(TARGETS.sweeps[name])]
    return replace(TARGETS, sweeps={**TARGETS.sweeps, name: tuple(rows)})


def test_a_sweep_may_miss_three_layers() -> None:
    check = "L10+11: top-1 as recorded, of 32 layers"
    assert check not in differing(changed_sweep("L10+11", 3))
    assert differing(changed_sweep("L10+11", 4)) == {check}
    assert "L10+11: first layer whose patch gives 30" in differing(changed_sweep("L10+11", 15))


def test_a_donors_order_counts() -> None:
    top = TARGETS.donors["5 heads"]
    swapped = replace(TARGETS, donors={**TARGETS.donors, "5 heads": (top[1], top[0], *top[2:])})
    assert differing(swapped) == {"5 heads: the donor's own top 5"}


def test_the_patch_over_x_may_miss_five() -> None:
    check = "resid_pre 15: top-1 as recorded, of 99 x"
    wrong = [i for i, row in enumerate(TARGETS.x) if row[0] == str(2 * (i + 1) + 1)]

    def missing(count: int) -> Observations:
        rows = [("no", *row[1:]) if i in wrong[:count] else row for i, row in enumerate(TARGETS.x)]
        return replace(TARGETS, x=tuple(rows))

    assert differing(missing(5)) == set() and differing(missing(6)) == {check}
    exact = replace(TARGETS, x=tuple((str(2 * x + 3), "a", "b", "c", "d") for x in range(1, 100)))
    assert len(differing(exact)) == 5


@pytest.mark.parametrize(
    ("layer", "tops", "expected"),
    [(27, ("85", "87"), 0), (27, ("89", "87"), 1), (26, ("85", "87"), 1), (5, ("85", "87"), 0)],
)
def test_only_the_near_tie_may_swap(layer: int, tops: tuple[str, ...], expected: int) -> None:
    lens = TARGETS.lens
    top = tuple((*tops, *row[2:]) if i == layer else row for i, row in enumerate(lens.top))
    found = differing(replace(TARGETS, lens=replace(lens, top=top)))
    assert len([check for check in found if check.startswith("full-vocabulary")]) == expected


def test_lens_shares_have_two_tolerances() -> None:
    lens = TARGETS.lens

    def moved(layer: int, by: float) -> set[str]:
        share = tuple(value + by if i == layer else value for i, value in enumerate(lens.answer_share))
        return differing(replace(TARGETS, lens=replace(lens, answer_share=share)))

    assert not moved(3, 0.0019) and len(moved(3, 0.0021)) == 1
    assert not moved(28, 0.005) and len(moved(28, 0.007)) == 1
    prob = (*lens.prob[:-1], (lens.prob[-1][0] * 1.03, *lens.prob[-1][1:]))
    assert differing(replace(TARGETS, lens=replace(lens, prob=prob))) == {"last block, P(89)"}
    numbers = (*lens.numbers[:-1], ("1", *lens.numbers[-1][1:]))
    assert len(differing(replace(TARGETS, lens=replace(lens, numbers=numbers)))) == 1


def test_maps_are_compared_up_to_a_factor() -> None:
    name, rng = "intact, ref 15", np.random.default_rng(0)
    scaled = replace(TARGETS, maps={**TARGETS.maps, name: 3 * TARGETS.maps[name]})
    assert differing(scaled) == set()
    shuffled = rng.permutation(TARGETS.maps[name].ravel()).reshape(16, 32)
    found = differing(replace(TARGETS, maps={**TARGETS.maps, name: shuffled}))
    assert found == {f"{name}: Pearson r", f"{name}: brightest heads"}
    lit = TARGETS.maps["5 heads, ref 15"].copy()
    lit[10, 5] = 1e-6
    assert differing(replace(TARGETS, maps={**TARGETS.maps, "5 heads, ref 15": lit})) == {
        "5 heads, ref 15: ablated heads with score 0"
    }
    assert pearson(np.zeros((2, 2)), np.eye(2)) == 0


def test_attention_has_a_tolerance_for_each_dtype() -> None:
    moved = TARGETS.attention.copy()
    moved[3, 50, 7] += 0.01
    ours = replace(TARGETS, attention=moved)
    assert len(differing(ours)) == 1 and not differing(ours, "bfloat16")


def test_positions_are_the_recorded_tokens(tiny_model: LanguageModel) -> None:
    for prompt in SOURCE.prompts.values():
        ids = encoded(tiny_model.tokenizer, prompt, 17)
        assert tiny_model.tokenizer.decode([int(ids[-1])]) == " "
        assert len(ids) == 2 + len(prompt.tokens) + prompt.read
    assert len(encoded(tiny_model.tokenizer, SOURCE.prompts["sweep donor"])) == 78


@pytest.mark.parametrize("change", ["joins", "no BOS", "one more"])
def test_a_tokenizer_that_splits_otherwise_is_refused(tiny_model: LanguageModel, change: str) -> None:
    class Other:
        bos_token_id = None if change == "no BOS" else tiny_model.tokenizer.bos_token_id

        def __call__(self, text: str, **_options: bool) -> object:
            class Encoding:
                input_ids = tiny_model.tokenizer(text, add_special_tokens=False).input_ids

            if change == "joins":
                Encoding.input_ids = [*Encoding.input_ids[:4], *Encoding.input_ids[5:]]
            elif change == "one more":
                Encoding.input_ids = [*Encoding.input_ids, 3]
            return Encoding

        def decode(self, ids: list[int]) -> str:
            return tiny_model.tokenizer.decode(ids)

    wanted = {
        "joins": "token 5 is '59' in place of ' '",
        "no BOS": "no BOS token",
        "one more": "79 tokens",
    }
    with pytest.raises(TokenizerError, match=wanted[change]) as caught:
        encoded(Other(), SOURCE.prompts["sweep donor"])
    assert "\n" not in str(caught.value)


def test_prompts_without_the_task_move_every_label(tiny_model: LanguageModel) -> None:
    prompt = SOURCE.prompts["sweep donor"]
    tokens = encoded(tiny_model.tokenizer, prompt)
    rows = without_task(prompt, tokens, 8, np.random.default_rng(0))
    labels = np.arange(6, 78, 6)
    assert (rows[:, labels] != tokens[labels]).all() and len({tuple(row) for row in rows}) == 8
    others = np.setdiff1d(np.arange(78), labels)
    assert (rows[:, others] == tokens[others]).all()
    assert all(sorted(row[labels]) == sorted(tokens[labels]) for row in rows)
    assert context_x(prompt) == {28, 86, 13, 55, 84, 66, 85, 27, 15, 94, 37, 14, 42}


def test_patches_equal_the_tail_engine_and_plain_forward(tiny_model: LanguageModel) -> None:
    donor = encoded(tiny_model.tokenizer, SOURCE.prompts["sweep donor"])
    recipient = encoded(tiny_model.tokenizer, SOURCE.prompts["sweep recipient"])
    run = run_donor(tiny_model, donor)
    probs = swept_probs(tails_of(tiny_model, recipient[None])[0], [run, run])
    tops = swept_tops(tiny_model, recipient, [run])[0]
    assert probs.shape == (2, 6, 1000) and tops.shape == (6, 5)
    for layer in range(6):
        best = next(token for token in tops[layer] if token.isdigit())
        assert probs[0, layer].argmax() == int(best)
    plain = answer_probs(tiny_model, recipient[None], np.array([4]))
    np.testing.assert_allclose(probs[0, 0], plain.numbers[0, 0], atol=1e-5)
    assert patched_tops(tiny_model, recipient[None], run.resid[:1], 0)[0].tolist() == tops[0].tolist()
    assert run.top[0] == plain_top(tiny_model, donor) and run.resid.shape == (7, 128)


def plain_top(model: LanguageModel, tokens: np.ndarray) -> str:
    with torch.no_grad():
        logits = model.network(torch.as_tensor(tokens)[None]).logits[0, -1]
    return model.tokenizer.decode([int(logits.argmax())])


def test_the_lens_leaves_out_the_division(tiny_model: LanguageModel) -> None:
    tokens = encoded(tiny_model.tokenizer, SOURCE.prompts["lens"])
    lens = read_lens(tiny_model, tokens, SOURCE.protocol.numbers, "87")
    sites = [Site(layer, "resid_post") for layer in range(6)]
    held = record(tiny_model, tokens[None], sites, np.array([len(tokens) - 1]))
    resid = torch.as_tensor(np.stack([held[site][0, 0] for site in sites]))
    with torch.no_grad():
        weight = tiny_model.network.model.norm.weight * tiny_model.network.lm_head.weight
        logits = (resid @ weight.T).double()
    _, ids = tiny_model.answer_space()
    prob, share = logits.softmax(dim=-1), logits[:, ids[1:205]].softmax(dim=-1)
    np.testing.assert_allclose(lens.prob, prob.topk(5).values, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(lens.answer_share, share[:, 86], rtol=1e-3, atol=1e-12)
    best = [[str(int(i) + 1) for i in row] for row in logits[:, ids[1:205]].topk(5).indices]
    assert [list(row) for row in lens.numbers[-2:]] == best[-2:]
    assert lens.top[-1][0] == plain_top(tiny_model, tokens) and len(lens.digits) == 6


def test_ablations_stand_where_they_say(tiny_model: LanguageModel) -> None:
    prompt = SOURCE.prompts["sweep donor"]
    tokens = encoded(tiny_model.tokenizer, prompt)
    heads = ((1, 2), (3, WHOLE_LAYER))
    sites = [Site(1, "z"), Site(3, "z")]
    plain = record(tiny_model, tokens[None], sites, np.arange(78))
    last = record(tiny_model, tokens[None], sites, np.arange(78), edits=ablation_edits(tiny_model, heads, 78))
    assert not last[sites[0]][0, -1, 64:96].any() and not last[sites[1]][0, -1].any()
    np.testing.assert_array_equal(last[sites[0]][0, :-1], plain[sites[0]][0, :-1])
    np.testing.assert_array_equal(last[sites[0]][0, -1, :64], plain[sites[0]][0, -1, :64])
    averages = mean_outputs(tiny_model, without_task(prompt, tokens, 4, np.random.default_rng(0)), (1, 3))
    edits = ablation_edits(tiny_model, heads, 78, place=EVERYWHERE, averages=averages)
    held = record(tiny_model, tokens[None], sites, np.arange(78), edits=edits)
    np.testing.assert_allclose(held[sites[0]][0, :, 64:96], averages[1][:, 64:96], atol=1e-6)
    np.testing.assert_allclose(held[sites[1]][0], averages[3], atol=1e-6)


def test_random_ones_are_as_many_and_others() -> None:
    rng = np.random.default_rng(0)
    five, _, layers, *_ = SOURCE.protocol.ablations.values()
    drawn = [random_like(five, 32, 16, rng) for _ in range(20)]
    for one in drawn:
        assert one is not None and not set(one) & set(five)
        assert {k: len(v) for k, v in heads_by_layer(one, 32).items()} == {10: 2, 13: 2, 14: 1}
    assert len({*drawn}) > 10
    other = random_like(layers, 32, 16, rng)
    assert other is not None and len(set(other) - set(layers)) == 3 and max(other) < (16, 0)
    assert random_like(((0, WHOLE_LAYER), (1, WHOLE_LAYER)), 4, 3, rng) is None
    assert random_like(((0, 0), (0, 1), (0, 2)), 4, 3, rng) is None
    donors = donors_of(SOURCE.protocol, 32, rng)
    assert len(donors) == 1 + 5 * 4 + 4 * 5 and donors[0].kind == "none"


def test_a_derived_protocol_follows_the_models_own_map(tiny_model: LanguageModel) -> None:
    tokens = encoded(tiny_model.tokenizer, SOURCE.prompts["sweep donor"])
    found = derived_protocol(tiny_model, SOURCE.protocol, SOURCE.blocks, tokens)
    assert (found.patch_layer, found.attention_layer, found.score_layers) == (3, 2, 4)
    (first, *further), layers = found.ablations.values(), []
    assert len(first) == 5 and max(layer for layer, _ in first) < 3
    for layer in sorted({layer for layer, _ in first}):
        layers.append((layer, WHOLE_LAYER))
        assert further[len(layers) - 1] == tuple(layers)
    assert len(further) == len(layers)
    found.check(tiny_model)
    with pytest.raises(ModelError, match="has 6 blocks of 4 heads"):
        SOURCE.protocol.check(tiny_model)


def test_the_recorded_protocol_on_random_weights_mostly_differs(on_alike: Replication) -> None:
    assert on_alike.protocol == "recorded" and set(on_alike.counts()) <= {"agrees", "differs"}
    counts = on_alike.counts()
    assert counts["differs"] > 4 * counts.get("agrees", 0)
    zeros = on_alike.checks.where(on_alike.checks["tolerance"] == "equal")
    lit = {
        check: ours for check, ours in zip(zeros["check"], zeros["ours"], strict=True) if "score 0" in check
    }
    assert sorted(lit.values(), key=int) == ["5", "64", "96", "128"]
    assert set(zeros["verdict"][[("score 0" in check) for check in zeros["check"]]]) == {"agrees"}
    text = on_alike.as_text()
    assert "differs" in text and "intact donor at the recorded x, top-1 by layer" in text
    assert max(map(len, text.splitlines())) < 260


def test_what_the_notebooks_left_out_is_there(on_alike: Replication) -> None:
    donors = on_alike.donors.df
    assert len(donors) == 41 and (donors["draw"] >= 0).sum() == 20
    named = donors[(donors["donor"] == "5 heads") & (donors["heads"] == "named")]
    wanted = [(kind, place) for kind in ("mean", "zero") for place in ("all positions", "last position")]
    assert sorted(zip(named["kind"], named["place"], strict=True)) == wanted
    assert set(donors["n_heads"][donors["donor"] == "5 heads"]) == {5}
    sweeps = on_alike.sweeps
    assert len(sweeps) == 41 * 32 * 6 and set(sweeps["n_x"]) == {18}
    first = sweeps.where((sweeps["layer"] == 0) & (sweeps["metric"] == "P(slope·x)"))
    np.testing.assert_allclose(first["value"], first["value"][0], rtol=1e-3)  # the same token in every donor


def test_the_folder_holds_every_table(on_alike: Replication) -> None:
    folder = on_alike.folder
    assert folder is not None and sorted(path.name for path in folder.parent.iterdir()) == ["replication"]
    held = json.loads((folder / "replication.json").read_text(encoding="utf-8"))
    for name, table in on_alike.tables.items():
        assert len(pd.read_parquet(folder / f"{name}.parquet")) == len(table) == len(held[name]) > 0
    sweep = on_alike.patched.where(on_alike.patched["prompt"] == "sweep donor")
    assert len(sweep) == 5 * 32 and set(sweep["top_target"][sweep["donor"] == ""]) == {""}
    maps = on_alike.maps.df
    same = maps[maps["map"] == "intact, ref 15"]
    assert (same["change"] == 0).all() and maps["score_target"].notna().all()
    assert np.abs(maps["change"][maps["map"] == "5 heads, ref 15"]).max() > 0


def test_another_shape_has_no_targets(tiny_model: LanguageModel) -> None:
    found = replicated(tiny_model, "auto", "float32", 0, quiet)
    assert set(found.counts()) == {"no target"} and set(found.checks["target"]) == {""}
    assert found.maps.df["score_target"].isna().all() and found.protocol.startswith("derived: ")
    again = replicated(tiny_model, "derived", "float32", 0, quiet)
    assert again.as_json() == found.as_json()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"protocol": "own"}, ConfigError, "protocol 'own'"),
        ({"dtype": "float8"}, ConfigError, "dtype 'float8'"),
        ({"protocol": "recorded"}, ModelError, "asks for block 15 and head 27"),
        ({"out": TINY}, RunError, "it exists"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        replicate_seed_post(str(TINY), **options)


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import iclens.seed_post.verdicts as run

    def broken(self: object, path: Path) -> None:
        raise OSError("full")

    found = replicated(load_model(TINY), "auto", "float32", 0, quiet)
    monkeypatch.setattr(run.CheckTable, "save", broken)
    with pytest.raises(OSError, match="full"):
        run.written(found, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
