"""GGUF files of known weights: converted, they compute the same; what would be guessed is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, dequantize, get_tensor_name_map, quantize
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from typer.testing import CliRunner

import iclens.model.gguf
from iclens import convert_gguf, load_model
from iclens.cli import app
from iclens.core import ModelError
from iclens.model.load import load_tokenizer
from iclens.model.shape import read_shape

D_MODEL, N_HEADS, N_KV, D_HEAD, D_MLP, N_BLOCKS = 64, 4, 2, 16, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ", "Ċ Ċ"]
UNREACHABLE = "qzq"
"""A token that no merge makes."""
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), UNREACHABLE]
METADATA: dict[str, Any] = {
    "general.name": "Tiny", "llama.context_length": 128, "llama.embedding_length": D_MODEL,
    "llama.block_count": N_BLOCKS, "llama.feed_forward_length": D_MLP, "llama.attention.head_count": N_HEADS,
    "llama.attention.head_count_kv": N_KV, "llama.rope.freq_base": 30000.0,
    "llama.rope.dimension_count": D_HEAD, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": len(TOKENS), "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
    "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0,
}  # fmt: skip
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "th", "he",
          "▁t", "▁the", "<mask>"]  # fmt: skip
SENTENCEPIECE: dict[str, Any] = {
    "llama.vocab_size": len(PIECES), "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.merges": None,
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0] * 4 + [-2.0, -3.0, -1.0, -4.0, -9.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 9,
    "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip
Q8 = GGMLQuantizationType.Q8_0
Write = Callable[..., Path]


def network(kind: str = "llama", **changes: Any) -> Any:
    """A random model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **({
        "vocab_size": len(TOKENS), "hidden_size": D_MODEL, "intermediate_size": D_MLP,
        "num_hidden_layers": N_BLOCKS, "num_attention_heads": N_HEADS, "num_key_value_heads": N_KV,
        "head_dim": D_HEAD, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 30000.0,
        "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None,
    } | changes))  # fmt: skip
    made = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for key, values in made.named_parameters():
        if "norm" in key or key.endswith("bias"):
            values += 0.3 * torch.randn_like(values)
    return made


def as_gguf(made: Any, architecture: str = "llama") -> dict[str, np.ndarray]:
    """A network's tensors as they stand in GGUF: Llama's queries and keys with interleaved rows."""
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names, tensors = get_tensor_name_map(number, made.config.num_hidden_layers), {}
    for key, values in made.state_dict().items():
        if key == "lm_head.weight" and made.config.tie_word_embeddings:
            continue
        tensor = values.numpy()
        for name, heads in (("q_proj", N_HEADS), ("k_proj", N_KV)):
            if name in key and architecture == "llama":  # rows [head, half, pair] become [head, pair, half]
                tensor = tensor.reshape(heads, 2, D_HEAD // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        if architecture == "gemma3" and "norm" in key:
            tensor = tensor + 1
        module, _, suffix = key.rpartition(".")
        tensors[f"{names.get_name(module)}.{suffix}"] = tensor
    return tensors


def rounded(made: Any) -> Any:
    """A network whose matrices are what Q8_0 keeps of them."""
    for values in made.parameters():
        if values.dim() == 2:
            values.copy_(torch.from_numpy(dequantize(quantize(values.numpy(), Q8), Q8)))
    return made


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a GGUF file of a network; a key or tensor that is given as None is left out."""

    def add(writer: GGUFWriter, key: str, value: Any) -> None:
        kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)

    def made(
        of: Any = None, name: str = "tiny.gguf", *, quantised: bool = False, architecture: str = "llama",
        tensors: dict[str, Any] | None = None, **metadata: Any,
    ) -> Path:  # fmt: skip
        writer = GGUFWriter(tmp_path / name, architecture)
        for key, value in (METADATA | {k.replace("__", "."): v for k, v in metadata.items()}).items():
            if value is not None:
                add(writer, key.replace("llama.", f"{architecture}."), value)
        stored = as_gguf(of or network(), architecture if of else "llama")
        for key, value in (stored | (tensors or {})).items():
            if value is not None and quantised and value.ndim == 2:
                writer.add_tensor(key, quantize(value, Q8), raw_dtype=Q8)
            elif value is not None:
                writer.add_tensor(key, np.ascontiguousarray(value, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "iclens" / "gguf"


def logits(of: Any) -> torch.Tensor:
    tokens = torch.from_numpy(np.random.default_rng(1).integers(2, len(TOKENS), (2, 90)))
    with torch.no_grad():
        return of(tokens).logits


def refused(act: Callable[[], object], *words: str) -> None:
    with pytest.raises(ModelError) as raised:
        act()
    line = str(raised.value)
    assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_converted_model_computes_what_its_tensors_do(
    write: Write, tmp_path: Path, tied: bool, quantised: bool
) -> None:
    reference = network(tie_word_embeddings=tied)
    file = write(reference, quantised=quantised)
    folder = convert_gguf(file, tmp_path / "made")
    wanted = logits(rounded(reference) if quantised else reference)
    torch.testing.assert_close(logits(load_model(folder).network), wanted)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), wanted)
    card = json.loads((folder / "converted.json").read_text())
    matrices = 7 * N_BLOCKS + (1 if tied else 2)
    kinds = {"Q8_0": matrices, "F32": 2 * N_BLOCKS + 1} if quantised else {"F32": matrices + 2 * N_BLOCKS + 1}
    assert (card["gguf"], card["tensor_types"]) == ("tiny.gguf", kinds)


QWEN = {"llama.rope.dimension_count": None, "tokenizer.ggml.pre": "qwen2"}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"num_hidden_layers": 1}, {"llama.block_count": 1}),
    "qwen2": ({}, QWEN),
    "qwen3": (
        {"head_dim": 128},
        QWEN | {"llama.attention.key_length": 128, "llama.attention.value_length": 128},
    ),
    "gemma3": (
        {"num_hidden_layers": 7, "head_dim": 256, "vocab_size": len(PIECES), "sliding_window": 8},
        SENTENCEPIECE
        | {"llama.block_count": 7, "llama.attention.key_length": 256, "llama.rope.dimension_count": None}
        | {"llama.attention.sliding_window": 8, "tokenizer.ggml.add_space_prefix": False},
    ),
}
"""Architecture → changes of the network, and what its file states."""


@pytest.mark.parametrize("architecture", iclens.model.gguf.READABLE)
def test_each_architecture_computes_what_its_tensors_do(
    write: Write, tmp_path: Path, architecture: str
) -> None:
    changes, stated = OTHERS[architecture]
    reference = network(iclens.model.gguf.MODEL_TYPES[architecture], **changes)
    folder = convert_gguf(write(reference, architecture=architecture, **stated), tmp_path / "made")
    found = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(found), logits(reference))


def test_gemma_3_of_other_heads_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iclens.model.gguf, "READABLE", ("gemma3",))
    file = write(architecture="gemma3", **{"llama.attention.key_length": 128})
    refused(lambda: convert_gguf(file, tmp_path / "made"), "its heads are 128 wide", "256")


def test_config_is_what_the_file_states(write: Write, tmp_path: Path) -> None:
    config = json.loads((convert_gguf(write(), tmp_path / "made") / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]) == (1e-5, 30000.0)
    assert (config["max_position_embeddings"], config["dtype"]) == (128, "float32")
    assert "quantization_config" not in config


def test_rotation_of_llama_3_is_found_by_its_factors(write: Write, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 30000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    reference = network(rope_parameters=rope)
    plain, scaled = (n.model.rotary_emb.inv_freq.numpy() for n in (network(), reference))
    assert (plain / scaled).max() > 31  # so that ignoring them shows
    factors = {"rope_freqs.weight": plain / scaled}
    found = load_model(convert_gguf(write(reference, tensors=factors), tmp_path / "made"))
    assert found.network.config.rope_parameters == rope
    torch.testing.assert_close(logits(found.network), logits(reference))
    other = write(tensors={"rope_freqs.weight": np.linspace(1, 3, D_HEAD // 2)})
    refused(lambda: convert_gguf(other, tmp_path / "other"), "rope_freqs.weight", "Llama 3")


# ----------------------------------------------------------------------------------------- tokenizers


def test_text_is_split_as_the_file_says_and_comes_back(write: Write, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(write(), tmp_path / "made"))
    assert len(tokenizer) == len(TOKENS)
    text = "<|im_start|>(28, 59)\n the café\t東京  5\n\n6"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[0] == 1
    assert tokenizer.tokenize("the  5\n\n6 the") == ["t", "he", "ĠĠ", "5", "ĊĊ", "6", "Ġthe"]


@pytest.mark.parametrize(
    ("split", "stated", "puts_it"),
    [("smollm", None, None), ("smollm", False, False), ("smollm", True, True), ("llama-bpe", None, True),
     ("llama-bpe", False, False)],
)  # fmt: skip
def test_bos_is_put_where_the_file_says(
    write: Write, tmp_path: Path, split: str, stated: bool | None, puts_it: bool | None
) -> None:
    file = write(tokenizer__ggml__pre=split, tokenizer__ggml__add_bos_token=stated)
    folder = convert_gguf(file, tmp_path / "made")
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved.get("add_bos_token") == puts_it
    assert (AutoTokenizer.from_pretrained(folder)("the")["input_ids"][0] == 1) == bool(puts_it)


def test_whole_pieces_are_tokens_in_llama_3(write: Write, tmp_path: Path) -> None:
    tokens = ["<|begin|>", *TOKENS[1:]]  # without the token that transformers would add to them
    for split, found in (("llama-bpe", [UNREACHABLE]), ("smollm", list(UNREACHABLE))):
        file = write(tokenizer__ggml__pre=split, tokenizer__ggml__tokens=tokens)
        tokenizer = AutoTokenizer.from_pretrained(convert_gguf(file, tmp_path / split))
        assert tokenizer.tokenize(UNREACHABLE) == found
        assert len(tokenizer) == len(tokens)


def test_sentencepiece_merges_by_score(write: Write, tmp_path: Path) -> None:
    reference = network(vocab_size=len(PIECES))
    tokenizer = AutoTokenizer.from_pretrained(
        convert_gguf(write(reference, **SENTENCEPIECE), tmp_path / "made")
    )
    assert tokenizer.tokenize("the tth5") == ["▁the", "▁t", "th", "<0x35>"]
    assert tokenizer("the")["input_ids"][0] == 1
    assert tokenizer.decode(tokenizer("the é\n")["input_ids"], skip_special_tokens=True) == "the é\n"
    file = write(reference, **SENTENCEPIECE, tokenizer__ggml__add_space_prefix=False)
    refused(lambda: convert_gguf(file, tmp_path / "other"), "add_space_prefix is False")


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.rope.freq_base": None}, ["no llama.rope.freq_base"]),
        ({"llama.context_length": None}, ["no llama.context_length"]),
        ({"llama.attention.layer_norm_rms_epsilon": None}, ["epsilon is None"]),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, ["epsilon is 0.0"]),
        ({"llama.vocab_size": len(TOKENS) + 1}, ["264 tokens", "265"]),
        (
            {"llama.vocab_size": None, "tokenizer.ggml.tokens": TOKENS[:-1]},
            ["token_embd.weight", "264", "263"],
        ),
        ({"tokenizer.ggml.tokens": None}, ["0 tokens"]),
        ({"llama.attention.head_count": 8}, ["attn_q.weight", "[64, 64]", "[128, 64]"]),
        ({"llama.attention.head_count_kv": 4}, ["attn_k.weight", "[32, 64]", "[64, 64]"]),
        ({"llama.attention.head_count": 3}, ["not a multiple", "heads (3)"]),
        ({"llama.attention.key_length": 32}, ["key_length is 32", "16 wide"]),
        ({"llama.block_count": 3}, ["no tensor blk.2."]),
        ({"llama.block_count": 1}, ["a tensor more, blk.1."]),
        ({"tensors": {"blk.0.attn_q.bias": np.zeros(D_MODEL)}}, ["a tensor more, blk.0.attn_q.bias"]),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, ["no tensor blk.1.ffn_up.weight"]),
        ({"llama.rope.scaling.type": "linear"}, ["llama.rope.scaling.type is linear"]),
        ({"llama.expert_count": 8}, ["llama.expert_count is 8"]),
        ({"llama.attention.sliding_window": 64}, ["llama.attention.sliding_window is 64"]),
        ({"tokenizer.ggml.pre": "viking"}, ["'viking'", "smollm"]),
        ({"tokenizer.ggml.pre": None}, ["'None'", "smollm"]),
        ({"tokenizer.ggml.model": "bert"}, ["'bert'"]),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], TOKENS[5]]}, ["264 tokens", "263"]),
        ({"architecture": "mamba"}, ["architecture is 'mamba'", "llama"]),
    ],
)
def test_what_would_be_guessed_or_ignored_is_refused(
    write: Write, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    file = write(**changes)
    refused(lambda: convert_gguf(file, tmp_path / "made"), "tiny.gguf", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_neutral_metadata_is_not(write: Write, tmp_path: Path) -> None:
    neutral = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.attention.key_length": 16}
    assert load_model(convert_gguf(write(**neutral), tmp_path / "made")).n_blocks == N_BLOCKS


def test_damaged_file_is_refused_in_a_line(write: Write, tmp_path: Path) -> None:
    whole = write().read_bytes()
    for name, content in (("empty", b""), ("text", b"no model\n" * 99), ("cut", whole[: len(whole) // 2]),
                          ("header", whole[:200])):  # fmt: skip
        (tmp_path / f"{name}.gguf").write_bytes(content)
        refused(lambda name=name: load_model(tmp_path / f"{name}.gguf"), f"{name}.gguf", "cannot be read")
    refused(lambda: convert_gguf(tmp_path / "none.gguf", tmp_path / "made"), "No such file")
    refused(lambda: load_model(tmp_path / "none.gguf"), "no such folder")


def test_output_that_holds_anything_is_left_alone(write: Write, tmp_path: Path) -> None:
    file, out = write(), tmp_path / "made"
    out.mkdir()
    convert_gguf(file, out)
    files = sorted(path.name for path in out.iterdir())
    (out / "config.json").write_text("mine")
    refused(lambda: convert_gguf(file, out), str(out), "it exists")
    assert (out / "config.json").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == files
    refused(lambda: convert_gguf(file, file), "it exists")
    refused(lambda: convert_gguf(file, file / "made"), "cannot be written")


# --------------------------------------------------------------------------- the command, and directly


def test_command_names_the_folder(write: Write, tmp_path: Path) -> None:
    file, out = write(), tmp_path / "made"
    ran = CliRunner().invoke(app, ["model", "convert", str(file), "--out", str(out), "--json"])
    assert (ran.exit_code, json.loads(ran.stdout)) == (0, {"model": str(out)})
    assert "tiny.gguf: llama, tensors 20 F32" in ran.stderr.replace("21", "20")
    assert read_shape(out).d_model == D_MODEL


def test_file_is_a_model_by_itself(
    write: Write,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write()
    direct, converted = load_model(file), load_model(convert_gguf(file, tmp_path / "made"))
    assert "converting tiny.gguf once" in capsys.readouterr().err
    assert direct.fingerprint == converted.fingerprint
    assert torch.equal(logits(direct.network), logits(converted.network))
    (folder,) = cache.iterdir()
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "made").iterdir()}

    def again(*_: object) -> None:
        raise AssertionError("converted again")

    with monkeypatch.context() as patched:
        patched.setattr(iclens.model.gguf, "convert_gguf", again)
        shutil.copy(file, tmp_path / "copy.gguf")
        assert load_model(tmp_path / "copy.gguf").fingerprint == direct.fingerprint
        assert load_tokenizer(file).tokenize(" the") == ["Ġthe"]
        assert read_shape(file).n_vocab == len(TOKENS)
    assert capsys.readouterr().err == ""

    def lost_the_race(file: Path, folder: Path) -> None:
        convert_gguf(file, folder)  # another process did, meanwhile
        convert_gguf(file, folder)

    monkeypatch.setattr(iclens.model.gguf, "convert_gguf", lost_the_race)
    other = load_model(write(network(initializer_range=0.2)))
    assert len(list(cache.iterdir())) == 2
    assert other.fingerprint != direct.fingerprint
