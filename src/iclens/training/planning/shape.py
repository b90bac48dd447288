"""The shape of a language model, read from its config.json alone: parameters and arithmetic by part.

No weight is read and nothing of torch is needed, so a plan can be made where the model will never run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclens.errors import ModelError

LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
"""config.json of meta-llama/Meta-Llama-3-8B, which is gated: a plan for it needs no licence."""

KNOWN = {"meta-llama/Meta-Llama-3-8B": LLAMA3_8B, "NousResearch/Meta-Llama-3-8B": LLAMA3_8B}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama.

    Args:
        d_model: width of the residual stream.
        n_blocks: blocks in all.
        n_heads: query heads in a block.
        n_kv_heads: key and value heads in a block.
        d_head: width of a head.
        d_mlp: width of the MLP's hidden layer.
        n_vocab: token ids.
        tied: whether the unembedding is the embedding.
        stored: dtype that config.json gives its weights; empty when it gives none.
    """

    d_model: int
    n_blocks: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_vocab: int
    tied: bool
    stored: str = ""

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str = "model") -> ModelShape:
        """Read a parsed config.json.

        Raises:
            ModelError: when a size is missing or is no positive integer.
        """

        def size(key: str, otherwise: int | None = None) -> int:
            found = config.get(key, otherwise)
            if not isinstance(found, int) or isinstance(found, bool) or found < 1:
                raise ModelError(
                    f"config.json of '{name}'", f"{key} is {found}", "Give a Llama's config.json."
                )
            return found

        d_model, n_heads = size("hidden_size"), size("num_attention_heads")
        return cls(
            d_model, size("num_hidden_layers"), n_heads, size("num_key_value_heads", n_heads),
            size("head_dim", d_model // n_heads), size("intermediate_size"), size("vocab_size"),
            bool(config.get("tie_word_embeddings", False)),
            str(config.get("dtype", config.get("torch_dtype", ""))),
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
    """The shape of a model folder, of a model known here, or of a hub name whose config.json can be had.

    Raises:
        ModelError: when there is no config.json, or it is not that of a Llama.
    """
    folder = Path(name)
    if folder.is_dir():
        return ModelShape.from_config(_read(folder / "config.json", str(name)), str(name))
    if str(name) in KNOWN:
        return ModelShape.from_config(KNOWN[str(name)], str(name))
    if folder.is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise ModelError(f"model '{name}'", "no such folder", "Give a Hugging Face folder or hub name.")
    return ModelShape.from_config(_read(_from_hub(str(name)), str(name)), str(name))


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
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise ModelError(
            f"config.json of '{name}'", "it is missing or damaged", "Copy the folder again."
        ) from cause
    if not isinstance(found, dict):
        raise ModelError(f"config.json of '{name}'", "it is no mapping", "Copy the folder again.")
    return found
