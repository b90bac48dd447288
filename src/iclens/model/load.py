"""LanguageModel: weights and tokenizer of a Hugging Face folder or hub name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from iclens.core import ModelError, Site, SiteError
from iclens.model.shape import read_shape, window
from iclens.prompts.beliefs import NUMBERS
from iclens.prompts.render import answer_ids, bos_id
from iclens.table import Ints

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
READABLE = ("F64", "F32", "F16", "BF16")
"""Stored dtypes that are weights as they stand; anything else is quantised or damaged."""


def read_weights(
    name: str, shapes: Mapping[str, tuple[int, ...]], known: Callable[[str], bool],
    *, dtype: torch.dtype, device: str | torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of `shapes`, from a folder or hub name.

    Args:
        name: folder, or hub name.
        shapes: key → the shape that the network wants.
        known: whether a key that is not wanted belongs to the model all the same.
        dtype: of the result.
        device: where the result is put, tensor by tensor; on the CPU unconverted tensors stay memory-mapped.

    Returns:
        key → tensor.

    Raises:
        ModelError: when keys are missing, unexpected, of another shape or not floating-point, or a file that
            is needed is not there.
        OSError, SafetensorError, ValueError: when a file cannot be read.
    """
    places = _places(name)
    _refuse(name, "missing", [key for key in shapes if key not in places])
    _refuse(name, "unexpected", [key for key in places if key not in shapes and not known(key)])
    by_file: dict[str, list[str]] = {}
    for key in shapes:
        by_file.setdefault(places[key], []).append(key)
    paths = {file: _find(name, file, keys[0]) for file, keys in by_file.items()}
    for file, keys in by_file.items():
        _check(name, paths[file], {key: tuple(shapes[key]) for key in keys})
    weights: dict[str, Tensor] = {}
    for file, keys in by_file.items():
        with safe_open(paths[file], framework="pt") as stored:
            for key in keys:
                weights[key] = stored.get_tensor(key).to(device=device, dtype=dtype)
    return weights


def _places(name: str) -> dict[str, str]:
    """Key → name of the file that should hold it."""
    index = _located(name, INDEX)
    if index is not None:
        declared: Any = json.loads(Path(index).read_text(encoding="utf-8"))
        places = declared.get("weight_map") if isinstance(declared, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ModelError(f"weights of '{name}'", f"{INDEX} has no weight_map", "Fetch the folder again.")
        return places
    single = _located(name, SINGLE)
    if single is None:
        raise ModelError(
            f"weights of '{name}'", f"neither {SINGLE} nor {INDEX}", "Fetch or convert the weights."
        )
    with safe_open(single, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _located(name: str, file: str) -> str | None:
    """Path of a file of a folder or hub name, downloaded when need be; None when it cannot be had."""
    return cached_file(
        name, file,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip


def _find(name: str, file: str, key: str) -> str:
    path = _located(name, file)
    if path is None:
        raise ModelError(f"weights of '{name}'", f"no {file}, which holds {key}", "Add this shard.")
    return path


def _check(name: str, path: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that lacks a wanted key, or holds it in another shape or in no float dtype."""
    with safe_open(path, framework="pt") as stored:
        _refuse(name, "missing", sorted(wanted.keys() - set(stored.keys())))
        held = {key: stored.get_slice(key) for key in wanted}
        shapes = {key: tuple(part.get_shape()) for key, part in held.items()}
        dtypes = {key: part.get_dtype() for key, part in held.items()}
    wrong = {key: shape for key, shape in shapes.items() if shape != wanted[key]}
    _refuse(
        name, "mismatched",
        [f"{key} of shape {list(shape)}, not {list(wanted[key])}" for key, shape in wrong.items()],
    )  # fmt: skip
    _refuse(
        name, "mismatched",
        [f"{key} of dtype {dtype}, not a float" for key, dtype in dtypes.items() if dtype not in READABLE],
    )  # fmt: skip


def _refuse(name: str, what: str, keys: list[str]) -> None:
    if keys:
        raise ModelError(
            f"weights of '{name}'", f"{len(keys)} {what}, first {sorted(keys)[0]}", "The folder is not whole."
        )


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
        tokenizer: its tokenizer; `prompts.render.check_tokenizer` says whether it can write prompts.
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
        """What the model is, `model.load.fingerprint`; taken when first asked for."""
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
    if layers and layers[0] == "full_attention":  # `model.shape` refuses blocks that differ
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


BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""How a sentencepiece vocabulary with byte fallback spells single bytes."""
_EURO = [BYTE_PIECES[byte] for byte in "€".encode()]
_SPACE, _SPELT_SPACE = "▁", "Ġ"


@dataclass(frozen=True)
class TokenText:
    """What one token stands for.

    Args:
        text: the characters that begin in it, a special token's name, or "" where none begins.
        continues: whether it begins with bytes of a character that began in a token before it.
    """

    text: str
    continues: bool = False


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[TokenText]:
    """The text of every token of a sequence; joined, they are the decoded sequence.

    Special tokens stand by name, and invalid bytes as `\\xe2`, where decoding gives U+FFFD.

    Args:
        tokenizer: a Hugging Face tokenizer, of any kind.
        ids: token ids, [pos].

    Returns:
        [pos].
    """
    if not (ids := [int(i) for i in ids]):
        return []
    decode_bytes = _reader(tokenizer)
    if decode_bytes is None:
        return _by_decoding(tokenizer, ids)
    added = {i: str(token.content).encode() for i, token in tokenizer.added_tokens_decoder.items()}
    pieces = tokenizer.convert_ids_to_tokens(ids)
    parts = [added[i] if i in added else decode_bytes(p) for i, p in zip(ids, pieces, strict=True)]
    texts = merged(parts)
    whole = "".join(text.text for text in texts)
    if whole.startswith(" ") and _decoded(tokenizer, ids) == whole[1:]:  # the space that a decoder strips
        texts[0] = TokenText(texts[0].text.removeprefix(" "), texts[0].continues)
    return texts


def merged(parts: Sequence[bytes]) -> list[TokenText]:
    """The text of every part of a byte string.

    Args:
        parts: the bytes of each token, [pos].

    Returns:
        [pos].
    """
    texts, owners = [""] * len(parts), [pos for pos, part in enumerate(parts) for _ in part]
    begins = [False] * len(owners)
    for start, text in _characters(b"".join(parts)):
        begins[start] = True
        texts[owners[start]] += text
    first = {owner: byte for byte, owner in reversed(list(enumerate(owners)))}
    return [TokenText(text, pos in first and not begins[first[pos]]) for pos, text in enumerate(texts)]


def _characters(whole: bytes) -> Iterator[tuple[int, str]]:
    """Where each character begins, and the character; a byte of none is spelt out."""
    start = 0
    for character in whole.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            yield start, f"\\x{whole[start]:02x}"
            start += 1
        else:
            yield start, character
            start += len(character.encode())


def _reader(tokenizer: Any) -> Any:
    """How pieces of this tokenizer are read as bytes; None where they are no bytes. Its decoder is asked."""
    if tokenizer.convert_tokens_to_string([_SPELT_SPACE, _SPELT_SPACE]) == "  ":
        return _byte_level
    if tokenizer.convert_tokens_to_string(_EURO) == "€":
        return _with_fallback
    return None


def _byte_level(piece: str) -> bytes:
    spelling = _byte_spelling()
    known = [spelling[character] for character in piece if character in spelling]
    return bytes(known) if len(known) == len(piece) else piece.encode()


def _with_fallback(piece: str) -> bytes:
    if piece in BYTE_PIECES:
        return bytes([BYTE_PIECES.index(piece)])
    return piece.replace(_SPACE, " ").encode()


@cache
def _byte_spelling() -> dict[str, int]:
    """Character → byte in byte-level vocabularies: printable bytes are themselves, others follow U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _by_decoding(tokenizer: Any, ids: list[int]) -> list[TokenText]:
    """Each token decoded alone; where that does not join to the sequence, what it adds to those before it."""
    alone = [_decoded(tokenizer, [i]) for i in ids]
    if "".join(alone) != _decoded(tokenizer, ids):
        upto = [_decoded(tokenizer, ids[:n]) for n in range(len(ids) + 1)]
        grown = [after.removeprefix(before) for before, after in pairwise(upto)]
        alone = grown if "".join(grown) == upto[-1] else alone
    return [TokenText(text) for text in alone]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


COMPUTED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip


"""Keys of a config that decide what is computed from the weights; biases and depth show in the weights."""


_DIGITS = 6


_FORM = re.compile(r"[0-9a-f]{6}:[0-9a-f]{6}:[0-9a-f]{6}(\.[0-9a-f]{6})*:([0-9a-f]{6})?")


_NO_WEIGHTS = ("another config", "another number of blocks")


_CACHED = re.compile(r"models--.+?--(.+)")

WHOLE, RUNS = 1 << 20, 64
"""Numbers up to which a tensor is hashed whole, and runs that are hashed of a larger one, as many in all."""


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
