"""Only what is needed is read: by key, from shards that may be absent, from a folder or a hub's cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from iclens.core import HOOKS, ModelError, Site
from iclens.model.load import INDEX, SINGLE, LanguageModel, difference, load_model
from iclens.model.run import answer_probs, record
from iclens.model.shape import ARCHITECTURES
from iclens.model.tail import Tail
from iclens.prompts.build import PromptSet

from ..conftest import InFloat64

LAYERS = {f"model-0000{n + 1}-of-00003.safetensors": range(2 * n, 2 * n + 2) for n in range(3)}
FIRST, SECOND, LAST = LAYERS


def shard_of(key: str) -> str:
    """Two blocks to a shard; the embedding in the first, the final norm and the head in the last."""
    if key.startswith("model.embed"):
        return FIRST
    layer = int(key.split(".")[2]) if key.startswith("model.layers.") else 5
    return next(shard for shard, layers in LAYERS.items() if layer in layers)


@pytest.fixture
def sharded(tiny_folder: Path, tmp_path: Path) -> Path:
    """The shipped model in three shards."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    for shard in LAYERS:
        save_file({key: x for key, x in weights.items() if shard_of(key) == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": {key: shard_of(key) for key in weights}}))
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, needle: str, **asked: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder, **asked)
    assert "\n" not in str(caught.value)
    assert needle in str(caught.value)


def same_sites(part: LanguageModel, whole: LanguageModel, prompts: PromptSet) -> None:
    sites = [Site(layer, hook) for layer in range(part.n_blocks) for hook in HOOKS]
    ours, theirs = (record(model, prompts.tokens, sites, prompts.positions("pre")) for model in (part, whole))
    for site in sites:
        np.testing.assert_array_equal(ours[site], theirs[site])


def test_shards_together_are_the_model(sharded: Path, tiny_model: LanguageModel, prompts: PromptSet) -> None:
    model = load_model(sharded)
    same_sites(model, tiny_model, prompts)
    ours, theirs = (answer_probs(m, prompts.tokens, prompts.positions("pre")) for m in (model, tiny_model))
    np.testing.assert_array_equal(ours.log_prob, theirs.log_prob)


def test_a_folder_needs_only_the_shards_of_the_blocks_asked_for(
    sharded: Path, tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    (sharded / LAST).unlink()
    part = load_model(sharded, blocks=3)
    assert (part.n_blocks, part.whole) == (3, False)
    same_sites(part, tiny_model, prompts)
    refused(sharded, f"no {LAST}, which holds model.layers.4.")
    (sharded / SECOND).unlink()
    refused(sharded, f"no {SECOND}, which holds model.layers.2.", blocks=3)


def test_a_shard_that_is_not_needed_is_not_even_opened(sharded: Path) -> None:
    (sharded / LAST).write_bytes(b"not a safetensors file")
    assert load_model(sharded, blocks=4).n_blocks == 4
    refused(sharded, "cannot be loaded")


def test_a_part_has_no_head_and_no_final_norm(sharded: Path) -> None:
    network = load_model(sharded, blocks=2).network
    keys = set(network.state_dict())
    assert not keys & {"lm_head.weight", "model.norm.weight"}
    assert {key.split(".")[2] for key in keys if "layers" in key} == {"0", "1"}


def test_a_hub_name_needs_only_those_shards_in_its_cache(
    sharded: Path,
    tmp_path: Path,
    tiny_model: LanguageModel,
    prompts: PromptSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (sharded / LAST).unlink()
    shutil.copytree(sharded, repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    part = load_model("someone/tiny", blocks=4)
    assert part.name == "someone/tiny" and not difference(part.fingerprint, tiny_model.fingerprint)
    same_sites(part, tiny_model, prompts)
    refused(Path("someone/tiny"), f"no {LAST}, which holds")


def test_a_shard_without_the_key_that_the_index_promises_is_refused(sharded: Path) -> None:
    weights = load_file(sharded / FIRST)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, sharded / FIRST)
    refused(sharded, "1 missing, first model.layers.1.mlp.up_proj.weight", blocks=2)


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"weight_map": 3}', '{"weight_map": {"model.norm.weight": 1}}']
)
def test_an_index_that_maps_nothing_is_refused(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    refused(sharded, "no weight_map")


def test_an_index_that_is_not_json_is_refused(sharded: Path) -> None:
    (sharded / INDEX).write_text('{"weight_map": ')
    refused(sharded, "cannot be loaded")


def test_a_folder_without_safetensors_is_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    refused(sharded, f"neither {SINGLE} nor {INDEX}")


def test_whole_numbers_are_no_weights(sharded: Path) -> None:
    weights = load_file(sharded / FIRST)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {key: weights[key].to(torch.int8)}, sharded / FIRST)
    refused(sharded, f"1 mismatched, first {key} of dtype I8, not a float", blocks=1)


def test_a_transposed_weight_is_refused_with_both_shapes(sharded: Path) -> None:
    weights = load_file(sharded / FIRST)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {key: weights[key].T.contiguous()}, sharded / FIRST)
    refused(sharded, f"first {key} of shape [128, 352], not [352, 128]", blocks=1)


def test_a_quantised_model_is_refused(sharded: Path) -> None:
    change_config(sharded, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(sharded, "its weights are quantised")


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gpt2", "bert", "mamba"])
def test_another_kind_of_network_is_refused(sharded: Path, kind: str) -> None:
    change_config(sharded, model_type=kind)
    refused(sharded, f"its architecture is '{kind}'")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_runs_as_transformers_runs_it(
    kind: str, tiny_folder: Path, tmp_path: Path, prompts: PromptSet
) -> None:
    folder = tmp_path / kind
    shutil.copytree(tiny_folder, folder)
    change_config(folder, model_type=kind, architectures=None)
    torch.manual_seed(0)
    random: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    random.save_pretrained(folder)
    tokens = torch.as_tensor(prompts.tokens)
    with torch.no_grad():
        hidden = random.eval()(tokens, output_hidden_states=True).hidden_states
    part = load_model(folder, blocks=4)
    sites = [Site(layer, "resid_pre") for layer in range(4)]
    found = record(part, prompts.tokens, sites, np.arange(tokens.shape[1]))
    for site in sites:
        np.testing.assert_allclose(found[site], hidden[site.layer].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 4}, "unexpected, first model.layers.4."),
        ({"num_hidden_layers": 9}, "missing, first model.layers.6."),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "128"}, "hidden_size is '128'"),
        ({"num_attention_heads": 3, "head_dim": None}, "3 heads of 42 on 2 keys"),
        ({"rope_parameters": {"rope_type": "none", "rope_theta": 1e4}}, "cannot be loaded"),
        ({"dtype": "float99"}, "cannot be loaded"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "its architecture is 'own'"),
        ({"vocab_size": 10}, "of shape [1078, 128], not [10, 128]"),
    ],
)
def test_a_config_that_is_not_of_these_weights_is_refused(
    sharded: Path, changes: dict[str, Any], words: str
) -> None:
    change_config(sharded, **changes)
    refused(sharded, words)


def test_a_tied_head_is_the_embedding(tiny_folder: Path, tmp_path: Path, prompts: PromptSet) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / SINGLE)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    untied = load_model(folder)
    where = prompts.positions("pre")
    wanted = answer_probs(untied, prompts.tokens, where).log_prob
    change_config(folder, tie_word_embeddings=True)
    np.testing.assert_array_equal(answer_probs(load_model(folder), prompts.tokens, where).log_prob, wanted)
    del weights["lm_head.weight"]
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    tied = load_model(folder)
    assert tied.network.lm_head.weight is tied.network.model.embed_tokens.weight
    np.testing.assert_array_equal(answer_probs(tied, prompts.tokens, where).log_prob, wanted)


def test_the_dtype_is_the_one_asked_for_and_positions_stay_exact(
    tiny_folder: Path, tiny_model: LanguageModel
) -> None:
    network = load_model(tiny_folder, blocks=2, dtype=torch.bfloat16).network
    assert {x.dtype for x in network.parameters()} == {torch.bfloat16}
    assert network.model.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(
        network.model.rotary_emb.inv_freq, tiny_model.network.model.rotary_emb.inv_freq, rtol=0, atol=0
    )


def test_eager_attention_is_causal_and_equals_sdpa(
    tiny_folder: Path, in_float64: InFloat64, exact_model: LanguageModel, prompts: PromptSet
) -> None:
    eager = in_float64(load_model(tiny_folder, attention="eager"))
    site, where = Site(5, "resid_post"), np.arange(prompts.tokens.shape[1])
    ours, theirs = (record(model, prompts.tokens, [site], where)[site] for model in (eager, exact_model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    cut = record(eager, prompts.tokens[:, :20], [site], where[:20])[site]
    np.testing.assert_allclose(cut, ours[:, :20], rtol=1e-3, atol=1e-3)
    query = prompts.tokens[0, : prompts.positions("pre")[-1] + 1]
    one, other = (Tail(model, query) for model in (eager, exact_model))
    torch.testing.assert_close(one.resid_pre(6), other.resid_pre(6), rtol=1e-3, atol=1e-3)


def test_mlp_in_is_what_the_mlp_reads(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    reads, writes = Site(2, "mlp_in"), Site(2, "mlp_out")
    found = record(tiny_model, prompts.tokens, [reads, writes], prompts.positions("pre"))
    out = tiny_model.network.model.layers[2].mlp(torch.as_tensor(found[reads]))
    np.testing.assert_allclose(out.numpy(), found[writes], rtol=0, atol=1e-5 * np.abs(found[writes]).max())


def test_a_part_has_no_tail(sharded: Path, prompts: PromptSet) -> None:
    with pytest.raises(ModelError, match="only 2 blocks"):
        Tail(load_model(sharded, blocks=2), prompts.tokens[0])
