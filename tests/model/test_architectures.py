"""Every architecture is run as transformers runs it: sites, edits, tails, patterns, weights are its own."""

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from iclens.core import HOOKS, PADDING, ModelError, Site
from iclens.model.architectures import ADAPTERS, Adapter, adapter_of
from iclens.model.attention import (
    Knockout,
    attention_patterns,
    carried,
    head_changes,
    head_dots,
    head_outputs,
    record_knockout,
)
from iclens.model.load import LanguageModel, as_numpy, difference, load_model, load_tokenizer
from iclens.model.run import (
    Edit,
    answer_probs,
    edited_answers,
    record,
    record_neurons,
    run_blocks,
    run_to_end,
    unembed,
)
from iclens.model.shape import ARCHITECTURES, read_shape
from iclens.model.tail import Tail, added_together, tails_of
from iclens.patching.sweep import lens_logits, unnormalised_logits

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"
LENGTH, DEPTH, WIDTH = 23, 4, 32
EXACT = {"rtol": 1e-5, "atol": 1e-5}
SLIDE, WHOLE = "sliding_attention", "full_attention"
COMMON = {
    "vocab_size": 1078, "hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.15,
}  # fmt: skip
GPT2 = {
    "vocab_size": 1078, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
    "eos_token_id": None, "initializer_range": 0.15, "scale_attn_by_inverse_layer_idx": True,
}  # fmt: skip
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
GEMMA = COMMON | {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20}
TWO_ROTATIONS = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", COMMON | {"sliding_window": 5}),
    "qwen2": ("qwen2", COMMON | WINDOWED),
    "qwen3": ("qwen3", COMMON | WINDOWED | {"head_dim": 12, "attention_bias": True}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}),
    "gemma2 without caps": ("gemma2", GEMMA | {
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False,
    }),
    "gemma3_text": ("gemma3_text", GEMMA | {
        "layer_types": [SLIDE, WHOLE, SLIDE, SLIDE], "rope_parameters": TWO_ROTATIONS,
        "final_logit_softcapping": 4.0,
    }),
    "phi3": ("phi3", COMMON | {
        "sliding_window": 7, "rope_parameters": {"rope_theta": 99.0, "partial_rotary_factor": 0.5},
    }),
    "olmo2": ("olmo2", COMMON),
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied": ("gpt2", GPT2 | {"n_inner": 48, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", COMMON | {"rotary_pct": 0.5, "rotary_emb_base": 99}),
    "gpt_neox in sequence": ("gpt_neox", COMMON | {"use_parallel_residual": False, "attention_bias": False}),
}  # fmt: skip
LLAMA_LIKE = {
    "attn_out": "self_attn", "mlp_out": "mlp", "mlp_in": "mlp", "z": "self_attn.o_proj",
    "resid_mid": "post_attention_layernorm", "attention": "self_attn",
}  # fmt: skip
GEMMA_LIKE = LLAMA_LIKE | {
    "attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm",
    "resid_mid": "pre_feedforward_layernorm",
}  # fmt: skip
MODULES = dict.fromkeys(ADAPTERS, LLAMA_LIKE) | {
    "gemma2": GEMMA_LIKE, "gemma3_text": GEMMA_LIKE, "olmo2": GEMMA_LIKE | {"resid_mid": "mlp"},
    "gpt2": LLAMA_LIKE | {"attn_out": "attn", "z": "attn.c_proj", "resid_mid": "ln_2", "attention": "attn"},
    "gpt_neox": LLAMA_LIKE | {"attn_out": "attention", "z": "attention.dense", "attention": "attention"},
}  # fmt: skip
"""The module of transformers' blocks that a site is the input or the output of, by hook."""
INPUTS = ("mlp_in", "z", "resid_mid", "resid_pre", "attention")


@dataclass
class Case:
    """One architecture, loaded here and by transformers."""

    kind: str
    folder: Path
    model: LanguageModel
    exact: LanguageModel  # the same in float64
    theirs: Any  # transformers' own network, with eager attention

    @property
    def parallel(self) -> bool:
        return getattr(self.theirs.config, "use_parallel_residual", False)

    def blocks(self) -> Any:
        paths = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
        return self.theirs.get_submodule(paths.get(self.kind, "model.layers"))

    def module(self, layer: int, hook: str) -> Any:
        block = self.blocks()[layer]
        return block if hook in ("resid_pre", "resid_post") else block.get_submodule(MODULES[self.kind][hook])

    @contextmanager
    def hooked(self, layer: int, hook: str, function: Callable[[Tensor], Tensor | None]) -> Any:
        """`function` sees a site of transformers' network, and may give another activation."""

        def before(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                changed = function(args[0])
                return None if changed is None else ((changed, *args[1:]), kwargs)
            changed = function(kwargs["hidden_states"])
            return None if changed is None else (args, kwargs | {"hidden_states": changed})

        def after(_module: Any, _args: Any, output: Any) -> Any:
            changed = function(output[0] if isinstance(output, tuple) else output)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        module = self.module(layer, hook)
        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if hook in INPUTS
            else module.register_forward_hook(after)
        )
        try:
            yield
        finally:
            handle.remove()

    def seen(self, tokens: np.ndarray, layer: int, hook: str) -> Tensor:
        """A site as transformers computes it."""
        if hook == "resid_mid" and self.parallel:
            return self.seen(tokens, layer, "resid_pre") + self.seen(tokens, layer, "attn_out")
        found: list[Tensor] = []
        with self.hooked(layer, hook, lambda x: found.append(x.detach().clone())), torch.no_grad():
            self.theirs(torch.as_tensor(tokens))
        (only,) = found
        return only


def saved(folder: Path, name: str) -> Path:
    """A model of random weights, none of its norms and biases where they start."""
    torch.manual_seed(sum(map(ord, name)))
    kind, changes = CASES[name]
    config = AutoConfig.for_model(kind, **changes)
    network: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, values in network.named_parameters():
            if values.ndim == 1 or key.endswith("bias"):
                values.add_(0.3 * torch.randn_like(values))
    network.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / file, folder)
    return folder


def load(folder: str | Path, **options: Any) -> LanguageModel:
    """A model with the shipped tokenizer as it is; transformers would make Qwen 2's digits single ones."""
    return replace(load_model(folder, **options), tokenizer=load_tokenizer(FOLDER))


def loaded(folder: Path, kind: str) -> Case:
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    exact = load(folder, dtype=torch.float64)
    return Case(kind, folder, load(folder), exact, theirs.requires_grad_(False))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return loaded(saved(tmp_path_factory.mktemp("model"), request.param), CASES[request.param][0])


@pytest.fixture
def tokens() -> np.ndarray:
    ids = np.random.default_rng(7).integers(1, 1000, (3, LENGTH))
    ids[:, 0] = 0
    return ids


EVERY = np.arange(LENGTH)
SITES = [Site(layer, hook) for layer in range(DEPTH) for hook in HOOKS]


def logits(model: LanguageModel, tokens: np.ndarray) -> Tensor:
    with torch.no_grad():
        resid = run_blocks(model.network, model.embed(tokens), 0, model.n_blocks)
        return unembed(model.network, resid)


def test_the_plain_path_compiles_into_one_graph(tmp_path: Path) -> None:
    model = load(saved(tmp_path, "llama"))
    compiled = torch.compile(run_blocks, dynamic=False, fullgraph=True, backend="eager")
    resid = model.embed(np.ones((2, 9), dtype=np.int64))
    assert torch.equal(compiled(model.network, resid, 0, DEPTH), run_blocks(model.network, resid, 0, DEPTH))


def test_every_architecture_has_an_adapter_and_a_case() -> None:
    assert tuple(ADAPTERS) == ARCHITECTURES
    assert {kind for kind, _ in CASES.values()} == set(ADAPTERS)


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_transformers(case: Case, tokens: np.ndarray, attention: str) -> None:
    model = load(case.folder, attention=attention)
    with torch.no_grad():
        wanted = case.theirs(torch.as_tensor(tokens)).logits
        torch.testing.assert_close(logits(model, tokens), wanted, **EXACT)
        some = torch.tensor([3, LENGTH - 1])
        end = run_to_end(model.network, model.embed(tokens), some)
        torch.testing.assert_close(unembed(model.network, end), wanted[:, some], **EXACT)
    found = answer_probs(model, tokens, np.array([LENGTH - 1])).log_prob[:, 0]
    answers = wanted[:, -1].log_softmax(dim=-1)[:, model.answer_space()[1]]
    np.testing.assert_allclose(found, answers, **EXACT)
    assert wanted.std() > 0.1


def test_sites_are_those_of_transformers(case: Case, tokens: np.ndarray) -> None:
    found = record(case.model, tokens, SITES, EVERY)
    for site in SITES:
        wanted = case.seen(tokens, site.layer, site.hook)
        torch.testing.assert_close(
            torch.as_tensor(found[site]), wanted, **EXACT, msg=lambda m, s=site: f"{s}: {m}"
        )


def test_what_is_added_adds_up(case: Case, tokens: np.ndarray) -> None:
    found = record(case.model, tokens, SITES, EVERY)
    for layer in range(DEPTH):
        pre, mid, post, attention, mlp = (
            found[Site(layer, hook)]
            for hook in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        np.testing.assert_allclose(pre + attention, mid, **EXACT)
        np.testing.assert_allclose(mid + mlp, post, **EXACT)


def test_hidden_states_are_the_residuals(case: Case, tokens: np.ndarray) -> None:
    with torch.no_grad():
        hidden = case.theirs(torch.as_tensor(tokens), output_hidden_states=True).hidden_states
    found = record(case.model, tokens, [Site(layer, "resid_pre") for layer in range(DEPTH)], EVERY)
    for site, values in found.items():
        torch.testing.assert_close(torch.as_tensor(values), hidden[site.layer], **EXACT)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_edit_does_what_a_hook_on_the_module_does(case: Case, tokens: np.ndarray, hook: str) -> None:
    model, layer, at = case.model, 1, np.array([4, 9])
    site, width = Site(layer, hook), model.n_heads * model.d_head if hook == "z" else WIDTH
    delta = np.random.default_rng(2).normal(size=(3, 2, width)).astype(np.float32)

    def moved(x: Tensor) -> Tensor:
        return x.index_add(1, torch.as_tensor(at), torch.as_tensor(delta))

    module = "attn_out" if hook == "resid_mid" else hook  # what attention adds is all that is new there
    with case.hooked(layer, module, moved), torch.no_grad():
        wanted = case.theirs(torch.as_tensor(tokens)).logits
    read = np.array([9, LENGTH - 1])
    found = edited_answers(model, tokens, read, [Edit(site, "add", at, delta)])
    ids = model.answer_space()[1]
    np.testing.assert_allclose(found.answers.log_prob, wanted[:, read].log_softmax(-1)[..., ids], **EXACT)
    assert found.fired == (len(tokens),)
    unedited = answer_probs(model, tokens, read).log_prob
    assert np.abs(found.answers.log_prob - unedited).max() > 0.01


def test_replacing_the_middle_is_seen_by_stream_and_mlp(case: Case, tokens: np.ndarray) -> None:
    at, site = np.array([4]), Site(2, "resid_mid")
    edit = Edit(site, "replace", at, np.ones((1, 1, WIDTH), dtype=np.float32))
    found = record(case.model, tokens, [site, Site(2, "mlp_out"), Site(2, "resid_post")], at, edits=[edit])
    np.testing.assert_allclose(found[site], 1, **EXACT)
    np.testing.assert_allclose(found[Site(2, "resid_post")], 1 + found[Site(2, "mlp_out")], **EXACT)
    before = record(case.model, tokens, [Site(2, "mlp_out")], at)[Site(2, "mlp_out")]
    changed = np.abs(found[Site(2, "mlp_out")] - before).max()
    assert changed == 0 if case.parallel else changed > 1e-3


def test_neurons_are_what_the_down_projection_reads(case: Case, tokens: np.ndarray) -> None:
    adapter, seen = case.model.adapter, list[Tensor]()
    down = case.blocks()[1].get_submodule(adapter.down)
    handle = down.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        case.theirs(torch.as_tensor(tokens))
    handle.remove()
    found = record_neurons(case.model, tokens, 1, EVERY)
    np.testing.assert_allclose(found, seen[0], **EXACT)
    assert adapter.d_mlp == found.shape[-1]
    if not adapter.neurons_normed:
        written = torch.as_tensor(found) @ adapter.neuron_directions(adapter.layers[1])
        written = written if down.bias is None else written + down.bias
        out = record(case.model, tokens, [Site(1, "mlp_out")], EVERY)[Site(1, "mlp_out")]
        np.testing.assert_allclose(written, out, **EXACT)


# ------------------------------------------------------------------------------------------------ padding


def padded(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with padding between their tokens, and the column of each token, [row token]."""
    length = tokens.shape[1]
    columns = np.stack([np.sort(rng.choice(length + 3, length, replace=False)) for _ in tokens])
    wide = np.full((len(tokens), length + 4), PADDING)
    np.put_along_axis(wide, columns, tokens, axis=1)
    wide[:, -1] = 17  # the last column is there in every row
    return wide, np.concatenate([columns, np.full((len(tokens), 1), length + 3)], axis=1)


def test_padding_changes_nothing(case: Case, tokens: np.ndarray) -> None:
    wide, columns = padded(tokens, np.random.default_rng(4))
    compact = np.concatenate([tokens, np.full((len(tokens), 1), 17)], axis=1)
    sites = [Site(layer, hook) for layer in (0, DEPTH - 1) for hook in HOOKS]
    found = record(case.model, wide, sites, np.arange(wide.shape[1]))
    wanted = record(case.model, compact, sites, np.arange(LENGTH + 1))
    for site in sites:
        there = np.take_along_axis(found[site], columns[..., None], axis=1)
        np.testing.assert_allclose(there, wanted[site], **EXACT)
    last = answer_probs(case.model, wide, np.array([wide.shape[1] - 1])).log_prob
    np.testing.assert_allclose(last, answer_probs(case.model, compact, np.array([LENGTH])).log_prob, **EXACT)


# -------------------------------------------------------------------------------------------------- tails


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "mlp_out"])
@pytest.mark.parametrize("first", [5, LENGTH - 1])
def test_a_tail_is_the_whole_run_under_the_same_edit(
    case: Case, tokens: np.ndarray, hook: str, first: int
) -> None:
    model, site, last = case.exact, Site(1, hook), np.array([LENGTH - 1])
    rng, where = np.random.default_rng(1), np.unique([first, LENGTH - 1])
    deltas = [rng.normal(size=(n, WIDTH)) for n in (4, 7)]
    tokens = tokens[:2].copy()
    tokens[1, 3:5] = PADDING
    tails = tails_of(model, tokens, first=first)
    together = added_together(tails, site, [torch.as_tensor(delta) for delta in deltas], where)
    for row, (tail, delta, shared) in enumerate(zip(tails, deltas, together, strict=True)):
        repeated = np.repeat(tokens[row : row + 1], len(delta), axis=0)
        edit = Edit(site, "add", where, np.repeat(delta[:, None], len(where), axis=1))
        whole = answer_probs(model, repeated, last, edits=[edit]).log_prob[:, 0]
        alone = tail.added(site, delta, positions=where).log_prob
        np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-6)
        np.testing.assert_allclose(shared.log_prob, whole, rtol=0, atol=1e-6)
        plain = answer_probs(model, repeated[:1], last).log_prob[:, 0]
        np.testing.assert_allclose(tail.base(site).log_prob, plain, rtol=0, atol=1e-6)
        assert np.abs(whole - plain).max() > 0.01


def test_a_tail_goes_on_from_any_block(case: Case, tokens: np.ndarray) -> None:
    model, last = case.exact, np.array([LENGTH - 1])
    tail, new = Tail(model, tokens[0]), torch.randn(3, WIDTH, dtype=torch.float64)
    for layer in range(DEPTH):
        edit = Edit(Site(layer, "resid_pre"), "replace", last, new.numpy()[:, None])
        whole = answer_probs(model, np.repeat(tokens[:1], 3, axis=0), last, edits=[edit]).log_prob[:, 0]
        np.testing.assert_allclose(tail.run(new, layer).log_prob, whole, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- attention


def test_patterns_are_those_of_transformers(case: Case, tokens: np.ndarray) -> None:
    with torch.no_grad():
        wanted = case.theirs(torch.as_tensor(tokens), output_attentions=True).attentions
    found = attention_patterns(case.model, tokens, range(DEPTH), EVERY)
    for layer in range(DEPTH):
        np.testing.assert_allclose(found[layer], wanted[layer], **EXACT)


def test_patterns_of_padded_prompts_are_those_of_compact_ones(case: Case, tokens: np.ndarray) -> None:
    wide, columns = padded(tokens, np.random.default_rng(4))
    compact = np.concatenate([tokens, np.full((len(tokens), 1), 17)], axis=1)
    last = np.array([wide.shape[1] - 1])
    found = attention_patterns(case.model, wide, range(DEPTH), last)
    wanted = attention_patterns(case.model, compact, range(DEPTH), np.array([LENGTH]))
    for layer in range(DEPTH):
        there = np.take_along_axis(found[layer], columns[:, None, None], axis=3)
        np.testing.assert_allclose(there, wanted[layer], **EXACT)
        np.testing.assert_allclose(found[layer].sum(axis=-1), 1, **EXACT)


def test_a_knockout_removes_what_is_seen_and_nothing_else(case: Case, tokens: np.ndarray) -> None:
    site, cut = Site(2, "resid_post"), Knockout(np.array([LENGTH - 1]), np.array([LENGTH - 12]), (1, 2))
    near = Knockout(np.array([LENGTH - 1]), np.array([LENGTH - 3]), (1, 2))
    uncut = record(case.model, tokens, [site], EVERY)[site]
    far_change, near_change = (
        np.abs(record_knockout(case.model, tokens, [site], EVERY, [one])[site] - uncut).max(axis=(0, 2))
        for one in (cut, near)
    )
    adapter = case.model.adapter
    seen = any(adapter.reach(adapter.kinds[layer]) is None for layer in (1, 2))
    assert far_change[-1] > 1e-4 if seen else far_change[-1] < 1e-5
    assert near_change[-1] > 1e-3 and near_change[:-1].max() < 1e-5


def test_heads_add_up_to_what_attention_adds(case: Case, tokens: np.ndarray) -> None:
    model, rng = case.model, np.random.default_rng(5)
    found = record(model, tokens, SITES, np.array([LENGTH - 1]))
    for layer in range(DEPTH):
        z, wanted = found[Site(layer, "z")][:, 0], found[Site(layer, "attn_out")][:, 0]
        heads, adapter = head_outputs(model, layer, z), model.adapter
        bias = adapter.head_weights(adapter.layers[layer], "o")[1]
        total = heads.sum(dim=1) + (0 if bias is None else bias)
        np.testing.assert_allclose(total, wanted, **EXACT)
        directions = rng.normal(size=(3, WIDTH)).astype(np.float32)
        dots = torch.einsum("rhm,rm->rh", heads, torch.as_tensor(directions))
        np.testing.assert_allclose(head_dots(model, layer, z, directions), dots, **EXACT)
        changes = head_changes(model, layer, z, 0.5 * z[::-1])
        np.testing.assert_allclose(changes, head_outputs(model, layer, 0.5 * z[::-1]) - heads, **EXACT)


def test_weights_of_heads_give_queries_keys_and_values(case: Case, tokens: np.ndarray) -> None:
    model, adapter, layer = case.model, case.model.adapter, 1
    block = adapter.layers[layer]
    read = case.seen(tokens, layer, "attention")

    def projected(which: str) -> Tensor:
        weight, bias = adapter.head_weights(block, which)
        made = torch.einsum("rpm,hdm->rphd", read, weight)
        return made if bias is None else made + bias

    with torch.no_grad():
        given = adapter.split([block.get_submodule(path)(read) for path in adapter.qkv])
    for which, wanted in zip("qkv", given, strict=True):
        torch.testing.assert_close(projected(which).flatten(-2), wanted, **EXACT)
    # and independently of how they are split: the pattern over values is what the output projection reads
    with torch.no_grad():
        pattern = case.theirs(torch.as_tensor(tokens), output_attentions=True).attentions[layer]
    v = projected("v")
    v = v.repeat_interleave(model.n_heads // v.shape[2], dim=2)
    z = torch.einsum("rhqk,rkhd->rqhd", pattern, v).flatten(-2)
    torch.testing.assert_close(z, case.seen(tokens, layer, "z"), **EXACT)
    assert adapter.head_weights(block, "q")[0].shape == (model.n_heads, model.d_head, WIDTH)


def test_what_heads_carry_from_all_keys_is_what_they_write(case: Case, tokens: np.ndarray) -> None:
    model, adapter, layer, query = case.model, case.model.adapter, 1, LENGTH - 1
    block, site = adapter.layers[layer], Site(layer, "resid_pre")
    if adapter.not_carried:
        with pytest.raises(ModelError, match=adapter.not_carried):
            carried(model, layer, np.ones((1, WIDTH)))
        return
    found = record(model, tokens[:1], [site, Site(layer, "z")], EVERY)
    norm, pre = adapter.norm(block, adapter.before_attention), found[site][0]
    images = carried(model, layer, pre / adapter.divisor(norm, pre)[:, None])  # [key head d_model]
    pattern = attention_patterns(model, tokens[:1], [layer], np.array([query]))[layer][0, :, 0]
    total = torch.einsum("hk,khm->hm", torch.as_tensor(pattern), images)
    (w_v, b_v), (w_o, _) = adapter.head_weights(block, "v"), adapter.head_weights(block, "o")
    constant = torch.zeros(w_v.shape[:2]) if b_v is None else b_v
    if getattr(norm, "bias", None) is not None:
        constant = constant + w_v @ norm.bias
    constant = constant.repeat_interleave(model.n_heads // len(constant), dim=0)
    total = total + torch.einsum("hd,hdm->hm", constant, w_o)
    wanted = head_outputs(model, layer, found[Site(layer, "z")][0, query : query + 1])[0]
    torch.testing.assert_close(total, wanted, **EXACT)


def test_the_lens_is_the_end_of_the_model(case: Case, tokens: np.ndarray) -> None:
    model, adapter = case.model, case.model.adapter
    resid = record(model, tokens, [Site(DEPTH - 1, "resid_post")], np.array([LENGTH - 1]))
    (rows,) = (values[:, 0] for values in resid.values())
    wanted = logits(model, tokens)[:, -1]
    np.testing.assert_allclose(lens_logits(model, rows), wanted, **EXACT)
    norm = adapter.final_norm
    linear = unnormalised_logits(model, rows) / adapter.divisor(norm, rows)[:, None]
    if getattr(norm, "bias", None) is not None:
        linear = linear + as_numpy(adapter.unembedding @ norm.bias)
    np.testing.assert_allclose(adapter.capped(torch.as_tensor(linear)), wanted, **EXACT)


# ------------------------------------------------------------------------------------------------- loading


def test_sizes_are_those_of_the_weights(case: Case) -> None:
    shape, network = read_shape(case.folder), case.theirs
    assert shape.parameters(DEPTH, head=1) == sum(p.numel() for p in network.parameters())
    block = case.blocks()[0]
    assert shape.block_parameters == sum(p.numel() for p in block.parameters())
    assert shape.block_matrices == sum(p.numel() for p in block.parameters() if p.ndim == 2)
    model = case.model
    assert (shape.d_model, shape.n_heads, shape.d_head) == (model.d_model, model.n_heads, model.d_head)
    assert (shape.n_blocks, shape.n_positions, shape.d_mlp) == (DEPTH, 64, model.adapter.d_mlp)


def test_a_part_is_the_start_of_the_whole(case: Case, tokens: np.ndarray) -> None:
    part = load_model(case.folder, blocks=3)
    assert (part.n_blocks, part.whole) == (3, False)
    assert difference(part.fingerprint, case.model.fingerprint) == ""
    sites = [site for site in SITES if site.layer < 3]
    found, wanted = record(part, tokens, sites, EVERY), record(case.model, tokens, sites, EVERY)
    for site in sites:
        np.testing.assert_array_equal(found[site], wanted[site])


def test_a_prompt_longer_than_the_model_is_refused(case: Case) -> None:
    answer_probs(case.model, np.ones((1, 64), dtype=np.int64), np.array([1]))
    with pytest.raises(ModelError, match="65 tokens, the model has 64 positions"):
        answer_probs(case.model, np.ones((1, 65), dtype=np.int64), np.array([1]))


def test_half_precision_is_that_of_transformers(case: Case, tokens: np.ndarray) -> None:
    """The factor of embeddings and rotations are no weights, and must not be rounded twice."""
    model = load_model(case.folder, dtype=torch.bfloat16)
    theirs = replace(case, theirs=AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.bfloat16))
    embedded = theirs.seen(tokens, 0, "resid_pre")
    assert torch.equal(model.embed(tokens), embedded)
    with torch.no_grad():
        wanted = theirs.theirs(torch.as_tensor(tokens)).logits
    assert (logits(model, tokens) - wanted).abs().max() < 0.1 * wanted.abs().max()


CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "positions": ("gpt2", {"transformer.wpe.weight": 1}, "another embedding"),
    "the final norm": ("gpt_neox", {"gpt_neox.final_layer_norm.bias": 1}, "another final norm or head"),
    "a norm of heads": ("qwen3", {"model.layers.2.self_attn.q_norm.weight": 1}, "other weights in block 2"),
    "a cap": ("gemma2", {"attn_logit_softcapping": 9.0}, "another config"),
    "a scale": ("gemma3_text", {"query_pre_attn_scalar": 9}, "another config"),
    "which blocks slide": (
        "gemma3_text", {"layer_types": [SLIDE, WHOLE, WHOLE, SLIDE]}, "other weights in block 2",
    ),
    "a share of the rotation": (
        "phi3", {"rope_parameters": {"rope_theta": 99.0, "partial_rotary_factor": 1.0}}, "another config",
    ),
    "the order of a block": ("gpt_neox", {"use_parallel_residual": False}, "another config"),
    "the scale of a block": ("gpt2", {"scale_attn_by_inverse_layer_idx": False}, "another config"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_has_another_fingerprint(tmp_path: Path, name: str) -> None:
    kind, changes, words = CHANGES[name]
    folder = saved(tmp_path, kind)
    ours = load_model(folder).fingerprint
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if key in weights:
            weights[key].view(-1)[-1].add_(value)
        else:
            config[key] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    assert difference(ours, load_model(folder).fingerprint) == words


def test_published_files_name_their_tensors_otherwise(tmp_path: Path, tokens: np.ndarray) -> None:
    """GPT-2's files hold the trunk alone, Pythia's an `embed_out`, both masks that older versions stored."""
    mask = torch.ones(1, 1, 64, 64)

    def gpt2(key: str) -> str:
        return key.removeprefix("transformer.")

    def neox(key: str) -> str:
        return key.replace("lm_head.", "embed_out.")

    for kind, spelt, masks in (
        ("gpt2", gpt2, {f"h.{i}.attn.bias": mask for i in range(DEPTH)}),
        ("gpt_neox", neox, {
            f"gpt_neox.layers.{i}.attention.{name}": mask.clone()
            for i in range(DEPTH) for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
        }),
    ):  # fmt: skip
        folder = saved(tmp_path / kind, kind)
        before = load_model(folder)
        weights = load_file(folder / "model.safetensors")
        renamed = {spelt(key): x for key, x in weights.items()} | {
            key: value.clone() for key, value in masks.items()
        }
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        after = load_model(folder)
        assert after.fingerprint == before.fingerprint
        assert torch.equal(logits(before, tokens), logits(after, tokens))
        assert load_model(folder, blocks=2).n_blocks == 2
        save_file(renamed | {"h.0.attn.c_attn.extra": mask}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"1 unexpected, first .*h\.0\.attn\.c_attn\.extra"):
            load_model(folder)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights["wpe.weight"] = weights["transformer.wpe.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"stored twice, first (transformer\.)?wpe\.weight"):
        load_model(folder)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a multimodal Gemma": ("gemma3_text", {"model_type": "gemma3"}, "its architecture is 'gemma3'"),
    "attention to what comes": ("gemma2", {"use_bidirectional_attention": True}, "bidirectional_attention"),
    "attention to another's tokens": ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
    "a cap that transformers passes over": (
        "gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0",
    ),
    "layers of another kind": (
        "qwen2", {"layer_types": [WHOLE, WHOLE, WHOLE, "chunked_attention"]}, "are chunked_attention",
    ),
    "a layer too few": ("gemma2", {"layer_types": [WHOLE, SLIDE, WHOLE]}, "one type for each block"),
    "no window to slide": ("gemma2", {"sliding_window": None}, "sliding_window is null"),
    "a window that is off": (
        "qwen3", {"use_sliding_window": False, "layer_types": [WHOLE, SLIDE, WHOLE, SLIDE]},
        "sliding_window is null",
    ),
    "mixed layers where none are read": ("phi3", {"layer_types": [WHOLE, SLIDE] * 2}, "differ from block to"),
    "a part of heads rotated": ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "a rotation by kind": ("qwen2", {"rope_parameters": TWO_ROTATIONS}, "rope_parameters differ by layer"),
    "no width": ("gpt2", {"n_embd": None}, "n_embd is None"),
    "a width of neurons left out": ("llama", {"intermediate_size": None}, "intermediate_size is None"),
    "no neurons": ("gpt_neox", {"intermediate_size": 0}, "intermediate_size is 0"),
    "an unknown activation": ("gpt2", {"activation_function": "swash"}, "activation_function 'swash'"),
    "another unknown activation": ("gemma2", {"hidden_activation": "swash"}, "hidden_activation 'swash'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused(tmp_path: Path, name: str) -> None:
    kind, changes, words = REFUSED[name]
    folder = saved(tmp_path, kind)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_model(folder)


def test_a_network_without_an_adapter_is_refused() -> None:
    network = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt_neo", hidden_size=8, num_layers=1, attention_types=[[["global"], 1]],
                             num_heads=2, vocab_size=9, max_position_embeddings=8)
    )  # fmt: skip
    with pytest.raises(ModelError, match="a network of type 'gpt_neo'"):
        adapter_of(network)


KEYS_LEFT_OUT: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "qwen2": ({}, (32768, 32, 2, False)),
    "qwen3": ({}, (32768, 32, 128, False)),
    "gemma2": ({}, (8192, 4, 256, True)),
    "gemma3_text": ({}, (131072, 4, 256, True)),
    "phi3": ({}, (4096, 32, 2, False)),
    "olmo2": ({}, (2048, 32, 2, False)),
    "gpt_neox": ({}, (2048, 32, 2, False)),
    "gpt2": ({"n_embd": 64, "n_head": 32, "n_layer": 1, "n_inner": None}, (1024, 32, 2, True)),
}


@pytest.mark.parametrize("kind", KEYS_LEFT_OUT)
def test_keys_that_are_left_out_are_what_transformers_takes(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 1, "intermediate_size": 8}
    changes, wanted = KEYS_LEFT_OUT[kind]
    stated = {"vocab_size": 9, "model_type": kind} | (changes or sizes)
    (tmp_path / "config.json").write_text(json.dumps(stated))
    shape = read_shape(tmp_path)
    assert (shape.n_positions, shape.n_kv_heads, shape.d_head, shape.tied) == wanted
    theirs = AutoConfig.for_model(**stated)
    keys = getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads
    assert (theirs.max_position_embeddings, keys, theirs.tie_word_embeddings) == (
        wanted[0],
        wanted[1],
        wanted[3],
    )


# ------------------------------------------------------------------------------------------ wrong adapters


def without(kind: str, **parts: Any) -> type[Adapter]:
    """An adapter in which something is otherwise."""
    return type("Wrong", (ADAPTERS[kind],), parts)


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no window": ("mistral", {"reach": lambda *_: None}),
    "all slide": ("qwen2", {"kinds": property(lambda self: (SLIDE,) * len(self.layers))}),
    "none slides": ("gemma2", {"kinds": property(lambda self: (WHOLE,) * len(self.layers))}),
    "a window of phi3": ("phi3", {"reach": lambda *_: None}),
    "one key more": ("gemma3_text", {"window": property(lambda self: self.config.sliding_window + 1)}),
    "one rotation": (
        "gemma3_text", {"rotary": lambda self, x, at, kind: self.body.rotary_emb(x, at, WHOLE)},
    ),
    "no norm before attention": ("llama", {"before_attention": ""}),
    "no norm after attention": ("gemma2", {"after_attention": ""}),
    "no norm before the MLP": ("gpt2", {"before_mlp": ""}),
    "no norm after the MLP": ("olmo2", {"after_mlp": ""}),
    "the norm of another part": ("gemma3_text", {"before_mlp": "post_attention_layernorm"}),
    "no norm of heads": ("qwen3", {"normed_heads": lambda self, block, q, k: (q, k)}),
    "no norm of all heads": ("olmo2", {"normed_heads": lambda self, block, q, k: (q, k)}),
    "no positions": ("gpt2", {"embed": lambda self, ids: self.body.wte(ids)}),
    "no factor of embeddings": (
        "gemma2", {"embed": lambda self, ids: torch.nn.functional.embedding(ids, self.embeddings)},
    ),
    "no cap of logits": ("gemma2", {"capped": lambda self, x: x}),
    "no cap of scores": ("gemma2", {"scores": Adapter.scores}),
    "no scale": ("gpt2", {"scores": lambda self, block, x: x}),
    "in sequence": ("gpt_neox", {"read_by_mlp": lambda self, block, pre, mid: mid}),
    "one after the other": ("gpt_neox", {"split": lambda self, joined: list(joined[0].chunk(3, dim=-1))}),
    "keys first": ("phi3", {"split": lambda self, joined: list(joined[0].chunk(2, dim=-1))}),
    "no rotation": ("phi3", {"queries_keys": lambda self, block, made, _: (
        Adapter.queries_keys(self, block, made, ())
    )}),
}  # fmt: skip


def discrepancy(case: Case, tokens: np.ndarray) -> float:
    """The largest difference from transformers in logits, sites and patterns."""
    model = replace(case.model)
    with torch.no_grad():
        theirs = case.theirs(torch.as_tensor(tokens), output_attentions=True)
    end = run_to_end(model.network, model.embed(tokens), torch.tensor([LENGTH - 1]))
    sites = [Site(1, hook) for hook in HOOKS]
    patterns = attention_patterns(model, tokens, range(DEPTH), EVERY)
    differences = [
        logits(model, tokens) - theirs.logits, unembed(model.network, end)[:, 0] - theirs.logits[:, -1],
        *(torch.as_tensor(values) - case.seen(tokens, site.layer, site.hook)
          for site, values in record(model, tokens, sites, EVERY).items()),
        *(torch.as_tensor(patterns[layer]) - theirs.attentions[layer] for layer in range(DEPTH)),
    ]  # fmt: skip
    return max(float(one.abs().max()) for one in differences)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_adapter_is_seen(
    tmp_path: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, parts = WRONG[name]
    case = loaded(saved(tmp_path, kind), kind)
    assert discrepancy(case, tokens) < 1e-4
    monkeypatch.setitem(ADAPTERS, kind, without(kind, **parts))
    try:
        assert discrepancy(case, tokens) > 1e-3
    except (RuntimeError, ValueError):  # shapes do not even fit
        assert name == "keys first"
