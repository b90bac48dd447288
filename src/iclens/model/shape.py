"""The shape of a Llama or Mistral, read from config.json alone: sizes, limits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
DEFAULTS: dict[str, dict[str, int | None]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
}
"""What transformers takes for keys that config.json leaves out, for each architecture that is run here."""
ARCHITECTURES = tuple(DEFAULTS)
"""Model types whose blocks are run as `model.run` runs them; others scale the residual on the way."""
ATTENTION = ("full_attention", "sliding_attention")
"""Types of attention that `layer_types` may name; all of a model's blocks must be of one."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes and limits of a Llama or Mistral."""

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

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str = "model") -> ModelShape:
        """Read a parsed config.json."""

        def refuse(found: str, remedy: str) -> NoReturn:
            raise ModelError(f"config.json of '{name}'", found, remedy)

        def size(key: str, otherwise: int | None = None) -> int:
            value = config.get(key, DEFAULTS[kind].get(key))
            value = otherwise if value is None else value
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                refuse(f"{key} is {value!r}", f"{key} must be a positive whole number.")
            return value

        kind: Any = config.get("model_type")
        if kind not in ARCHITECTURES:
            refuse(f"its architecture is '{kind}'", f"model_type must be {' or '.join(ARCHITECTURES)}.")
        for found, remedy in _not_computed(config):
            refuse(found, remedy)
        d_model, n_heads = size("hidden_size"), size("num_attention_heads")
        n_kv_heads, d_head = size("num_key_value_heads", n_heads), size("head_dim", d_model // n_heads)
        if n_heads % n_kv_heads or d_head % 2:
            refuse(
                f"{n_heads} heads of {d_head} on {n_kv_heads} keys",
                "num_attention_heads must be a multiple of num_key_value_heads, head_dim even.",
            )
        if config.get("sliding_window") is not None:
            size("sliding_window")
        return cls(
            d_model, size("num_hidden_layers"), n_heads, n_kv_heads, d_head, size("intermediate_size"),
            size("vocab_size"), bool(config.get("tie_word_embeddings", False)),
            str(config.get("dtype", config.get("torch_dtype", ""))), size("max_position_embeddings"),
        )  # fmt: skip

    @property
    def block_matrices(self) -> int:
        """Weights of a block that multiply every token: attention and MLP projections."""
        attention = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)
        return attention + 3 * self.d_model * self.d_mlp

    @property
    def block_parameters(self) -> int:
        """All weights of a block, its two norms included."""
        return self.block_matrices + 2 * self.d_model

    def parameters(self, blocks: int, *, head: int, n_ids: int | None = None) -> int:
        """Weights of the embedding, the first `blocks` blocks, the final norm, and `head` unembeddings.

        `n_ids` counts only that many rows of an embedding that is not the unembedding too.
        """
        shared = self.tied and bool(head)
        embedded = self.n_vocab if n_ids is None or shared else min(n_ids, self.n_vocab)
        unembedded = head * (not self.tied) * self.n_vocab
        return (embedded + unembedded) * self.d_model + blocks * self.block_parameters + self.d_model

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


def window(model: Any) -> int | None:
    """How many keys a query of a network sees, itself included; None where it sees all earlier ones."""
    return model.config.sliding_window if model.config.model_type == "mistral" else None


def _not_computed(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys that transformers passes over, or that make weights no plain numbers, and what is allowed."""
    if config.get("quantization_config") is not None:
        yield "its weights are quantised (quantization_config)", "Give the unquantised model."
    by_layer = config.get("rope_parameters")
    for rope in (config, by_layer, config.get("rope_scaling")):
        share = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
        if share not in (None, 1):
            yield f"partial_rotary_factor is {share!r}", "Only rotation of whole heads, 1.0, is computed."
    if isinstance(by_layer, dict) and any(isinstance(rope, dict) for rope in by_layer.values()):
        yield (
            f"rope_parameters differ by layer ({', '.join(map(str, by_layer))})",
            "Only one rotation for all blocks is computed.",
        )
    layers = config.get("layer_types")
    if layers is None:
        return
    if not isinstance(layers, list) or not layers or len(layers) != config.get("num_hidden_layers"):
        yield f"layer_types is {str(layers)[:80]}", "layer_types must list one type for each block."
    kinds = sorted(set(map(str, layers)))
    if len(kinds) > 1:
        yield (
            f"layer_types differ from block to block ({', '.join(kinds)})",
            "Only models whose blocks all attend alike are computed.",
        )
    if kinds[0] not in ATTENTION:
        yield f"layer_types are {kinds[0]}", f"layer_types must be {' or '.join(ATTENTION)}."
    if kinds == ["sliding_attention"] and config.get("sliding_window", 0) is None:
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
