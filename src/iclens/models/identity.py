"""Which model is this? One fingerprint of what a model is, and one rule for "the same model".

1. The config's part hashes what the architecture computes with (`COMPUTED`), as transformers reads it: not
the file's bytes, names, paths or versions. 2. Each part of the weights (embedding, every block, final norm
and head) hashes its tensors' names, shapes and values, rounded to bfloat16, so that a copy in bfloat16 or
float64 or in other shards is the same model. (A copy in float16 is another: rounding twice gives other
numbers.) Of a tensor of more than `WHOLE` numbers, `RUNS` evenly spaced runs are
hashed. 3. Two fingerprints are of the same model when they agree in every part that both have: a model of
which only some blocks are loaded is the same as the whole one. 4. Names are a hint, for where one side has no
fingerprint: in any spelling, TransformerLens' short names among them. The `_name_or_path` of a config is no
hint: a fine-tune often states what it was made from.

A fingerprint is written `config:embedding:block.block.block:end`, each part 6 hex digits; `end` is empty
where the last block is not loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iclens.models.blocks import window

if TYPE_CHECKING:
    from iclens.models.load import LanguageModel

COMPUTED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip
"""Keys of a config that decide what is computed from the weights; biases and depth show in the weights."""
WHOLE, RUNS = 1 << 20, 64
"""Numbers up to which a tensor is hashed whole, and runs that are hashed of a larger one, as many in all."""
_DIGITS = 6
_FORM = re.compile(r"[0-9a-f]{6}:[0-9a-f]{6}:[0-9a-f]{6}(\.[0-9a-f]{6})*:([0-9a-f]{6})?")
_NO_WEIGHTS = ("another config", "another number of blocks")
_CACHED = re.compile(r"models--.+?--(.+)")


def fingerprint(network: Any, whole: bool) -> str:
    """The fingerprint of a loaded network.

    Args:
        network: a Hugging Face Llama or Mistral.
        whole: whether all of its blocks, its final norm and its head are loaded.
    """
    config: dict[str, Any] = {key: getattr(network.config, key) for key in COMPUTED}
    config["window"] = window(network)
    config["rope_parameters"] = {k: v for k, v in config["rope_parameters"].items() if k != "type"}
    text = json.dumps(_plain(config), sort_keys=True)
    end = [("norm", network.model.norm.weight)] if whole else []
    if whole and not network.config.tie_word_embeddings:
        end.append(("lm_head", network.lm_head.weight))
    blocks = [_digest(block.named_parameters()) for block in network.model.layers]
    return ":".join([
        hashlib.sha256(text.encode()).hexdigest()[:_DIGITS],
        _digest([("embedding", network.model.embed_tokens.weight)]),
        ".".join(blocks),
        _digest(end) if end else "",
    ])  # fmt: skip


def difference(ours: str, theirs: str) -> str:
    """In what the models of two fingerprints differ, in words; empty when they are the same."""
    (config, embedding, blocks, end), other = ours.split(":"), theirs.split(":")
    if config != other[0]:
        return "another config"
    if embedding != other[1]:
        return "another embedding"
    mine, its = blocks.split("."), other[2].split(".")
    for layer, (left, right) in enumerate(zip(mine, its, strict=False)):
        if left != right:
            return f"other weights in block {layer}"
    # Fewer blocks are a part of the model only where its end is not there either.
    if (end and len(mine) < len(its)) or (other[3] and len(its) < len(mine)):
        return "another number of blocks"
    return "another final norm or head" if end and other[3] and end != other[3] else ""


def other_model(name: str | None, made_with: object, model: LanguageModel) -> str:
    """Whether something was made for another model than `model`, in words; empty when not, or when unknown.

    Args:
        name: what the model that it was made for was called.
        made_with: that model's fingerprint; anything else (of earlier versions, None) counts as unknown.
        model: what it is to be used on.
    """
    if is_fingerprint(made_with):
        found = difference(str(made_with), model.fingerprint)
        weights = "" if found in _NO_WEIGHTS else " (a float16 copy counts as another model)"
        return found and f"made for '{name}', which has {found}, used on '{model.name}'{weights}"
    if name is None or same_name(name, model.name):
        return ""
    return (
        f"made for '{name}', used on '{model.name}' (only the names can be compared: where they are one "
        "model, a link to its folder under the first name will do)"
    )


def is_fingerprint(value: object) -> bool:
    """Whether a value is written as a fingerprint is."""
    return isinstance(value, str) and _FORM.fullmatch(value) is not None


def same_name(one: str, other: str) -> bool:
    """Whether two names are of one model, in any spelling or by TransformerLens' short name for it."""
    ours, theirs = plain_name(one), plain_name(other)
    return ours == theirs or _short_names().get(ours, ours) == _short_names().get(theirs, theirs)


@cache
def _short_names() -> dict[str, str]:
    from transformer_lens.supported_models import MODEL_ALIASES  # takes seconds, and is seldom needed

    return {plain_name(short): plain_name(name) for name, shorts in MODEL_ALIASES.items() for short in shorts}


def plain_name(name: str) -> str:
    """A model's name without its owner, folder or `Meta-`, in lower case: the same for all its spellings.

    Folders may be written with either slash; of a snapshot in the hub's cache it is the repository's name.
    """
    parts = [part for part in re.split(r"[/\\]", str(name)) if part] or [str(name)]
    cached = [match[1] for part in parts if (match := _CACHED.fullmatch(part))]
    return (cached or parts)[-1].lower().replace("_", "-").removeprefix("meta-")


def _plain(value: Any) -> Any:
    """A value of a config in one spelling: numbers as floats, mappings by key."""
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(_values(tensor.detach()).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def _values(tensor: Tensor) -> Tensor:
    """All numbers of a tensor, or evenly spaced runs of a large one, as bfloat16 on the CPU."""
    flat = tensor.flatten()
    if len(flat) > WHOLE:
        size, last = WHOLE // RUNS, len(flat) - WHOLE // RUNS
        flat = torch.cat([flat[i * last // (RUNS - 1) :][:size] for i in range(RUNS)])
    return flat.to(torch.bfloat16).cpu()
