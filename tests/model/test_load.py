"""Only what is needed is read: by key, from shards that may be absent, with the tokenizer's own BOS."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from iclens.core import HOOKS, ModelError, Site, SiteError, TokenizerError
from iclens.model.load import INDEX, SINGLE, LanguageModel, difference, load_model, load_tokenizer
from iclens.model.run import answer_probs, record
from iclens.model.tail import Tail
from iclens.prompts.build import PromptSet
from iclens.prompts.render import bos_id, check_six_tokens
from iclens.seed_post.verdicts import replicate_seed_post

from ..conftest import InFloat64


def test_a_truncated_model_gives_no_answers_and_no_deeper_sites(
    tiny_folder: Path, prompts: PromptSet
) -> None:
    part = load_model(tiny_folder, blocks=2)
    with pytest.raises(ModelError, match="only 2 blocks"):
        answer_probs(part, prompts.tokens, prompts.positions("pre"))
    with pytest.raises(SiteError, match="blocks 0 to 1"):
        record(part, prompts.tokens, [Site(2, "resid_pre")], prompts.positions("pre"))


@pytest.mark.parametrize("blocks", [0, -1, 99])
def test_an_impossible_number_of_blocks_is_refused(tiny_folder: Path, blocks: int) -> None:
    with pytest.raises(ModelError, match="blocks of"):
        load_model(tiny_folder, blocks=blocks)


def test_a_loaded_model_is_frozen(tiny_model: LanguageModel) -> None:
    assert not tiny_model.network.training
    assert not any(p.requires_grad for p in tiny_model.network.parameters())


def test_answers_are_numbers_first_then_new_words_once(tiny_model: LanguageModel) -> None:
    answers, ids = tiny_model.answer_space(("hot", "7", "cold", "hot"))
    assert answers[:1000] == tuple(map(str, range(1000)))
    assert answers[1000:] == ("hot", "cold")
    assert [tiny_model.tokenizer.decode([int(i)]) for i in ids] == list(answers)


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
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
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


Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, of: Path, **edits: Edit) -> Path:
    """The model `of` with other JSON files; `config=` edits config.json."""
    shutil.copytree(of, folder)
    for name, edit in edits.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    return folder


def nameless(content: dict[str, Any]) -> None:
    """No BOS is named, and none is added."""
    content.pop("bos_token", None)
    content["post_processor"] = None


def test_a_model_whose_tokenizer_splits_digits_is_loaded(digit_folder: Path) -> None:
    model = load_model(digit_folder, blocks=1)
    assert len(model.tokenizer("28", add_special_tokens=False).input_ids) == 2
    assert bos_id(model.tokenizer) == 0
    with pytest.raises(TokenizerError, match=r"\['\(', '2', '8', ',', 'Ġ', '5', '9', '\)', 'Ċ'\]"):
        check_six_tokens(model.tokenizer)
    assert model.answer_space()[0] == (), "numbers are no single tokens, and so are not read"
    answers, ids = model.answer_space(("59", "7"))
    assert (answers, model.tokenizer.convert_ids_to_tokens(ids.tolist())) == (("59", "7"), ["5", "7"])
    with pytest.raises(TokenizerError, match="answers '59' and '5': both begin with the token '5'"):
        model.answer_space(("59", "7", "5"))
    assert model.answer_space(("59", "7", "5"), shared=True)[1].tolist() == [*ids.tolist(), ids[0].item()]


def test_what_needs_six_tokens_refuses_it_before_a_weight_is_read(
    digit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclens.model.load.read_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(TokenizerError) as caught:
        replicate_seed_post(str(digit_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        (lambda content: content.update(bos_token_id=1), 1),
        (lambda content: content.update(bos_token_id=0), 0),
        (lambda content: content.update(bos_token_id=None), None),
        (lambda content: content.update(bos_token_id=-1), None),
        (lambda content: content.pop("bos_token_id"), None),
    ],
)  # fmt: skip
def test_the_config_names_bos_where_the_tokenizer_does_not(
    config: Edit, bos: int | None, tiny_folder: Path, tmp_path: Path
) -> None:
    """The class of the config has a default, 1, that the file did not state and that counts for nothing."""
    folder = edited(tmp_path / "m", tiny_folder, config=config, tokenizer=nameless, tokenizer_config=nameless)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_token_id == bos == bos_id(tokenizer)
    if bos is None:
        with pytest.raises(TokenizerError, match="has no BOS"):
            check_six_tokens(tokenizer)
    else:
        check_six_tokens(tokenizer)


def test_the_tokenizers_own_bos_goes_before_the_configs(tiny_folder: Path, tmp_path: Path) -> None:
    other = {"bos_token_id": 7}
    folder = edited(tmp_path / "one", tiny_folder, config=lambda content: content.update(other))
    assert load_tokenizer(folder).bos_token_id == 0
    folder = edited(
        tmp_path / "two", tiny_folder, tokenizer_config=lambda content: content.update(bos_token="<unk>")
    )
    assert load_tokenizer(folder).bos_token_id == 0, "what it puts before a text, not what it names"


def test_a_bos_that_is_no_token_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = edited(
        tmp_path / "m", tiny_folder, config=lambda content: content.update(bos_token_id=128_000),
        tokenizer=nameless, tokenizer_config=nameless,
    )  # fmt: skip
    with pytest.raises(ModelError, match="its BOS is token 128000, and its tokens are 0 to 1077") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
