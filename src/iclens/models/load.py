"""Loading a model folder: whole or its first blocks, strictly.

The same code loads the built-in model and llama-3-8b. 1. Check the config (`models.shape`). 2. Build the
network without memory for its weights; read the tokenizer, and settle what sequences begin with. 3. Read the
weights of as many blocks as asked, by key (`models.weights`). Without the last block there are no final norm
and no head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from iclens.errors import ModelError, SiteError
from iclens.models.identity import fingerprint
from iclens.models.shape import read_shape
from iclens.models.weights import read_weights
from iclens.names import Site
from iclens.tables.answers import NUMBERS
from iclens.tables.arrays import Ints
from iclens.tasks.rendering import answer_ids, bos_id

_UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers and safetensors raise on a damaged folder."""


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal language model.

    Args:
        name: folder or hub name it came from.
        network: the Hugging Face model, in eval mode.
        tokenizer: its tokenizer; `tasks.rendering.check_tokenizer` says whether it can write prompts.
        n_blocks: blocks loaded.
        whole: whether these are all of its blocks, so that it has logits.
    """

    name: str
    network: Any
    tokenizer: Any
    n_blocks: int
    whole: bool

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.hidden_size)

    @property
    def n_heads(self) -> int:
        """Attention heads of each block."""
        return int(self.network.config.num_attention_heads)

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return int(getattr(self.network.config, "head_dim", None) or self.d_model // self.n_heads)

    def check_site(self, site: Site) -> Site:
        """Return `site`, or raise a SiteError when the model has no such block."""
        if site.layer >= self.n_blocks:
            raise SiteError(
                f"site {site}", f"the model has blocks 0 to {self.n_blocks - 1}", "Choose one of these."
            )
        return site

    def answer_space(self, extra: tuple[str, ...] = ()) -> tuple[tuple[str, ...], torch.Tensor]:
        """The answers whose probabilities are read (numbers 0–999, then `extra`), and their token ids.

        Raises:
            TokenizerError: when one is not a single token.
        """
        more = tuple(dict.fromkeys(y for y in extra if y not in NUMBERS))
        ids = torch.from_numpy(answer_ids(self.tokenizer, more))
        return NUMBERS + more, torch.cat([self._number_ids, ids])

    @cached_property
    def _number_ids(self) -> torch.Tensor:
        return torch.from_numpy(answer_ids(self.tokenizer, NUMBERS))

    def embed(self, tokens: Ints) -> torch.Tensor:
        """The embeddings of tokens [row pos], [row pos d_model].

        Raises:
            ModelError: for an id that the model has no embedding of.
        """
        ids, n_vocab = np.asarray(tokens), int(self.network.config.vocab_size)
        if ids.size and not 0 <= ids.min() <= ids.max() < n_vocab:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ModelError(
                f"token {wrong} in '{self.name}'", f"it has embeddings of tokens 0 to {n_vocab - 1}",
                "Tokenise with the tokenizer that belongs to the model.",
            )  # fmt: skip
        return self.network.model.embed_tokens(torch.as_tensor(ids, device=self.device()))

    @cached_property
    def fingerprint(self) -> str:
        """What the model is, `models.identity.fingerprint`; taken when first asked for."""
        return fingerprint(self.network, self.whole)

    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device


def load_model(
    name: str | Path, *, blocks: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu",
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> LanguageModel:  # fmt: skip
    """Load a model folder (or hub name), or only its first blocks.

    Args:
        name: folder with config.json, safetensors and a tokenizer; or a hub name. Shards that hold none
            of the asked blocks may be absent, and are not downloaded.
        blocks: how many blocks to load; all by default. With fewer, there are no logits.
        dtype: of the weights.
        device: torch device.
        attention: how attention is computed.

    Raises:
        ModelError: when the folder is missing, a file is damaged, or weights are missing or mismatched.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise ModelError(
            f"device '{device}'", "torch cannot use it here", "Give cpu, or cuda where there is one."
        ) from cause
    shape = read_shape(name)
    total, n_blocks = shape.n_blocks, shape.n_blocks if blocks is None else blocks
    if not 1 <= n_blocks <= total:
        raise ModelError(f"{n_blocks} blocks of '{name}'", f"it has {total}", f"Ask for 1 to {total}.")
    transformers_logging.disable_progress_bar()
    with _reading(name, "config.json"):
        config = _config(name, n_blocks)
        network = _empty_network(config, dtype, attention)
    tokenizer = load_tokenizer(name)
    if n_blocks < total:
        del network.lm_head, network.model.norm
    with _reading(name, "weights"):
        _fill(str(name), network, total, dtype, device)
    return LanguageModel(str(name), network, tokenizer, n_blocks, n_blocks == total)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model folder (or hub name); its `bos_token_id` is what sequences begin with.

    That is what the tokenizer puts before a text, else the `bos_token` it names, else the token that
    config.json states; None where there is none of these.

    Raises:
        ModelError: when the folder is missing, a file is damaged, or its BOS is no token of the model.
    """
    shape = read_shape(name)
    with _reading(name, "tokenizer"):
        config, _ = PreTrainedConfig.get_config_dict(name)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        bos, stated = bos_id(tokenizer), config.get("bos_token_id")
    if bos is None and type(stated) is int and stated >= 0:
        bos = stated
    if bos is not None and bos >= (n_tokens := min(len(tokenizer), shape.n_vocab)):
        raise ModelError(
            f"model '{name}'", f"its BOS is token {bos}, and its tokens are 0 to {n_tokens - 1}",
            "Set bos_token_id in config.json and bos_token in tokenizer_config.json to one of these tokens.",
        )  # fmt: skip
    if bos is not None and bos != tokenizer.bos_token_id:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    return tokenizer


@contextmanager
def _reading(name: str | Path, part: str) -> Iterator[None]:
    """Turns what transformers and safetensors raise on a damaged part of a folder into one line."""
    try:
        yield
    except _UNREADABLE as cause:
        line = " ".join(str(cause).split()) or type(cause).__name__
        raise ModelError(
            f"{part} of model '{name}'",
            f"cannot be loaded ({line[:300]})",
            f"Its {part} must be whole.",
        ) from cause


def _config(name: str | Path, n_blocks: int) -> Any:
    """The config of the first blocks, of the class that its `model_type` names.

    `AutoConfig` would read a Mistral with `layer_types` as another architecture.
    """
    stated, _ = PreTrainedConfig.get_config_dict(name)
    layers = stated.pop("layer_types", None)
    config = CONFIG_MAPPING[stated["model_type"]].from_dict(stated | {"num_hidden_layers": n_blocks})
    if layers and layers[0] == "full_attention":  # `models.shape` refuses blocks that differ
        config.sliding_window = None
    return config


def _empty_network(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """The network of a config, its weights on the meta device."""
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act '{config.hidden_act}' is no activation of transformers")
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return network


def _fill(name: str, network: Any, total: int, dtype: torch.dtype, device: str) -> None:
    """Give an empty network its weights, and freeze it; `total` counts the blocks of the whole model.

    Raises:
        ModelError: when weights are missing or mismatched.
    """
    tied = bool(network.config.tie_word_embeddings) and hasattr(network, "lm_head")
    shapes = {key: tuple(part.shape) for key, part in network.state_dict().items()}
    if tied:
        shapes.pop("lm_head.weight")
    weights = read_weights(
        name, shapes, lambda key: _is_left_out(key, network, total), dtype=dtype, device=device
    )
    network.load_state_dict(weights, strict=False, assign=True)  # `read_weights` was strict
    if tied:
        network.tie_weights()
    rotary = network.model.rotary_emb
    network.model.rotary_emb = type(rotary)(config=network.config).to(device)
    empty = [key for key, part in chain(network.named_parameters(), network.named_buffers()) if part.is_meta]
    if empty:
        raise ModelError(f"weights of '{name}'", f"{empty[0]} is in no file", "Give another model.")
    network.requires_grad_(False).eval()


def _is_left_out(key: str, network: Any, total: int) -> bool:
    """Whether a stored key belongs to the model though it is not read: deeper blocks, head, old buffers."""
    block = re.match(r"model\.layers\.(\d+)\.", key)
    if block is not None and len(network.model.layers) <= int(block[1]) < total:
        return True
    if key.endswith("rotary_emb.inv_freq"):
        return True  # older Llama folders store it; it follows from the config
    headless = not hasattr(network, "lm_head")
    tied = bool(network.config.tie_word_embeddings)
    return (key == "lm_head.weight" and (headless or tied)) or (key == "model.norm.weight" and headless)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A float32 (or integer) numpy copy on the CPU."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
