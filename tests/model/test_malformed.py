"""Malformed and unusual model folders: a line that names the file and the cause, or a model that runs.

Every case is tried on `load_model`, and on the shape that plans are made from; neither may give a traceback,
nor a number that is not finite.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iclens.core import IclensError
from iclens.model.load import INDEX, SINGLE, load_model
from iclens.model.run import answer_probs
from iclens.model.shape import read_shape

Spoil = Callable[[Path], object]
HEAD, ROTATION = "lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"
EIGHT = torch.float8_e4m3fn
WHOLE_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "head_dim",
)  # fmt: skip
NO_SIZES: dict[str, Any] = {
    "zero": 0, "negative": -4, "a fraction": 8.5, "text": "32", "true": True, "a list": [32], "a mapping": {},
}  # fmt: skip


def keyed(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def without_key(key: str) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[key]
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


def written(file: str, content: bytes) -> Spoil:
    return lambda folder: (folder / file).write_bytes(content)


def gone(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


def cut(file: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(share * len(whole))])

    return spoil


def weighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / SINGLE)
        change(weights)
        save_file(weights, folder / SINGLE, metadata={"format": "pt"})

    return spoil


def indexed(index: Any, *, single: bool = False) -> Spoil:
    """An index of shards instead of, or beside, the single file."""

    def spoil(folder: Path) -> None:
        (folder / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
        if not single:
            (folder / SINGLE).unlink()

    return spoil


def renamed_keys(weights: dict[str, torch.Tensor]) -> None:
    held = dict(weights)
    weights.clear()
    weights.update({key.removeprefix("model."): x for key, x in held.items()})


def put(key: str, value: float) -> Spoil:
    return weighted(lambda w: w[key].view(-1)[0].fill_(value))


CONFIGS: dict[str, tuple[Spoil, str]] = {
    **{
        f"{key} is {name}": (keyed(**{key: value}), f"{key} is {value!r}")
        for key in WHOLE_KEYS for name, value in NO_SIZES.items()
    },
    **{f"no {key}": (without_key(key), word) for key, word in (
        ("hidden_size", "hidden_size is None"), ("vocab_size", "vocab_size is None"),
        ("model_type", "its architecture is 'None'"),
    )},
    **{f"model_type {kind!r}": (keyed(model_type=kind), f"its architecture is '{kind}'") for kind in (
        "", "GPT2", "Llama", 7, None, [], "qwen2_moe", "gemma", "gemma3", "gpt_neo", "bert", "mamba",
    )},
    "no config": (gone("config.json"), "there is none"),
    "an empty config": (written("config.json", b""), "it is not JSON"),
    "half a config": (cut("config.json", 0.5), "it is not JSON"),
    "a config that is a list": (written("config.json", b"[1]"), "it is no mapping"),
    "a config that is a number": (written("config.json", b"7"), "it is no mapping"),
    **{
        f"a config in {name}": (written("config.json", "{}".encode(name)), "Save it as UTF-8 without a")
        for name in ("utf-16", "utf-8-sig", "utf-32")
    },
    "a config of brackets": (written("config.json", b"[" * 20_000), "it is not JSON"),
    "a config that is HTML": (written("config.json", b"<html>404</html>"), "it is not JSON"),
    "heads that do not divide": (keyed(num_attention_heads=3, head_dim=None), "3 heads of 10 on 2 keys"),
    "keys that do not divide": (keyed(num_key_value_heads=3), "multiple of num_key_value_heads"),
    "an odd head": (keyed(head_dim=7), "head_dim even"),
    "an unknown activation": (keyed(hidden_act="swash"), "hidden_act 'swash'"),
    "an activation that is a number": (keyed(hidden_act=3), "cannot be loaded"),
    "an epsilon in words": (keyed(rms_norm_eps="small"), "cannot be loaded"),
    "a tie in words": (keyed(tie_word_embeddings="yes"), "cannot be loaded"),
    "a rotation of unknown type": (keyed(rope_parameters={"rope_type": "none", "rope_theta": 1e4}), "cannot"),
    "a rotation that is a list": (keyed(rope_parameters=[1]), "cannot be loaded"),
    "a rotation by layers": (keyed(rope_parameters={"full_attention": {"rope_theta": 1.0}}), "by layer"),
    "a rotation without factor": (keyed(rope_parameters={"rope_type": "linear", "rope_theta": 1}), "cannot"),
    "a rotation of half a head": (keyed(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "a rotation of a quarter": (
        keyed(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25}), "factor is 0.25",
    ),
    "a scaled rotation of half a head": (
        keyed(rope_scaling={"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}), "partial_rotary",
    ),
    **{f"layers of {kinds}": (keyed(layer_types=kinds, sliding_window=None), "layer_types") for kinds in (
        ["full_attention", "sliding_attention"], ["sliding_attention"] * 3, ["chunked_attention"] * 3,
        ["full_attention"], "full_attention", [], ["full_attention", "sliding_attention", "full_attention"],
    )},
    **{
        f"a window of {size!r}": (keyed(model_type="mistral", sliding_window=size), f"window is {size!r}")
        for size in (0, -3, "wide")
    },
    "quantised": (keyed(quantization_config={"quant_method": "bitsandbytes"}), "its weights are quantised"),
    "a dtype that is none": (keyed(dtype="float99"), "cannot be loaded"),
    "more blocks than weights": (keyed(num_hidden_layers=9), "missing, first model.layers.3."),
    "fewer blocks than weights": (keyed(num_hidden_layers=2), "unexpected, first model.layers.2."),
    "another width": (keyed(hidden_size=64), "mismatched"),
    "another vocabulary": (keyed(vocab_size=10), "of shape [1078, 32], not [10, 32]"),
    "biases that are not there": (keyed(attention_bias=True), "missing"),
    "code of its own": (keyed(model_type="own", auto_map={"AutoConfig": "own.Config"}), "is 'own'"),
}  # fmt: skip
"""What is spoilt → how, and words of the refusal."""
UP = "model.layers.1.mlp.up_proj.weight"
FILES: dict[str, tuple[Spoil, str]] = {
    "no weights": (gone(SINGLE), f"neither {SINGLE} nor {INDEX}"),
    "empty weights": (written(SINGLE, b""), "cannot be loaded"),
    "weights cut in their header": (cut(SINGLE, 0.01), "cannot be loaded"),
    "weights cut short": (cut(SINGLE, 0.9), "cannot be loaded"),
    "weights that are text": (written(SINGLE, b"version 1\noid sha256:0\nsize 9\n"), "cannot be loaded"),
    "a header that is no JSON": (written(SINGLE, (8).to_bytes(8, "little") + b"notajson"), "cannot be load"),
    "a header without end": (written(SINGLE, (2**60).to_bytes(8, "little") + b"{}"), "cannot be loaded"),
    "a missing tensor": (weighted(lambda w: w.pop(UP)), f"1 missing, first {UP}"),
    "a missing block": (
        weighted(lambda w: [w.pop(key) for key in list(w) if ".1." in key]), "missing, first model.layers.1.",
    ),
    "no embedding": (weighted(lambda w: w.pop("model.embed_tokens.weight")), "1 missing"),
    "no head": (weighted(lambda w: w.pop(HEAD)), "1 missing, first lm_head"),
    "one tensor too many": (weighted(lambda w: w.update({"more": torch.ones(2)})), "unexpected, first more"),
    "names without their prefix": (weighted(renamed_keys), "missing"),
    "no tensor at all": (weighted(lambda w: w.clear()), "missing"),
    "a transposed tensor": (
        weighted(lambda w: w.update({UP: w[UP].T.contiguous()})), f"{UP} of shape [32, 40], not [40, 32]",
    ),
    "whole numbers": (weighted(lambda w: w.update({UP: w[UP].char()})), f"{UP} of dtype I8, not a float"),
    "eight-bit floats": (weighted(lambda w: w.update({k: x.to(EIGHT) for k, x in w.items()})), "not a float"),
    "an index of nothing": (indexed({}), "no weight_map"),
    "an index that is a list": (indexed([]), "no weight_map"),
    "an index that is no JSON": (indexed("{"), "cannot be loaded"),
    "an index to nowhere": (indexed({"weight_map": {"model.norm.weight": "model-1.safetensors"}}), "missing"),
    "an index of numbers": (indexed({"weight_map": {"model.norm.weight": 3}}), "no weight_map"),
    "an empty index beside the weights": (indexed({"weight_map": {}}, single=True), "missing"),
    "no tokenizer": (gone("tokenizer.json"), "tokenizer"),
    "an empty tokenizer": (written("tokenizer.json", b""), "tokenizer"),
    "half a tokenizer": (cut("tokenizer.json", 0.5), "tokenizer"),
    "a tokenizer that is a list": (written("tokenizer.json", b"[]"), "tokenizer"),
    "a tokenizer config that is no JSON": (written("tokenizer_config.json", b"{"), "tokenizer"),
    "NaN as embedding": (weighted(lambda w: w["model.embed_tokens.weight"].fill_(torch.nan)), "not finite"),
    "NaN in a block": (put("model.layers.1.self_attn.o_proj.weight", float("nan")), "not finite"),
    "NaN in the head": (put(HEAD, float("nan")), "not finite"),
}  # fmt: skip


def in_one_line(act: Callable[[], object], folder: Path) -> str:
    with pytest.raises(IclensError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text and len(text) < 900, text
    assert caught.value.found and caught.value.remedy
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_refused_in_one_line(saved_model: Callable[..., Path], name: str) -> None:
    folder, (spoil, words) = saved_model(name="m"), CONFIGS[name]
    spoil(folder)
    text = in_one_line(lambda: load_model(folder), folder)
    assert words in text and ("config.json" in text or "weights" in text), text
    try:
        read_shape(folder)
    except IclensError as refusal:
        assert "config.json" in str(refusal) and "\n" not in str(refusal)


@pytest.mark.parametrize("name", FILES)
def test_files_are_refused_in_one_line(saved_model: Callable[..., Path], name: str) -> None:
    folder, (spoil, words) = saved_model(name="m"), FILES[name]
    spoil(folder)

    def run() -> None:
        answer_probs(load_model(folder), np.ones((2, 9), dtype=np.int64), np.array([3]))

    assert words in (text := in_one_line(run, folder)), text


UNUSUAL: dict[str, Spoil] = {
    "head_dim is null": keyed(head_dim=None),
    "a key that nobody knows": keyed(surprise=[1, {"a": None}]),
    "a tokenizer of unknown class": written("tokenizer_config.json", b'{"tokenizer_class": "NoSuch"}'),
    "no architectures": keyed(architectures=None),
    "dtype under its old name": lambda f: (without_key("dtype")(f), keyed(torch_dtype="float32")(f)),
    "float16 weights": weighted(lambda w: w.update({key: x.half() for key, x in w.items()})),
    "no generation config": gone("generation_config.json"),
    "old rotation buffers": weighted(lambda w: w.update({ROTATION: torch.ones(4)})),
    "one position": keyed(max_position_embeddings=9),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_and_right_is_read(saved_model: Callable[..., Path], name: str) -> None:
    folder = saved_model(name="m")
    UNUSUAL[name](folder)
    found = answer_probs(load_model(folder), np.ones((2, 9), dtype=np.int64), np.array([3]))
    assert np.isfinite(found.log_prob).all()
    assert read_shape(folder).n_blocks == 3


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "C:\\models\\Llama", "", "a/b/c", "~/nowhere", "./x"])
def test_a_name_of_no_folder_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (load_model, read_shape):
        with pytest.raises(IclensError) as caught:
            act(name)
        assert "\n" not in str(caught.value)


def test_there_are_enough() -> None:
    assert len(CONFIGS) + len(FILES) >= 120
