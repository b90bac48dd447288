"""The shape of a model, read from config.json alone: sizes, limits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from iclens.core import ModelError

LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": None, "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
"""config.json of meta-llama/Meta-Llama-3-8B, which is gated: a plan for it needs no licence."""
KNOWN = {"meta-llama/Meta-Llama-3-8B": LLAMA3_8B, "NousResearch/Meta-Llama-3-8B": LLAMA3_8B}


@dataclass(frozen=True)
class Family:
    """How the config.json of an architecture is read, and what its blocks hold besides matrices."""

    # what transformers takes for keys that config.json leaves out; keys of biases that are read at all
    defaults: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)  # its keys of sizes, where they are others
    layered: bool = False  # whether `layer_types` says of each block if it slides
    rotary: str = "heads"  # what is rotated: whole "heads", a "part" of each as configured, or "nothing"
    by_kind: bool = False  # whether blocks that slide have a rotation of their own
    free_heads: bool = True  # whether heads may share keys and values, and need not fill the residual
    gated: bool = True  # whether neurons are gated, which takes a third matrix
    norms: int = 2  # norms of a block
    norm_size: int = 1  # numbers of a norm per dimension
    qkv_bias: bool = False  # whether queries, keys and values have biases whatever the config says
    head_norms: str = ""  # queries and keys normed by "head", or "all" heads together
    capped: bool = False  # whether scores are capped, which takes those of all pairs at a time


_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False}
_GEMMA = {
    "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "tie_word_embeddings": True,
    "attention_bias": False,
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "llama": Family({"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False}),
    "mistral": Family(
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "qwen2": Family(_QWEN, layered=True, qkv_bias=True),
    "qwen3": Family(_QWEN | {"head_dim": 128, "attention_bias": False}, layered=True, head_norms="head"),
    "gemma2": Family(_GEMMA | {"max_position_embeddings": 8192}, layered=True, norms=4, capped=True),
    "gemma3_text": Family(
        _GEMMA | {"max_position_embeddings": 131072}, layered=True, by_kind=True, norms=4, head_norms="head"
    ),
    "phi3": Family({"max_position_embeddings": 4096}, rotary="part"),
    "olmo2": Family({"max_position_embeddings": 2048, "attention_bias": False}, head_norms="all"),
    "gpt2": Family(
        {"n_positions": 1024, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "intermediate_size": "n_inner", "max_position_embeddings": "n_positions",
        },
        rotary="nothing", free_heads=False, gated=False, norm_size=2,
    ),
    "gpt_neox": Family(
        {"max_position_embeddings": 2048, "attention_bias": True, "mlp_bias": True},
        rotary="part", free_heads=False, gated=False, norm_size=2,
    ),
}  # fmt: skip
ARCHITECTURES = tuple(FAMILIES)
"""Model types whose blocks are run here, each as its adapter in `model.architectures` says."""
LAYERED = tuple(kind for kind, family in FAMILIES.items() if family.layered)
"""Those whose blocks may differ in their attention; of the others, all must attend alike."""
ATTENTION = ("full_attention", "sliding_attention")
"""Types of attention that `layer_types` may name."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes and limits of a model."""

    d_model: int
    n_blocks: int
    # n_heads, n_kv_heads: query heads, and heads of keys and values, in a block
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int  # width of the MLP's hidden layer
    n_vocab: int  # token ids
    tied: bool  # whether the unembedding is the embedding
    stored: str = ""  # dtype that config.json gives its weights; empty when it gives none
    n_positions: int = 8192  # tokens of the longest context that the model was made for
    gated: bool = True  # whether neurons are gated, which takes a third matrix
    block_vectors: int | None = None  # weights of a block outside its matrices; two norms when not given
    end_vectors: int | None = None  # the same of the end; one norm when not given
    learned_positions: int = 0  # positions with an embedding
    whole_scores: bool = False  # whether attention holds the scores of all pairs of tokens at a time

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str = "model") -> ModelShape:
        """Read a parsed config.json."""

        def refuse(found: str, remedy: str) -> NoReturn:
            raise ModelError(f"config.json of '{name}'", found, remedy)

        def size(key: str, otherwise: int | None = None) -> int:
            key = family.names.get(key, key)
            value = config.get(key, family.defaults.get(key))
            value = otherwise if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                refuse(f"{key} is {value!r}", f"{key} must be a positive whole number.")
            return value

        kind: Any = config.get("model_type")
        if kind not in ARCHITECTURES:
            refuse(f"its architecture is '{kind}'", f"model_type must be one of {', '.join(ARCHITECTURES)}.")
        family = FAMILIES[kind]
        for found, remedy in _not_computed(config, family):
            refuse(found, remedy)
        d_model, n_heads = size("hidden_size"), size("num_attention_heads")
        n_kv_heads, d_head = n_heads, d_model // n_heads
        if family.free_heads:
            n_kv_heads, d_head = size("num_key_value_heads", n_heads), size("head_dim", d_head)
        if n_heads % n_kv_heads or (d_head % 2 and family.rotary == "heads"):
            refuse(
                f"{n_heads} heads of {d_head} on {n_kv_heads} keys",
                "num_attention_heads must be a multiple of num_key_value_heads, head_dim even.",
            )
        if config.get("sliding_window") is not None:
            size("sliding_window")
        d_mlp = size("intermediate_size", 4 * d_model if kind == "gpt2" else None)
        n_positions = size("max_position_embeddings")
        shape = cls(
            d_model, size("num_hidden_layers"), n_heads, n_kv_heads, d_head, d_mlp, size("vocab_size"),
            bool(config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False))),
            str(config.get("dtype", config.get("torch_dtype", ""))), n_positions, family.gated,
            end_vectors=family.norm_size * d_model,
            learned_positions=n_positions if family.rotary == "nothing" else 0, whole_scores=family.capped,
        )  # fmt: skip
        return replace(shape, block_vectors=_vectors(config, family, shape))

    @property
    def block_matrices(self) -> int:
        """Weights of a block that multiply every token: attention and MLP projections."""
        attention = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)
        return attention + (2 + self.gated) * self.d_model * self.d_mlp

    @property
    def block_parameters(self) -> int:
        """All weights of a block, its norms and biases included."""
        vectors = 2 * self.d_model if self.block_vectors is None else self.block_vectors
        return self.block_matrices + vectors

    def parameters(self, blocks: int, *, head: int, n_ids: int | None = None) -> int:
        """Weights of the embedding, the first `blocks` blocks, the final norm, and `head` unembeddings.

        `n_ids` counts only that many rows of an embedding that is not the unembedding too.
        """
        shared = self.tied and bool(head)
        embedded = self.n_vocab if n_ids is None or shared else min(n_ids, self.n_vocab)
        rows = embedded + self.learned_positions + head * (not self.tied) * self.n_vocab
        end = self.d_model if self.end_vectors is None else self.end_vectors
        return rows * self.d_model + blocks * self.block_parameters + end

    def block_flops(self, context: int) -> float:
        """FLOP per token of one block, in causal contexts of `context` tokens.

        2 per weight, and 4·(context / 2)·n_heads·d_head for the scores and their sums.
        """
        return 2 * self.block_matrices + 2 * context * self.n_heads * self.d_head


def read_shape(name: str | Path) -> ModelShape:
    """The shape of a model folder or GGUF file, of a model known here, or of a hub name with config.json."""
    folder = model_folder(name)
    if folder is None and str(name) in KNOWN:
        config = KNOWN[str(name)]
    else:
        config = _read(_from_hub(str(name)) if folder is None else folder / "config.json", str(name))
    return ModelShape.from_config(config, str(name))


def model_folder(name: str | Path) -> Path | None:
    """The folder of this name, None for what can only be a name on the hub, such as owner/model.

    Of a GGUF file it is the folder that it is converted to, once, in the user's cache.
    """
    path = Path(name)
    try:
        if path.is_dir():
            return path
        if path.suffix == ".gguf" and path.is_file():
            from iclens.model.gguf import cached_folder  # it loads torch, and reads ARCHITECTURES here

            return cached_folder(path)
        on_disk = path.is_absolute() or path.parent.is_dir()
    except OSError:  # the name is too long for a file
        on_disk = True
    if on_disk or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        raise ModelError(
            f"model '{str(name)[:200]}'",
            "no such folder",
            "Give a Hugging Face folder, a GGUF file or a hub name.",
        )
    return None


def refuse_longer(tokens: int, positions: int, model: str, asked: str = "", remedy: str = "") -> None:
    """Refuse a context that is longer than a model's positions.

    `asked` is where the length comes from, such as a key; the prompt itself when not given.
    """
    if tokens > positions:
        raise ModelError(
            asked or f"a prompt of {tokens} tokens",
            f"contexts of {tokens} tokens, {model} has {positions} positions (max_position_embeddings)",
            remedy or f"Give prompts of at most {positions} tokens.",
        )


def _vectors(config: dict[str, Any], family: Family, shape: ModelShape) -> int:
    """Weights of a block outside its matrices: norms and biases."""

    def has(key: str) -> bool:
        return key in family.defaults and bool(config.get(key, family.defaults[key]))

    queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    normed = {"": 0, "head": 2 * shape.d_head, "all": queries + keys}[family.head_norms]
    by_attention = (family.qkv_bias or has("attention_bias")) * (queries + 2 * keys)
    by_attention += has("attention_bias") * shape.d_model
    by_mlp = has("mlp_bias") * ((1 + family.gated) * shape.d_mlp + shape.d_model)
    return family.norms * family.norm_size * shape.d_model + normed + by_attention + by_mlp


def _not_computed(config: dict[str, Any], family: Family) -> Iterator[tuple[str, str]]:
    """Keys that transformers passes over, or that make weights no plain numbers, and what is allowed."""
    if config.get("quantization_config") is not None:
        yield "its weights are quantised (quantization_config)", "Give the unquantised model."
    for key, remedy in (
        ("use_bidirectional_attention", "Only attention to earlier tokens is computed."),
        ("add_cross_attention", "Only attention to the model's own tokens is computed."),
    ):
        if config.get(key):
            yield f"{key} is {config[key]!r}", remedy
    if config["model_type"] == "gemma3_text" and config.get("attn_logit_softcapping") is not None:
        yield (
            f"attn_logit_softcapping is {config['attn_logit_softcapping']!r}",
            "transformers computes none for gemma3_text; set it to null.",
        )
    by_layer = config.get("rope_parameters")
    for rope in (config, by_layer, config.get("rope_scaling")):
        share = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
        if share not in (None, 1) and family.rotary != "part":
            yield f"partial_rotary_factor is {share!r}", "Only rotation of whole heads, 1.0, is computed."
    rotations = by_layer.values() if isinstance(by_layer, dict) else ()
    if not family.by_kind and any(isinstance(rope, dict) for rope in rotations):
        yield (
            f"rope_parameters differ by layer ({', '.join(map(str, by_layer or ()))})",
            "Only one rotation for all blocks is computed.",
        )
    yield from _layers_not_computed(config, family)


def _layers_not_computed(config: dict[str, Any], family: Family) -> Iterator[tuple[str, str]]:
    """The same of `layer_types` and the window."""
    layers = config.get("layer_types")
    # a key that is left out counts as a window, where layers are all alike
    window = config.get("sliding_window", family.defaults.get("sliding_window", 0))
    if "use_sliding_window" in family.defaults and not config.get("use_sliding_window"):
        window = None
    slides = layers is None and family.layered and "sliding_window" in family.defaults
    kinds = ["sliding_attention"] if slides else []
    if layers is not None:
        if not isinstance(layers, list) or not layers or len(layers) != config.get("num_hidden_layers"):
            yield f"layer_types is {str(layers)[:80]}", "layer_types must list one type for each block."
        kinds = sorted(set(map(str, layers)))
    if len(kinds) > 1 and not family.layered:
        yield (
            f"layer_types differ from block to block ({', '.join(kinds)})",
            "Only models whose blocks all attend alike are computed.",
        )
    for kind in kinds:
        if kind not in ATTENTION:
            yield f"layer_types are {kind}", f"layer_types must be {' or '.join(ATTENTION)}."
    if "sliding_attention" in kinds and window is None:
        yield (
            "layer_types are sliding_attention and sliding_window is null",
            "Set sliding_window to the tokens that a query sees, or layer_types to full_attention.",
        )


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ModelError(
            f"config.json of '{name}'", f"cannot be had ({line})", "Give a folder that holds it."
        ) from cause


def _read(file: Path, name: str) -> dict[str, Any]:
    subject = f"config.json of '{name}'"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ModelError(subject, "there is none", "Name the folder that holds config.json.") from cause
    except (OSError, ValueError, RecursionError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        encoded = isinstance(cause, UnicodeDecodeError) or "BOM" in line
        remedy = "Save it as UTF-8 without a byte-order mark." if encoded else "Fetch this file again."
        raise ModelError(subject, f"it is not JSON ({line})", remedy) from cause
    if not isinstance(config, dict):
        raise ModelError(subject, "it is no mapping", "Fetch this file again.")
    return config
