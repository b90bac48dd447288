"""The same model is known again however it is written and wherever it lies; another never passes for it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from iclens.model import load
from iclens.model.load import (
    INDEX,
    SINGLE,
    LanguageModel,
    _values,
    difference,
    is_fingerprint,
    load_model,
    other_model,
    plain_name,
)

Save = Callable[..., Path]
Change = Callable[[Path], object]


def configured(rewrite: Callable[[str], str]) -> Change:
    """Rewrites config.json as text."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_bytes(rewrite(file.read_text()).encode())

    return change


def keyed(**changes: Any) -> Change:
    """Changes keys of config.json; None takes one away."""

    def rewrite(text: str) -> str:
        return json.dumps({k: v for k, v in (json.loads(text) | changes).items() if v is not None})

    return configured(rewrite)


def old_spelling(text: str) -> str:
    """As transformers 4 wrote it."""
    config = json.loads(text)
    rope = config.pop("rope_parameters")
    return json.dumps(config | {"rope_theta": int(rope["rope_theta"]), "rope_scaling": None})


def weighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Changes the stored tensors."""

    def rewrite(folder: Path) -> None:
        weights = load_file(folder / SINGLE)
        change(weights)
        save_file(weights, folder / SINGLE, metadata={"format": "pt"})

    return rewrite


def as_dtype(dtype: torch.dtype) -> Change:
    return weighted(lambda w: w.update({key: x.to(dtype) for key, x in w.items()}))


def sharded(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    places = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({key: x for key, x in weights.items() if places[key] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


SAME: dict[str, Change] = {
    "a copy": lambda folder: None,
    "CRLF": configured(lambda text: text.replace("\n", "\r\n")),
    "indented": configured(lambda text: json.dumps(json.loads(text), indent=7)),
    "other order of keys": configured(lambda text: json.dumps(dict(reversed(json.loads(text).items())))),
    "what no number depends on": keyed(
        _name_or_path="C:\\models\\x",
        transformers_version="4.1",
        torch_dtype="float16",
        use_cache=False,
        max_position_embeddings=512,
        architectures=None,
        bos_token_id=3,
        attention_dropout=0.1,
    ),
    "rope as it was written before": configured(old_spelling),
    "shards": sharded,
    "bfloat16": as_dtype(torch.bfloat16),
    "float64": as_dtype(torch.float64),
    "rotation stored with the weights": weighted(
        lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    ),
}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("name", SAME)
def test_it_is_the_same_model(saved_model: Save, tmp_path: Path, kind: str, name: str) -> None:
    folder = saved_model(kind)
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / "another-name"))
    SAME[name](copy)
    ours, theirs = load_model(folder), load_model(copy)
    assert ours.fingerprint == theirs.fingerprint and is_fingerprint(ours.fingerprint)
    assert other_model("any name", ours.fingerprint, theirs) == ""


def nudged(key: str, by: float = 0.05) -> Change:
    """One number of one tensor is another."""
    return weighted(lambda w: w[key].view(-1)[-1].add_(by))


OTHER: dict[str, tuple[Change, str]] = {
    "the embedding": (nudged("model.embed_tokens.weight"), "another embedding"),
    "a projection": (nudged("model.layers.1.self_attn.k_proj.weight"), "other weights in block 1"),
    "an MLP": (nudged("model.layers.2.mlp.down_proj.weight"), "other weights in block 2"),
    "a block's norm": (nudged("model.layers.0.input_layernorm.weight"), "other weights in block 0"),
    "the final norm": (nudged("model.norm.weight"), "another final norm or head"),
    "the head": (nudged("lm_head.weight"), "another final norm or head"),
    "the rotation": (keyed(rope_parameters={"rope_type": "default", "rope_theta": 77.0}), "another config"),
    "the window": (keyed(model_type="mistral", sliding_window=3), "another config"),
    "the activation": (keyed(hidden_act="gelu"), "another config"),
    "the norm's epsilon": (keyed(rms_norm_eps=0.5), "another config"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_it_is_another_model_of_the_same_name(saved_model: Save, tmp_path: Path, name: str) -> None:
    folder, (change, words) = saved_model(), OTHER[name]
    copy = Path(shutil.copytree(folder, tmp_path / "fine-tuned" / folder.name))
    change(copy)
    ours, theirs = load_model(folder), load_model(copy)
    assert plain_name(ours.name) == plain_name(theirs.name)
    assert difference(ours.fingerprint, theirs.fingerprint) == words
    assert words in other_model(ours.name, ours.fingerprint, theirs)


def test_two_of_one_shape_and_one_more_block_are_told_apart(saved_model: Save) -> None:
    one, two = (load_model(saved_model(seed=seed)) for seed in (0, 1))
    assert difference(one.fingerprint, two.fingerprint) == "another embedding"
    config, embedding, blocks, end = one.fingerprint.split(":")
    longer = ":".join([config, embedding, f"{blocks}.abcdef", end])
    assert (
        difference(one.fingerprint, longer)
        == difference(longer, one.fingerprint)
        == "another number of blocks"
    )


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_part_is_the_same_model_as_the_whole(saved_model: Save, blocks: int) -> None:
    folder = saved_model()
    whole, part = load_model(folder), load_model(folder, blocks=blocks, dtype=torch.bfloat16)
    assert part.fingerprint != whole.fingerprint
    for ours, theirs in ((whole, part), (part, whole), (part, part)):
        assert other_model("x", ours.fingerprint, theirs) == ""
    nudged("model.layers.0.mlp.up_proj.weight")(folder)
    assert "block 0" in other_model("x", part.fingerprint, load_model(folder))


def test_a_hub_name_is_its_own_snapshot(
    saved_model: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the hub's cache as it lies on disk: snapshots that link to blobs."""
    folder, repository = saved_model(), tmp_path / "cache" / "models--someone--Tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    for made in (repository / "refs", repository / "blobs", snapshot):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, repository / "blobs" / f"{number:040}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040}"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    by_name, by_path, copied = load_model("someone/Tiny"), load_model(snapshot), load_model(folder)
    assert by_name.fingerprint == by_path.fingerprint == copied.fingerprint
    for name in ("someone/Tiny", str(snapshot), "C:\\models\\tiny"):
        assert other_model(name, None, by_path) == other_model(name, None, by_name) == ""


@pytest.mark.parametrize("made_with", [None, "", "hub", "0123456789abcdef", 7, "abcdef:abcdef"])
def test_names_are_a_hint_where_there_is_no_fingerprint(saved_model: Save, made_with: object) -> None:
    model = load_model(saved_model(name="Meta-Llama_3"))
    assert other_model("somewhere/llama-3", made_with, model) == other_model(None, made_with, model) == ""
    assert "made for 'llama-4'" in other_model("llama-4", made_with, model)


@pytest.mark.parametrize(("folder", "name", "same"), [
    ("Mistral-7B-v0.1", "mistral-7b", True), ("Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", True),
    ("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.1", True), ("llama-7b", "llama-7b-hf", True),
    ("Llama-2-7b-hf", "Llama-2-7b", True), ("Mistral-7B-v0.3", "mistral-7b", False),
    ("mistral-7b-instruct", "mistral-7b", False), ("Llama-2-7b-chat-hf", "Llama-2-7b", False),
])  # fmt: skip
def test_short_names_of_transformer_lens_are_names_of_the_model(
    saved_model: Save, folder: str, name: str, same: bool
) -> None:
    words = other_model(name, None, load_model(saved_model(name=folder)))
    assert same == (words == "") and (same or f"made for '{name}'" in words)


def test_what_a_config_was_made_from_is_no_hint(saved_model: Save) -> None:
    folder = saved_model(name="renamed")
    keyed(_name_or_path="meta-llama/Llama-2-7b-hf")(folder)  # as fine-tunes have it
    words = other_model("meta-llama/Llama-2-7b-hf", None, load_model(folder))
    assert "only the names can be compared" in words and "a link to its folder" in words
    link = folder.parent / "Llama-2-7b-hf"
    link.symlink_to(folder, target_is_directory=True)
    assert other_model("meta-llama/Llama-2-7b-hf", None, load_model(link)) == ""


def test_a_float16_copy_counts_as_another_model_and_the_words_say_so(
    saved_model: Save, tmp_path: Path
) -> None:
    folder = saved_model()
    copy = Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))
    as_dtype(torch.float16)(copy)
    words = other_model("x", load_model(folder).fingerprint, load_model(copy))
    assert words.endswith("(a float16 copy counts as another model)")
    keyed(hidden_act="gelu")(copy)
    assert "float16 copy" not in other_model("x", load_model(folder).fingerprint, load_model(copy))


def test_a_large_tensor_is_told_apart_by_runs_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WHOLE", 640)
    monkeypatch.setattr(load, "RUNS", 64)
    numbers = torch.arange(10_000).div(40, rounding_mode="floor")  # 0 … 249, exact in bfloat16
    read = _values(numbers)
    assert len(read) == 640 and read.dtype == torch.bfloat16
    assert (read[0], read[-1]) == (0, 249)
    assert np.diff(read.float().numpy()).max() <= 4  # no stretch of more than 160 is passed over


def test_moving_the_network_changes_nothing(saved_model: Save) -> None:
    model = load_model(saved_model())
    again = LanguageModel("x", model.network.to(torch.bfloat16), model.tokenizer, 3, True)
    assert again.fingerprint == replace(model).fingerprint == load_model(model.name).fingerprint
