"""Ablation at a token of every example: against forwards made by hand, and latents planted at `lab`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from iclens.core import BELIEFS, EditError, IclensError, ModelError, SaeError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.patching import specificity as everywhere
from iclens.patching.receiver import belief_log_odds, gather, up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.patching.specificity import ABLATE_ALL, JOINT, Context, ablate_everywhere, specificity, stand_ins
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.schemas import SpecificityTable

from ...conftest import EXACT, InFloat64
from ..conftest import D_SAE, MakeRuns, MakeSae
from .test_specificity import DOUBLE, NUMERIC, ODD, OWN, SILENT, UNREAD, Planted, build, planted_runs, row

CHOSEN = [
    (ODD, "odd", "odd"), (UNREAD, "odd", "candidate"), (NUMERIC, "numeric", "numeric"),
    (DOUBLE, "double", "double"), (ODD, "numeric", "candidate"), (SILENT, "offset", "candidate"),
]  # fmt: skip


def everywhere_row(table: SpecificityTable, latent: int, concept: str, belief: str) -> dict[str, Any]:
    return row(table, latent, concept, belief, ABLATE_ALL)


def runs_of(model: LanguageModel, **settings: Any) -> Runs:
    given: dict[str, Any] = {"n_prompts": 3, "donor_examples": 4, "seed": 7} | settings
    return build_runs(model.tokenizer, parse_task("2x+3"), **given)


def forward(model: LanguageModel, runs: Runs, edits: Sequence[Edit] = ()) -> np.ndarray:
    """Log-odds of A*'s beliefs under edits, [prompt belief]."""
    tokens = up_to_query(runs.target)
    probs = answer_probs(model, tokens, np.array([tokens.shape[1] - 1]), extra=runs.words, edits=edits)
    rows = AnswerProbs(probs.answers, probs.log_prob[:, 0])
    return belief_log_odds(rows, runs, np.arange(len(tokens)))


def recorded(model: LanguageModel, sae: Sae, runs: Runs, where: np.ndarray) -> torch.Tensor:
    """A*'s activations at `where`, [prompt example d_in]."""
    return torch.as_tensor(record(model, up_to_query(runs.target), [sae.site], where)[sae.site])


def silenced(sae: Sae, x: torch.Tensor, latents: Sequence[int]) -> np.ndarray:
    """x [prompt example d_in] as sae_lens decodes it with latents set to 0, its error added back."""
    parts = []
    for example in x.unbind(dim=1):
        error = example - sae.network.decode(sae.network.encode(example))
        values = sae.network.encode(example)
        values[:, list(latents)] = 0
        parts.append(sae.network.decode(values) + error)
    return torch.stack(parts, dim=1).numpy()


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(("site", "role", "n"), [("L1.mlp_out", "lab", 4), ("L2.resid_post", "pre", 5)])
def test_one_prompt_is_a_forward_pass_with_the_latent_silent_at_every_example(
    exact_model: LanguageModel, make_sae: MakeSae, site: str, role: str, n: int, normalised: str
) -> None:
    """No part of ours makes the edit. One latent is active at some of these tokens and silent at others."""
    runs, sae = runs_of(exact_model, n_prompts=1), make_sae(site, normalize_activations=normalised)
    sae.network.W_dec.mul_(1.7)
    where = runs.target.positions(role)[:n]
    x = recorded(exact_model, sae, runs, where)
    count = sum((sae.encode(example)[0] != 0).int() for example in x.unbind(dim=1))
    latents = [int(count.argmax()), int(((count > 0) & (count < n)).nonzero()[0])]
    chosen = [(latent, "odd", "odd") for latent in latents]
    table = ablate_everywhere(exact_model, sae, runs, chosen, OWN, role=role, n_controls=3)
    base = forward(exact_model, runs)[0]
    for latent, members in ((latents[0], latents[:1]), (latents[1], latents[1:]), (JOINT, latents)):
        edit = Edit(sae.site, "resample", where, silenced(sae, x, members))
        wanted = forward(exact_model, runs, [edit])[0] - base
        assert np.abs(wanted).max() > 0.02
        for b, belief in enumerate(BELIEFS):
            found = everywhere_row(table, latent, "odd", belief)
            assert found["effect"] == pytest.approx(wanted[b], abs=1e-4)  # the SAE is in float32
            assert found["base"] == pytest.approx(base[b], abs=EXACT)
            assert found["n_active"] == found["n_prompts"] == 1


@pytest.mark.parametrize("normalised", ["none", "layer_norm"])
def test_controls_are_ablation_like_pushes_as_far_at_each_example(
    exact_model: LanguageModel, make_sae: MakeSae, normalised: str
) -> None:
    """With more controls asked for than are live, they are all live latents that were not chosen."""
    runs, sae = runs_of(exact_model), make_sae("L1.mlp_out", normalize_activations=normalised)
    sae.network.W_dec.mul_(torch.linspace(0.5, 3.0, D_SAE)[:, None])
    where = runs.target.positions("lab")[:4]
    x = recorded(exact_model, sae, runs, where)
    values = torch.stack([sae.encode(example) for example in x.unbind(dim=1)], dim=1)
    latent, other = (int(f) for f in (values != 0).sum(dim=(0, 1)).argsort(descending=True)[:2])
    scale = torch.stack([sae.scale(example) for example in x.unbind(dim=1)], dim=1)
    length = (values[..., latent] * scale * sae.W_dec[latent].norm())[..., None]
    live = np.setdiff1d((values != 0).any(dim=0).any(dim=0).nonzero()[:, 0], [latent, other])
    base = forward(exact_model, runs)
    pushed = []
    for control in live:
        push = -length * sae.W_dec[control] / sae.W_dec[control].norm()
        edit = Edit(sae.site, "add", where, push.numpy())
        pushed.append((forward(exact_model, runs, [edit]) - base).mean(axis=0))
    table = ablate_everywhere(
        exact_model, sae, runs, [(latent, "odd", "odd"), (other, "double", "double")], OWN, role="lab",
        n_controls=1000,
    )  # fmt: skip
    for b, belief in enumerate(BELIEFS):
        found, each = everywhere_row(table, latent, "odd", belief), np.array(pushed)[:, b]
        assert found["n_controls"] == len(live) >= 20
        assert found["control_sd"] == pytest.approx(np.sqrt(np.square(each).mean()), rel=2e-3)
        larger = (np.abs(each) >= abs(found["effect"])).sum()
        assert found["control_p"] == pytest.approx((1 + larger) / (1 + len(live)))


def test_a_set_and_its_controls_are_pushed_as_far_at_each_example(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is in proportion to −a_f · ‖d_f‖ of what it stands in for, and matched over all examples."""
    seen: list[torch.Tensor] = []
    drawn: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []
    given = Context.effects_of

    def watched(self: Context, jobs: Iterable[tuple[int, torch.Tensor]], batch: int) -> Iterator[Any]:
        held = list(jobs)
        seen.extend(rows for _, rows in held)
        return given(self, held, batch)

    def draw(sae: Sae, density: np.ndarray, mean_active: np.ndarray, *others: Any) -> torch.Tensor:
        along = stand_ins(sae, density, mean_active, *others)
        drawn.append((density, mean_active, along))
        return along

    monkeypatch.setattr(Context, "effects_of", watched)
    monkeypatch.setattr(everywhere, "stand_ins", draw)
    runs, sae = make_runs(), make_sae("L1.mlp_out")
    sae.network.W_dec.mul_(torch.linspace(0.5, 3.0, D_SAE)[:, None])
    x = recorded(tiny_model, sae, runs, runs.target.positions("lab")[:4])
    values = sae.encode(x.flatten(0, 1))
    order = values.sum(dim=0).argsort(descending=True)[:3].tolist()
    chosen = [(latent, "odd", "odd") for latent in order]
    table = ablate_everywhere(tiny_model, sae, runs, chosen, OWN, role="lab", n_controls=5)
    active = [table.where(table["latent"] == latent)["n_active"][0] for latent in (*order, JOINT)]
    assert len(seen) == sum(active) and active[-1] == 8
    for rows in seen:
        assert rows.shape == (6, 4, tiny_model.d_model)
        lengths = rows.norm(dim=-1)
        torch.testing.assert_close(lengths, lengths[:1].expand(6, 4), rtol=1e-5, atol=0)
        assert bool((lengths[0] > 0).any())
    for density, mean_active, _ in drawn:
        np.testing.assert_allclose(density, (values != 0).double().mean(dim=0))
        live = density > 0
        sizes = (values * sae.W_dec.norm(dim=1)).sum(dim=0)[live] / (values != 0).sum(dim=0)[live]
        np.testing.assert_allclose(mean_active[live], sizes, rtol=1e-5)
        assert np.isnan(mean_active[~live]).all()
    weights = -values.view(8, 4, D_SAE)[..., order] * sae.W_dec[order].norm(dim=1)
    for i, rows in enumerate(seen[-8:]):
        along = torch.einsum("jm,mcd->cjd", weights[i][:, np.argsort(order).tolist()], drawn[-1][2])
        aligned = torch.nn.functional.cosine_similarity(rows[1:], along, dim=-1)
        torch.testing.assert_close(aligned, torch.ones_like(aligned), rtol=1e-5, atol=0)


def test_in_a_context_of_one_example_it_is_the_ablation_at_one_token(
    exact_model: LanguageModel, make_sae: MakeSae
) -> None:
    runs, sae = runs_of(exact_model, n_prompts=8, donor_examples=1, recipient="R arm"), make_sae("L1.mlp_out")
    for role in ("lab", "close"):
        held = gather(exact_model, sae, runs, direction="necessity", role=role)
        order = held.recipient_latents.mean(dim=0).argsort(descending=True)[:2]
        chosen = [(int(latent), "odd", "odd") for latent in order]
        single = specificity([held], chosen, OWN, ways=["ablate"], n_controls=2)
        table = ablate_everywhere(exact_model, sae, runs, chosen, OWN, role=role, n_controls=2)
        assert table.df[["concept", "label", "latent", "belief", "own"]].equals(
            single.df[["concept", "label", "latent", "belief", "own"]]
        )
        alike = table["belief"] != "copy"  # there about what B's prompts would lend, here about f(x_A)
        for name in ("base", "effect", "ci_low", "ci_high", "margin", "margin_low", "n_active", "n_prompts"):
            np.testing.assert_allclose(table[name][alike], single[name][alike], atol=1e-4)
        assert np.abs(table["effect"]).max() > 0.005
        assert set(table["role"]) == {role} and set(table["way"]) == {ABLATE_ALL}


def carried(like: LanguageModel) -> tuple[Planted, torch.Tensor]:
    """The planted latents, read from the context alone, and how, [3 d_model].

    Block 1 attends evenly and writes what it finds of each read, less about as much as there is before any
    ablation, along three directions that no latent has; the head reads these.
    """
    planted = build(like)
    network, (_, ids) = planted.model.network, planted.model.answer_space()
    even, odd, large = network.lm_head.weight[[int(ids[n]) for n in (0, 1, 999)]]
    reads = torch.stack([odd - even, large + even, odd - large]) / 2
    tokens = up_to_query(planted_runs(planted).target)
    h = torch.as_tensor(record(planted.model, tokens, [planted.sae.site], np.arange(tokens.shape[1]))[
        planted.sae.site
    ])  # fmt: skip
    middle = (h / h.square().mean(dim=-1, keepdim=True).sqrt()).mean(dim=(0, 1))
    reads[:, 0] -= reads @ middle / middle[0]
    free = torch.zeros(3, h.shape[-1])
    free[:, 2:] = torch.linalg.qr(planted.dictionary[:, 2:].T, mode="complete")[0][:, -3:].T
    attention = network.model.layers[1].self_attn
    attention.v_proj.weight.zero_()
    attention.v_proj.weight[:3] = 40 * reads
    attention.o_proj.weight[:, :3] = free.T
    parity, small = torch.arange(1000) % 2 * 2.0 - 1, (torch.arange(1000) < 500) * 2.0 - 1
    network.lm_head.weight[ids] = torch.stack([parity, torch.ones(1000), small], dim=1) @ free
    return planted, 40 * reads.T @ free


@pytest.fixture(scope="module")
def context(tiny_model: LanguageModel, in_float64: InFloat64) -> tuple[Planted, torch.Tensor]:
    planted, carry = carried(tiny_model)
    return replace(planted, model=in_float64(planted.model)), carry


@pytest.fixture(scope="module")
def matrix(context: tuple[Planted, torch.Tensor]) -> SpecificityTable:
    planted = context[0]
    return ablate_everywhere(planted.model, planted.sae, planted_runs(planted), CHOSEN, OWN, role="lab")


def test_planted_causes_are_specific_and_nothing_else_is(matrix: SpecificityTable) -> None:
    for latent, concept in ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double")):
        own = everywhere_row(matrix, latent, concept, concept)
        assert own["own"] and own["specific"] and own["specific_standardised"]
        assert own["effect"] < -0.3 and own["margin_low"] > 0.2
        assert own["n_controls"] == 10 and own["control_p"] == pytest.approx(1 / 11)
    for latent, concept in ((UNREAD, "odd"), (ODD, "numeric")):
        other = everywhere_row(matrix, latent, concept, concept)
        assert not other["specific"] and not other["specific_standardised"]
    assert abs(everywhere_row(matrix, UNREAD, "odd", "odd")["effect"]) < 0.02
    assert everywhere_row(matrix, ODD, "numeric", "numeric")["rival"] == "odd"
    assert matrix["specific"].sum() == 3 + 2  # and those of odd, and of double, moved together


def test_effects_are_those_of_the_planted_model_worked_out_by_hand(
    context: tuple[Planted, torch.Tensor], matrix: SpecificityTable
) -> None:
    """x = h_query + mean over tokens of (h / rms h) carried along; one latent is taken out of h at labs."""
    planted, carry = context
    runs, (_, ids) = planted_runs(planted), planted.model.answer_space()
    tokens, head = up_to_query(runs.target), planted.model.network.lm_head.weight.double().numpy()
    h = record(planted.model, tokens, [planted.sae.site], np.arange(tokens.shape[1]))[planted.sae.site]
    labs = runs.target.positions("lab")[:6]

    def beliefs(held: np.ndarray) -> tuple[float, float]:
        unit = held / np.sqrt(np.square(held).mean(axis=-1, keepdims=True))
        x = h[:, -1] + unit.mean(axis=1) @ carry.double().numpy()
        mass = np.exp(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) @ head.T)
        numbers = mass[:, ids.numpy()]
        odd, every = numbers[:, 1::2].sum(axis=1), numbers.sum(axis=1)
        numeric = np.log(every / (mass.sum(axis=1) - every))
        return float(np.log(odd / (every - odd)).mean()), float(numeric.mean())

    before = beliefs(h.astype(np.float64))
    for latent, concept in ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double"), (UNREAD, "odd")):
        direction, silent = planted.dictionary[latent].double().numpy(), h.astype(np.float64)
        read = silent[:, labs] @ direction
        silent[:, labs] -= np.where(read > 0.1, read, 0)[..., None] * direction
        after = beliefs(silent)
        for b, belief in enumerate(("odd", "numeric")):
            found = everywhere_row(matrix, latent, concept, belief)
            assert found["base"] == pytest.approx(before[b], abs=2e-4)
            assert found["effect"] == pytest.approx(after[b] - before[b], abs=2e-4)


def test_at_the_last_example_alone_the_others_make_up_for_it(
    context: tuple[Planted, torch.Tensor], matrix: SpecificityTable
) -> None:
    planted = context[0]
    held = gather(
        planted.model, planted.sae, planted_runs(planted, "S arm"), direction="necessity", role="lab"
    )
    last = specificity([held], CHOSEN, OWN, ways=["ablate"], n_controls=5)
    for latent, concept in ((ODD, "odd"), (NUMERIC, "numeric"), (DOUBLE, "double")):
        alone = row(last, latent, concept, concept)["effect"]
        assert 3 < everywhere_row(matrix, latent, concept, concept)["effect"] / alone < 6


def test_a_latent_that_is_never_active_does_nothing_and_says_so(matrix: SpecificityTable) -> None:
    for latent in (SILENT, JOINT):
        silent = everywhere_row(matrix, latent, "offset", "numeric")
        assert silent["effect"] == silent["ci_low"] == silent["ci_high"] == 0 and silent["n_active"] == 0
        assert silent["reason"] == "nothing is moved in any prompt; no belief reads offset"
        assert all(np.isnan(silent[name]) for name in ("control_sd", "standardised", "control_p", "margin"))
    assert everywhere_row(matrix, ODD, "odd", "odd")["n_active"] == 12


def test_a_prompt_in_which_it_is_silent_counts_as_no_effect(
    exact_model: LanguageModel, make_sae: MakeSae
) -> None:
    runs, sae = runs_of(exact_model, n_prompts=8), make_sae("L1.mlp_out")
    where = runs.target.positions("lab")[:4]
    x = recorded(exact_model, sae, runs, where)
    active = (sae.encode(x.flatten(0, 1)).view(8, 4, -1) != 0).any(dim=1).sum(dim=0)
    latent = int(((active > 1) & (active < 6)).nonzero()[0])
    table = ablate_everywhere(exact_model, sae, runs, [(latent, "odd", "")], OWN, role="lab", n_controls=2)
    edit = Edit(sae.site, "resample", where, silenced(sae, x, [latent]))
    wanted = (forward(exact_model, runs, [edit]) - forward(exact_model, runs)).mean(axis=0)
    for b, belief in enumerate(BELIEFS):
        found = everywhere_row(table, latent, "odd", belief)
        assert found["n_active"] == active[latent] and found["n_prompts"] == 8
        assert found["effect"] == pytest.approx(wanted[b], abs=1e-4)


def test_batches_and_seeds(exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae) -> None:
    """A seed gives one table, another other controls and resamples; the size of a batch changes nothing."""
    runs, sae = make_runs(), make_sae("L1.mlp_out")
    x = recorded(exact_model, sae, runs, runs.target.positions("lab")[:4])
    order = sae.encode(x.flatten(0, 1)).sum(dim=0).argsort(descending=True)[:3].tolist()
    chosen = [(latent, concept, "") for latent, concept in zip(order, ("odd", "odd", "double"), strict=True)]

    def table(**settings: int) -> SpecificityTable:
        given = {"n_controls": 3, "n_resamples": 50} | settings
        return ablate_everywhere(exact_model, sae, runs, chosen, OWN, role="lab", **given)

    one, small, other = table(seed=1), table(seed=1, batch=5), table(seed=2)
    assert one.df.equals(table(seed=1).df)
    assert all((one[name] != other[name]).any() for name in ("ci_low", "control_sd"))
    for name in ("effect", "ci_low", "control_sd", "margin_high"):
        np.testing.assert_allclose(small[name], one[name], atol=1e-4)
    assert len(ablate_everywhere(exact_model, sae, runs, [], OWN, role="lab")) == 0


def test_rivals_are_named_and_undefined_beliefs_left_out(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs, sae = make_runs(task="word:opposite"), make_sae("L1.mlp_out")
    x = recorded(tiny_model, sae, runs, runs.target.positions("lab")[:4])
    latent = int(sae.encode(x.flatten(0, 1)).sum(dim=0).argmax())
    chosen = [(latent, "odd", "odd"), (latent, "double", "double")]
    table = ablate_everywhere(
        tiny_model, sae, runs, chosen, OWN, role="lab", n_controls=2, against=["exact", "copy"]
    )
    assert set(table["belief"]) == {"numeric", "odd", "exact", "copy"}
    own = everywhere_row(table, latent, "odd", "odd")
    assert own["against"] == "exact copy" and own["rival"] in ("exact", "copy")
    sizes = [abs(everywhere_row(table, latent, "odd", name)["effect"]) for name in ("odd", "exact", "copy")]
    assert own["margin"] == pytest.approx(sizes[0] - max(sizes[1:]))
    assert set(table.where(table["concept"] == "double")["reason"]) == {"double is undefined for this task"}


def test_what_cannot_be_asked_is_refused(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs, sae, one = make_runs(), make_sae("L1.mlp_out"), [(0, "odd", "odd")]
    nothing_shown = runs_of(tiny_model, donor_examples=0)
    elsewhere = replace(runs, **{
        name: replace(getattr(runs, name), tokenizer="other") for name in ("donor", "recipient", "target")
    })  # fmt: skip
    curved = SimpleNamespace(encode=sae.encode, decode=lambda a: (a @ sae.W_dec).relu(), W_dec=sae.W_dec)
    usual: dict[str, Any] = {
        "model": tiny_model, "sae": sae, "runs": runs, "chosen": one, "own": OWN, "role": "lab",
    }  # fmt: skip
    refused: list[tuple[dict[str, Any], type[IclensError], str]] = [
        ({"role": "label"}, SiteError, "role 'label'"),
        ({"sae": make_sae("L9.mlp_out")}, SiteError, "L9|9"),
        ({"runs": nothing_shown}, EditError, "no example before its query"),
        ({"runs": elsewhere}, EditError, "runs of tokenizer other"),
        ({"chosen": one * 2}, EditError, "latent 0 for 'odd': it stands twice"),
        ({"chosen": [(D_SAE, "odd", "odd")]}, SaeError, f"latent {D_SAE} of L1"),
        ({"chosen": [(-1, "odd", "odd")]}, SaeError, "latent -1 of L1"),
        ({"own": {"odd": "parity"}}, EditError, "belief 'parity'"),
        ({"against": ["even"]}, EditError, "belief 'even'"),
        ({"sae": replace(sae, d_in=7)}, SaeError, "width 7, not"),
        ({"sae": replace(sae, target=Site(2, "mlp_out"))}, SaeError, "transcoder"),
        ({"sae": replace(sae, network=curved)}, SaeError, "not affine"),
        ({"model": replace(tiny_model, whole=False)}, ModelError, "logits"),
    ]
    for settings, kind, said in refused:
        with pytest.raises(kind, match=said):
            ablate_everywhere(**(usual | settings))
